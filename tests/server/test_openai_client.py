"""The real `openai` package against the real server. The scripted checkpoint thinks, says "Moment🙂" and calls get_weather."""

import asyncio
import json
from contextlib import aclosing

import openai
import pytest

from openglm.engine.request import GenerationRequest, SamplingParams

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
ASK = [{"role": "user", "content": "Weather in Zürich?"}]


@pytest.fixture(scope="module")
def client(live):
    with openai.OpenAI(base_url=live.url, api_key="unused", max_retries=0) as client:
        yield client


def test_models(client):
    assert [model.id for model in client.models.list()] == ["scripted", "alias"]
    assert client.models.retrieve("alias").id == "alias"


def test_a_streamed_turn_with_thinking_and_a_call(client):
    reasoning, content, calls, finish, usage = "", "", {}, None, None
    stream = client.chat.completions.create(
        model="scripted", messages=ASK, tools=[TOOL], stream=True, stream_options={"include_usage": True}
    )
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            finish = choice.finish_reason or finish
            reasoning += getattr(choice.delta, "reasoning_content", None) or ""
            content += choice.delta.content or ""
            for call in choice.delta.tool_calls or []:
                known = calls.setdefault(call.index, {"id": call.id, "name": call.function.name, "arguments": ""})
                known["arguments"] += call.function.arguments or ""
    assert (reasoning, content, finish) == ("Ilookitup", "Moment🙂", "tool_calls")
    (call,) = calls.values()
    assert (call["name"], json.loads(call["arguments"])) == ("get_weather", {"city": "Zürich"})
    assert call["id"].startswith("call_")
    assert usage.completion_tokens_details.reasoning_tokens == 6
    assert usage.completion_tokens == 22
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_a_whole_turn_and_its_follow_up(client):
    first = client.chat.completions.create(model="scripted", messages=ASK, tools=[TOOL])
    message = first.choices[0].message
    assert (message.content, message.reasoning_content, first.choices[0].finish_reason) == ("Moment🙂", "Ilookitup", "tool_calls")
    (call,) = message.tool_calls
    result = {"role": "tool", "tool_call_id": call.id, "content": '{"sky": "blue"}'}
    history = [*ASK, message.model_dump(exclude_none=True), result]
    second = client.chat.completions.create(model="scripted", messages=history, tools=[TOOL])
    assert second.usage.prompt_tokens > first.usage.prompt_tokens
    assert second.choices[0].message.tool_calls


def test_the_stream_helper_accumulates_the_same_turn(client):
    with client.chat.completions.stream(model="scripted", messages=ASK, tools=[TOOL]) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    (call,) = final.choices[0].message.tool_calls
    assert (call.function.name, call.function.arguments) == ("get_weather", '{"city": "Zürich"}')


@pytest.mark.parametrize("off", [{"chat_template_kwargs": {"enable_thinking": False}}, {"thinking": {"type": "disabled"}}])
def test_thinking_off(client, off):
    answer = client.chat.completions.create(model="scripted", messages=ASK, tools=[TOOL], extra_body=off)
    message = answer.choices[0].message
    assert (message.content, message.reasoning_content) == ("Moment🙂", None)
    assert answer.usage.completion_tokens_details.reasoning_tokens == 0


def test_without_tools_what_looks_like_a_call_is_text_and_a_stop_string_cuts_it(client):
    answer = client.chat.completions.create(model="scripted", messages=ASK, stop="<tool_call>")
    assert answer.choices[0].message.content == "Moment🙂"
    assert answer.choices[0].finish_reason == "stop"
    assert not answer.choices[0].message.tool_calls


def test_the_token_limit_cuts_the_turn(client):
    answer = client.chat.completions.create(model="scripted", messages=ASK, max_completion_tokens=3)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 3


def test_log_probabilities_spell_the_text(client):
    answer = client.chat.completions.create(
        model="scripted",
        messages=ASK,
        logprobs=True,
        top_logprobs=2,
        max_tokens=5,
        extra_body={"chat_template_kwargs": {"enable_thinking": False}},
    )
    entries = answer.choices[0].logprobs.content
    assert bytes(byte for entry in entries for byte in entry.bytes).decode() == "Moment🙂" == answer.choices[0].message.content
    assert all(len(entry.top_logprobs) == 2 and entry.logprob > -1e-3 for entry in entries)


def test_the_same_prompt_again_is_cached(client):
    messages = [{"role": "user", "content": "A long question. " * 20}]
    client.chat.completions.create(model="scripted", messages=messages, max_tokens=1)
    again = client.chat.completions.create(model="scripted", messages=messages, max_tokens=1)
    assert again.usage.prompt_tokens_details.cached_tokens >= 64


@pytest.mark.parametrize(
    ("fields", "error", "code", "param"),
    [
        ({"model": "gpt-9"}, openai.NotFoundError, "model_not_found", "model"),
        ({"temperature": 9}, openai.BadRequestError, "invalid_request", "temperature"),
        ({"n": 9}, openai.BadRequestError, "invalid_request", "n"),
        ({"logit_bias": {"999999": 1}}, openai.BadRequestError, "invalid_request", "logit_bias"),
        ({"extra_body": {"min_tokens": 5000}}, openai.BadRequestError, "invalid_request", "min_tokens"),
        ({"tool_choice": "required"}, openai.BadRequestError, "invalid_request", "tool_choice"),
        ({"extra_body": {"guided_regex": "(a"}}, openai.BadRequestError, "invalid_request", "guided_regex"),
        ({"messages": [{"role": "user", "content": "x " * 9999}]}, openai.BadRequestError, "context_length_exceeded", "messages"),
    ],
)
def test_errors_are_typed(client, fields, error, code, param):
    with pytest.raises(error) as caught:
        client.chat.completions.create(**{"model": "scripted", "messages": ASK, **fields})
    assert (caught.value.code, caught.value.param) == (code, param)
    assert caught.value.request_id


def test_a_thinking_budget_cuts_the_reasoning_and_the_answer_follows(client):
    for budget, reasoning in [(0, ""), (2, "Ilook"), (100, "Ilookitup")]:
        answer = client.chat.completions.create(model="scripted", messages=ASK, tools=[TOOL], extra_body={"thinking_budget": budget})
        message = answer.choices[0].message
        assert ((message.reasoning_content or "").strip(), message.content) == (reasoning, "Moment🙂")
        assert message.tool_calls
        assert answer.usage.completion_tokens_details.reasoning_tokens == min(budget + 3, 6)


def test_thinking_can_be_stopped_from_outside_while_a_request_runs(live):
    tokenizer = live.service.model.tokenizer
    closed = [tokenizer.think, *tokenizer.encode_text("\n"), tokenizer.end_think]

    async def stopped() -> bool:
        await live.client.stop_thinking("unknown")
        outputs = live.client.generate(GenerationRequest("endless", [tokenizer.assistant], SamplingParams(ignore_eos=True, temperature=0)))
        ids = []
        async with aclosing(outputs):
            async for output in outputs:  # the script begins again and again
                if not ids:
                    await live.client.stop_thinking("endless")
                ids += output.token_ids
                if any(ids[i : i + 3] == closed for i in range(len(ids))):
                    return True
        return False

    assert asyncio.run_coroutine_threadsafe(stopped(), live.loop).result(60)


def test_bias_and_bad_words_steer_the_answer(client, live):
    (look,) = live.service.model.tokenizer.encode_text("look")
    answer = client.chat.completions.create(model="scripted", messages=ASK, logit_bias={str(look): -100}, max_tokens=5, temperature=0)
    assert "look" not in (answer.choices[0].message.reasoning_content or "")
    words = {"bad_words": ["look"]}
    answer = client.chat.completions.create(model="scripted", messages=ASK, extra_body=words, max_tokens=5, temperature=0)
    assert "look" not in (answer.choices[0].message.reasoning_content or "")


def test_several_choices_share_the_prompt(client):
    ask = [{"role": "user", "content": "Another long question, asked once. " * 20}]
    whole = client.chat.completions.create(model="scripted", messages=ask, n=3, tools=[TOOL])
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    assert [choice.message.content for choice in whole.choices] == ["Moment🙂"] * 3
    assert whole.usage.completion_tokens == 66
    text, ends, usages = ["", "", ""], [], []
    options = {"include_usage": True}
    for chunk in client.chat.completions.create(model="scripted", messages=ask, n=3, stream=True, tools=[TOOL], stream_options=options):
        usages += [chunk.usage] if chunk.usage else []
        for choice in chunk.choices:
            text[choice.index] += choice.delta.content or ""
            ends += [choice.finish_reason] if choice.finish_reason else []
    assert (text, ends) == (["Moment🙂"] * 3, ["tool_calls"] * 3)
    assert [(u.prompt_tokens, u.completion_tokens) for u in usages] == [(whole.usage.prompt_tokens, 66)]


async def test_many_streams_at_once_end_properly(live):
    async with openai.AsyncOpenAI(base_url=live.url, api_key="unused", max_retries=0) as client:

        async def one(number):
            stream = await client.chat.completions.create(
                model="alias", messages=[{"role": "user", "content": f"Question {number}"}], tools=[TOOL], stream=True
            )
            return [chunk.choices[0].finish_reason async for chunk in stream][-1]

        assert await asyncio.gather(*(one(i) for i in range(24))) == ["tool_calls"] * 24
    live.wait_until_idle()
