"""`glm chat` and `glm generate` against the live server, and once with an engine of their own."""

import io
import json
import os

import httpx
import pytest

from openglm.cli.main import main
from openglm.engine.request import SamplingParams
from openglm.errors import EngineError, RequestError
from openglm.server.openai_client import OpenAIClient, SamplingWishes
from openglm.server.turn import TurnRequest, prepare
from openglm.text.messages import Conversation, Message, Tool
from openglm.text.turn_parser import message_from_events

WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOLS = (Tool("get_weather", WEATHER, {"type": "function", "function": {"name": "get_weather", "parameters": WEATHER}}),)


@pytest.fixture
def glm(capsys, monkeypatch, logging_restored):
    """Run a verb with a piped standard input; its standard output."""

    def run_verb(*arguments, stdin=""):
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        try:
            main([str(word) for word in arguments])
        except SystemExit as left:
            assert not left.code, capsys.readouterr().err
        return capsys.readouterr().out

    return run_verb


async def test_our_client_reads_the_same_turn_as_the_engine_delivers(live):
    conversation = Conversation((Message("user", "Hi"),), TOOLS)
    client = OpenAIClient(live.root)  # without /v1, which is then found
    steps = [step async for step in client.answer(conversation, SamplingWishes(seed=1))]
    await client.close()
    remote = message_from_events([event for step in steps for event in step.events])
    assert (remote.reasoning, remote.content) == ("Ilookitup", "Moment🙂")
    assert [(call.name, call.arguments) for call in remote.tool_calls] == [("get_weather", {"city": "Zürich"})]
    end = steps[-1].end
    assert (end.finish_reason, end.usage.completion_tokens, end.usage.reasoning_tokens) == ("tool_calls", 22, 6)
    assert end.usage.accepted_draft_tokens == end.usage.draft_tokens > 0
    prepared = prepare(TurnRequest(conversation, SamplingParams()), live.service.model)
    assert end.usage.prompt_tokens == len(prepared.prompt_ids)


async def test_our_client_does_without_what_only_some_servers_take():
    """A server that refuses unknown fields is asked again in OpenAI's own words, and not with those any more."""
    bodies = []

    def answer(request):
        bodies.append(json.loads(request.content))
        if "chat_template_kwargs" in bodies[-1]:
            return httpx.Response(400, json={"error": {"message": "Unrecognized request argument supplied: chat_template_kwargs"}})
        return httpx.Response(200, text='data: {"choices": [{"delta": {"content": "Hi"}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n')

    client = OpenAIClient("http://elsewhere/v1", model="m")
    await client._http.aclose()
    client._http = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    for _ in range(2):
        steps = [step async for step in client.answer(Conversation((Message("user", "Hi"),)), SamplingWishes())]
        assert message_from_events([event for step in steps for event in step.events]).content == "Hi"
    await client.close()
    assert ["chat_template_kwargs" in body for body in bodies] == [True, False, False]


@pytest.mark.parametrize(
    ("url", "model", "error", "words"),
    [
        ("http://127.0.0.1:1/v1", None, EngineError, "cannot talk to .* is a server running there"),
        ("nonsense", None, EngineError, "cannot talk to"),
        (None, "gpt-9", RequestError, "404"),
    ],
)
async def test_our_client_says_what_went_wrong(live, url, model, error, words):
    client = OpenAIClient(url or live.url, model=model)
    with pytest.raises(error, match=words):
        async for _ in client.answer(Conversation((Message("user", "Hi"),)), SamplingWishes()):
            pass
    await client.close()


def test_generate_prints_only_the_answer_on_a_pipe(live, glm):
    assert glm("generate", "Hi", "--url", live.url, "--max-tokens", 12) == "Moment🙂\n"
    assert glm("generate", "-", "--url", live.url, "--no-thinking", "-n", 5, stdin="Hi") == "Moment🙂\n"


def test_generate_reports_json(live, glm, tmp_path):
    (tmp_path / "question.txt").write_text("Hi")
    report = json.loads(glm("generate", "-f", tmp_path / "question.txt", "--url", live.url, "--json", "--max-tokens", 12))
    assert report["message"] == {"role": "assistant", "content": "Moment🙂", "reasoning_content": "Ilookitup"}
    assert report["finish_reason"] == "length"
    assert report["usage"]["completion_tokens"] == 12


def test_generate_starts_an_engine_of_its_own(scripted_dir, glm, monkeypatch):
    monkeypatch.setitem(os.environ, "GLM_THREADS", "1")
    assert glm("generate", "Hi", "--model", scripted_dir, "--max-tokens", 12, "--temperature", 0) == "Moment🙂\n"


def test_chat_answers_every_line_of_a_pipe(live, glm):
    out = glm(
        "chat", "--url", live.url, "--no-tools", "--max-tokens", 12, stdin="one\n/think off\ntwo \\\nlines\n\n/clear\nthree\n/exit\nfour\n"
    )
    first, *others = out.splitlines()
    assert first == "Moment🙂"
    # Without thinking the limit of 12 tokens reaches into what is not a call, because no tools are offered.
    assert others == ["Moment🙂<tool_call>get_weather<arg_key>city</arg_key><arg_value>"] * 2


def test_chat_runs_the_tools_that_are_called_and_gives_up_after_some_rounds(live, glm):
    out = glm("chat", "--url", live.url, stdin="one\n")
    assert out.count("Moment🙂") == 8
    assert out.count('[get_weather(city=\'Zürich\') -> {"error": "there is no tool called get_weather"}]') == 8
    assert "(stopped after 8 rounds of tool calls)" in out
