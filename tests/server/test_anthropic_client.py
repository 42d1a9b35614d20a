"""The real `anthropic` package against the real server. The scripted checkpoint thinks, says "Moment🙂" and calls get_weather."""

import anthropic
import httpx
import pytest

TOOL = {
    "name": "get_weather",
    "description": "Weather of a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
ASK = [{"role": "user", "content": "Weather in Zürich?"}]
THINK = {"type": "adaptive"}


@pytest.fixture(scope="module")
def client(live):
    with anthropic.Anthropic(base_url=live.root, api_key="unused", max_retries=0) as client:
        yield client


def test_the_stream_helper_accumulates_a_turn_with_thinking_and_a_call(client):
    with client.messages.stream(model="scripted", max_tokens=100, messages=ASK, tools=[TOOL], thinking=THINK) as stream:
        kinds = [event.type for event in stream]
        message = stream.get_final_message()
    thinking, text, call = message.content
    assert (thinking.type, thinking.thinking, bool(thinking.signature)) == ("thinking", "Ilookitup", True)
    assert (text.type, text.text) == ("text", "Moment🙂")
    assert (call.type, call.name, call.input) == ("tool_use", "get_weather", {"city": "Zürich"})
    assert call.id.startswith("toolu_")
    assert message.stop_reason == "tool_use"
    assert {"thinking", "text", "input_json", "signature", "message_stop"} <= set(kinds)
    assert message.usage.output_tokens == 22
    assert message.usage.output_tokens_details.thinking_tokens == 6


def test_a_whole_turn_and_its_follow_up(client):
    first = client.messages.create(model="scripted", max_tokens=100, messages=ASK, tools=[TOOL], thinking=THINK, system="You help. " * 20)
    call = first.content[-1]
    result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "blue"}]}
    history = [*ASK, {"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    again = client.messages.create(
        model="scripted", max_tokens=100, messages=history, tools=[TOOL], thinking=THINK, system="You help. " * 20
    )
    assert again.content[-1].name == "get_weather"
    assert again.usage.cache_read_input_tokens >= 64
    total = again.usage.input_tokens + again.usage.cache_read_input_tokens
    counted = client.messages.count_tokens(model="scripted", messages=history, tools=[TOOL], thinking=THINK, system="You help. " * 20)
    assert counted.input_tokens == total


def test_without_asking_there_is_no_thinking_and_the_first_block_is_the_answer(client):
    message = client.messages.create(model="scripted", max_tokens=100, messages=ASK, stop_sequences=["<tool"])
    assert [block.type for block in message.content] == ["text"]
    assert (message.content[0].text, message.stop_reason, message.stop_sequence) == ("Moment🙂", "stop_sequence", "<tool")
    assert message._request_id


def test_the_text_stream_and_the_token_limit(client):
    with client.messages.stream(model="scripted", max_tokens=3, messages=ASK) as stream:
        assert "".join(stream.text_stream).startswith("Moment")
        assert stream.get_final_message().stop_reason == "max_tokens"


def test_models(client):
    models = client.models.list()
    assert [model.id for model in models] == ["scripted", "alias"]
    assert client.models.retrieve("alias").display_name == "alias"


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"model": "claude"}, anthropic.NotFoundError),
        ({"extra_body": {"temperature": 9}}, anthropic.BadRequestError),
        ({"tool_choice": {"type": "any"}}, anthropic.BadRequestError),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, anthropic.BadRequestError),
    ],
)
def test_errors_are_typed(client, fields, error):
    for stream in (False, True):
        with pytest.raises(error) as caught:
            client.messages.create(**{"model": "scripted", "max_tokens": 10, "messages": ASK, "stream": stream, **fields})
        assert caught.value.request_id and caught.value.body["type"] == "error"


def test_overflow_is_told_in_the_words_that_clients_parse(client):
    with pytest.raises(anthropic.BadRequestError, match=r"prompt is too long: \d+ tokens > 2048 maximum"):
        client.messages.create(model="scripted", max_tokens=10, messages=[{"role": "user", "content": "x " * 9999}])


async def test_many_streams_and_clients_that_leave(live):
    async with anthropic.AsyncAnthropic(base_url=live.root, api_key="unused", max_retries=0) as client:
        for _ in range(5):
            async with client.messages.stream(model="scripted", max_tokens=1000, messages=ASK, extra_body={"ignore_eos": True}) as stream:
                async for _event in stream:
                    break
    live.wait_until_idle()


def test_what_claude_code_sends_is_served(live):
    body = {
        "model": "scripted",
        "max_tokens": 32000,
        "stream": True,
        "thinking": {"type": "adaptive"},
        "output_config": {"effort": "high"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "metadata": {"user_id": '{"session_id": "s"}'},
        "system": [
            {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.197; cc_entrypoint=cli;"},
            {"type": "text", "text": "You are Claude Code.", "cache_control": {"type": "ephemeral"}},
        ],
        "tools": [TOOL],
        "messages": [
            *ASK,
            {"role": "system", "content": "Available agent types: none"},
            {"role": "user", "content": [{"type": "text", "text": "Go on", "cache_control": {"type": "ephemeral"}}]},
        ],
    }
    headers = {"anthropic-version": "2026-10-21", "anthropic-beta": "a,b", "x-claude-code-session-id": "s", "authorization": "Bearer x"}
    response = httpx.post(f"{live.url}/messages?beta=true", json=body, headers=headers, timeout=30)
    assert response.status_code == 200
    assert response.text.startswith("event: message_start\n") and response.text.endswith('data: {"type":"message_stop"}\n\n')
