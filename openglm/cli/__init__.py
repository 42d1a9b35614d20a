"""The `glm` command: one file per verb. Verbs import what they need when they run, so that `glm --help` stays instant."""
