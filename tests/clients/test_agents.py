"""Coding agents, started by `glm launch`: each reads a file through its own tool and answers with what the file says.

The word in the file is random, so an answer that holds it has been through the whole loop: the agent's prompt and tools, the model's call
on the agent's wire, the agent's tool, its result on the wire, the answer.
"""

import json
import sys

import pytest

from .installed import programs
from .offline import run
from .scripted_server import TESTS, ScriptedServer

pytestmark = pytest.mark.clients

KEY = "a-key-that-only-the-environment-holds"


@pytest.fixture(scope="module")
def server(model_dir):
    """It wants a key, so each agent also proves that `glm launch` got the key to it."""
    running = ScriptedServer(model_dir, "--log-format", "json", "--api-key", KEY)
    yield running
    running.close()


@pytest.fixture
def launched(server, task, tmp_path):
    """Run `glm launch AGENT` with these words for the agent; the finished program."""

    def launch(agent: str, *words: str):
        command = [
            sys.executable,
            "-m",
            "openglm.cli.main",
            "launch",
            agent,
            "--url",
            server.root,
            "--api-key-env",
            "GLM_KEY",
            "--",
            *words,
        ]
        finished = run(command, home=tmp_path / "home", cwd=task.folder, path=programs(agent), PYTHONPATH=str(TESTS.parent), GLM_KEY=KEY)
        assert KEY not in finished.output + finished.errors
        return finished

    return launch


def test_claude_code(launched, task, requests):
    run = launched("claude", "-p", task.prompt, "--output-format", "json", "--allowedTools", "Read")
    answer = json.loads(run.succeeded())
    assert not answer["is_error"] and answer["num_turns"] == 2
    assert answer["result"] == task.answer
    assert answer["usage"]["cache_read_input_tokens"] > answer["usage"]["input_tokens"] / 2  # the second turn found the first cached
    assert requests.paths() == {"GET /v1/models": 1, "POST /v1/messages": 2}
    assert not requests.refused()


def test_codex(launched, task, requests):
    run = launched("codex", "exec", "--skip-git-repo-check", "--json", task.prompt)
    events = [json.loads(line) for line in run.succeeded().splitlines()]
    items = [event["item"] for event in events if event["type"] == "item.completed"]
    assert [item["text"] for item in items if item["type"] == "agent_message"][-1] == task.answer
    (command,) = [item for item in items if item["type"] == "command_execution"]
    assert command["exit_code"] == 0 and task.word in command["aggregated_output"]
    usage = events[-1]["usage"]
    assert usage["cached_input_tokens"] > usage["input_tokens"] / 3
    assert requests.paths() == {"GET /v1/models": 1, "POST /v1/responses": 2}
    assert not requests.refused()


def test_opencode(launched, task, requests):
    run = launched("opencode", "run", "--format", "json", task.prompt)
    output = run.succeeded(may_ask=("registry.npmjs.org",))  # for a package that plugins are written with
    events = [json.loads(line) for line in output.splitlines()]
    (call,) = [event["part"] for event in events if event["type"] == "tool_use"]
    assert (call["tool"], call["state"]["status"]) == ("read", "completed")
    assert [event["part"]["text"] for event in events if event["type"] == "text"][-1] == task.answer
    tokens = [event["part"]["tokens"] for event in events if event["type"] == "step_finish"][-1]
    assert tokens["cache"]["read"] > tokens["input"], tokens
    assert requests.paths() == {"GET /v1/models": 1, "POST /v1/chat/completions": 3}  # the first asks for a title
    assert not requests.refused()


def test_cline(launched, task, requests):
    run = launched("cline", "--json", task.prompt)
    events = [json.loads(line) for line in run.succeeded(may_ask=("data.cline.bot",)).splitlines()]  # for its feature flags
    result = events[-1]
    assert (result["type"], result["finishReason"], result["text"]) == ("run_result", "completed", task.answer)
    assert result["usage"]["cacheReadTokens"] > result["usage"]["inputTokens"] / 3
    assert requests.paths() == {"GET /v1/models": 1, "POST /v1/chat/completions": 2}
    assert not requests.refused()
