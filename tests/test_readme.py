"""The README promises only what exists, and its offline example runs as printed."""

import re
import subprocess
import sys
from pathlib import Path

from openglm.cli.main import VERBS

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text("utf-8")
COMMANDS = [line.strip() for line in README.splitlines() if line.startswith("    ")]


def test_every_command_names_a_real_target_or_verb():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M))
    made = [command.split()[1] for command in COMMANDS if command.startswith("make ")]
    verbs = [m[1] for command in COMMANDS if (m := re.match(r"(?:\.venv/bin/)?glm ([a-z]+)", command))]
    assert {"serve", "test"} <= set(made) <= targets
    assert set(verbs) <= set(VERBS) and {"serve", "chat", "generate", "train", "eval"} <= set(verbs)


def test_ci_runs_the_test_command_of_the_readme():
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    assert "make test" in script and "make check" in script


def test_offline_example_runs_as_printed():
    examples = re.findall(r"```python\n(.*?)```", README, re.S)
    offline = next(example for example in examples if "LLM()" in example)
    done = subprocess.run([sys.executable, "-c", offline], check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "5" in done.stdout
