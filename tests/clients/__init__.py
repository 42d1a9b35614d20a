"""Real client programs against a live `glm serve`: a tier of its own, `make test-clients`.

`glm-nano` is too small to play a coding agent, so the model here is scripted: the engine, the parser and every wire are the real ones, and
only the choice of the next token is made by `script` instead of by the weights (see `scripted_engine`).
"""
