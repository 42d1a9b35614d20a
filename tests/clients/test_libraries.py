"""litellm and langchain-openai: a tool loop over every API that they can speak to this server, and what else they are used for."""

import json
from pathlib import Path

import pytest

from .installed import programs
from .offline import run
from .script import GREETING
from .scripted_server import NAME

pytestmark = pytest.mark.clients


@pytest.fixture
def driven(server, task, tmp_path):
    """What a driver script prints when it runs in the client's own environment."""

    def drive(client: str, script: str, **variables):
        command = [str(programs(client) / "python"), str(Path(__file__).parent / script), server.url, NAME, task.prompt, str(task.file)]
        return json.loads(run(command, home=tmp_path / "home", **variables).succeeded().splitlines()[-1])

    return drive


def test_litellm(driven, task):
    seen = driven("litellm", "drive_litellm.py", LITELLM_LOCAL_MODEL_COST_MAP="True")
    for provider in ("openai", "hosted_vllm", "anthropic"):
        loop = seen[provider]
        assert loop["answer"] == task.answer, provider
        assert loop["finish"] == ["tool_calls", "stop"]
        assert loop["cached"] > 0
        assert loop["reasoning"] == ["Let me look.", "Let me look."]
    assert seen["too long"] == "ContextWindowExceededError"
    assert seen["text"] == "length"


def test_langchain(driven, task):
    seen = driven("langchain", "drive_langchain.py")
    for wire in ("chat", "responses"):
        loop = seen[wire]
        assert loop["answer"] == task.answer, wire
        assert 0 < loop["cached"] < loop["input tokens"]
        assert loop["thought"] > 0
    assert seen["chat"]["reasoning"] == []  # it drops what OpenAI's chat API does not have
    assert seen["responses"]["reasoning"] == ["Let me look."]  # unread, but kept and sent back as it came
    for verdict in seen["structured"].values():
        assert 1 <= verdict["stars"] <= 5
    assert seen["batch"] == [GREETING, GREETING]
