"""Coding agents, started by `glm launch`: each reads a file through its own tool and answers with what the file says."""

import json
import tomllib

import pytest

from .installed import programs
from .offline import launch, run

pytestmark = pytest.mark.clients


def test_claude_code(server, task, tmp_path, requests):
    command = launch("claude", server.root, "-p", task.prompt, "--output-format", "json", "--allowedTools", "Read")
    answer = json.loads(run(command, home=tmp_path / "home", cwd=task.folder, path=programs("claude")).succeeded())
    assert not answer["is_error"] and answer["num_turns"] == 2
    assert answer["result"] == f"The codeword is {task.word} 🙂."
    assert requests.count("POST /v1/messages") >= 2
    assert not requests.refused()
