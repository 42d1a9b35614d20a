"""The real `zai-sdk` package against the real server. The scripted checkpoint thinks, says "Moment🙂" and calls get_weather."""

import json

import pytest
import zai
from zai.core import APIRequestFailedError, APIStatusError

TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
ASK = [{"role": "user", "content": "Weather in Zürich?"}]


@pytest.fixture(scope="module")
def client(live):
    with zai.ZaiClient(base_url=f"{live.root}/api/paas/v4/", api_key="unused", max_retries=0) as client:
        yield client


def test_a_whole_turn(client):
    answer = client.chat.completions.create(model="scripted", messages=ASK, tools=[TOOL], request_id="mine-123456")
    message = answer.choices[0].message
    assert (message.reasoning_content, message.content, answer.choices[0].finish_reason) == ("Ilookitup", "Moment🙂", "tool_calls")
    assert json.loads(message.tool_calls[0].function.arguments) == {"city": "Zürich"}
    assert answer.request_id == "mine-123456" and answer.usage.completion_tokens_details.reasoning_tokens == 6


@pytest.mark.parametrize("tool_stream", [True, False])
def test_streams(client, tool_stream):
    reasoning = content = ""
    calls, usage, finish = [], None, None
    for chunk in client.chat.completions.create(model="scripted", messages=ASK, tools=[TOOL], stream=True, tool_stream=tool_stream):
        choice = chunk.choices[0]
        reasoning += choice.delta.reasoning_content or ""
        content += choice.delta.content or ""
        calls += choice.delta.tool_calls or []
        usage, finish = chunk.usage or usage, choice.finish_reason or finish
    assert (reasoning, content, finish) == ("Ilookitup", "Moment🙂", "tool_calls")
    assert json.loads("".join(call.function.arguments for call in calls)) == {"city": "Zürich"}
    assert (len(calls) > 1) is tool_stream and usage.completion_tokens == 22


def test_thinking_off_and_greedy(client):
    answer = client.chat.completions.create(
        model="scripted", messages=ASK, thinking={"type": "disabled"}, do_sample=False, temperature=0.7, stop=["<tool_call>"]
    )
    assert (answer.choices[0].message.content, answer.choices[0].message.reasoning_content) == ("Moment🙂", None)


def test_errors_are_typed(client):
    with pytest.raises((APIRequestFailedError, APIStatusError)) as caught:
        client.chat.completions.create(model="scripted", messages=[{"role": "wizard", "content": ""}])
    assert caught.value.response.json()["error"]["code"] == "1214"
    with pytest.raises(APIStatusError) as caught:
        client.chat.completions.create(model="glm-9", messages=ASK)
    assert caught.value.response.json()["error"]["code"] == "1211"
