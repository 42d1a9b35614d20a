"""The exact shape of what goes over the wire. Values that are fresh each time (ids, times) are replaced before comparing."""

import json
import re

import httpx
import pytest
from canned_engine import CannedEngine, MadeOutputs
from text_model import text_model

from openglm.config.server import ServerConfig
from openglm.engine.request import EngineOutput, TokenLogprobs
from openglm.errors import DeadlineExceededError, EngineDeadError, EngineError, QueueFullError
from openglm.server.app import build_app
from openglm.server.openai_response import Answer, ChatWire, Delivery
from openglm.server.service import Service
from openglm.server.turn import TurnStep
from openglm.text.turn_events import ContentDelta, ReasoningDelta

MODEL = text_model()
ENCODE = MODEL.tokenizer.encode_raw
TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
THINK, SAY = [ENCODE("\n<think>"), ENCODE("hm"), ENCODE("</think>")], [ENCODE("\nHe"), ENCODE("llo")]
CALL = [
    ENCODE(text) for text in ("<tool_call>get_", "weather\n<arg_key>city</arg_key>\n<arg_value>", "Zü", "rich</arg_value>\n</tool_call>")
]


def service_of(engine, **config):
    service = Service(ServerConfig(**config), MODEL, engine)
    service.engine_loaded(max_model_len=4000, max_num_seqs=4)
    return service


async def post(engine, *, config=None, **fields):
    app = build_app(service_of(engine, **(config or {})))
    body = {"model": "test-model", "messages": [{"role": "user", "content": "Hi"}], **fields}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        return await client.post("/v1/chat/completions", json=body)


def events_of(response):
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    blocks = response.text.split("\n\n")
    assert blocks.pop() == ""
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks)
    assert blocks.pop() == "data: [DONE]"
    return [json.loads(block[6:]) for block in blocks]


def chunk(delta, finish_reason=None, **more):
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return {"id": "ID", "object": "chat.completion.chunk", "created": 0, "model": "test-model", "choices": [choice], **more}


def normalised(value):
    """The same with ids and times replaced."""
    text = re.sub(r'"chatcmpl-[0-9a-f]{24}"', '"ID"', json.dumps(value))
    text = re.sub(r'"call_[0-9a-f]{24}"', '"CALL"', text)
    return json.loads(re.sub(r'"created": \d{10}', '"created": 0', text))


USAGE = {
    "prompt_tokens": 8,
    "completion_tokens": 13,
    "total_tokens": 21,
    "prompt_tokens_details": {"cached_tokens": 3},
    "cache_read_input_tokens": 3,
    "completion_tokens_details": {"reasoning_tokens": 4, "draft_tokens": 4, "accepted_draft_tokens": 2},
}


async def test_a_stream_with_thinking():
    events = normalised(events_of(await post(CannedEngine(THINK + SAY), stream=True)))
    assert events == [
        chunk({"role": "assistant", "content": ""}),
        chunk({"reasoning_content": "hm"}),
        chunk({"content": "He"}),
        chunk({"content": "llo"}),
        chunk({}, "stop"),
    ]


async def test_a_stream_with_usage_has_one_more_chunk_and_null_before():
    events = normalised(events_of(await post(CannedEngine(THINK + SAY), stream=True, stream_options={"include_usage": True})))
    *chunks, last = events
    assert all(event["usage"] is None for event in chunks)
    usage = last.pop("usage")
    assert last == {"id": "ID", "object": "chat.completion.chunk", "created": 0, "model": "test-model", "choices": []}
    assert usage.keys() == USAGE.keys()
    assert usage["completion_tokens_details"] == USAGE["completion_tokens_details"]
    assert usage["prompt_tokens"] + usage["completion_tokens"] == usage["total_tokens"]


async def test_a_stream_with_a_call_sends_the_name_once_and_the_arguments_in_pieces():
    events = normalised(events_of(await post(CannedEngine(THINK + CALL), stream=True, tools=[TOOL])))
    first, *pieces, last = [event["choices"][0] for event in events[2:]]
    call = {"index": 0, "id": "CALL", "type": "function", "function": {"name": "get_weather", "arguments": ""}}
    assert first["delta"] == {"tool_calls": [call]}
    fragments = []
    for piece in pieces:
        (delta,) = piece["delta"]["tool_calls"]
        assert delta.keys() == {"index", "function"} and delta["function"].keys() == {"arguments"}
        fragments.append(delta["function"]["arguments"])
    assert len(fragments) > 1
    assert json.loads("".join(fragments)) == {"city": "Zürich"}
    assert (last["delta"], last["finish_reason"]) == ({}, "tool_calls")


async def test_one_answer_with_thinking():
    response = await post(CannedEngine(THINK + SAY))
    answer = normalised(response.json())
    usage = answer.pop("usage")
    assert usage.keys() == USAGE.keys()
    message = {"role": "assistant", "content": "Hello", "reasoning_content": "hm"}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    assert answer == {"id": "ID", "object": "chat.completion", "created": 0, "model": "test-model", "choices": [choice]}


async def test_one_answer_with_a_call():
    answer = normalised((await post(CannedEngine(THINK + CALL), tools=[TOOL])).json())
    function = {"name": "get_weather", "arguments": '{"city": "Zürich"}'}
    assert answer["choices"][0]["finish_reason"] == "tool_calls"
    assert answer["choices"][0]["message"] == {
        "role": "assistant",
        "content": None,
        "reasoning_content": "hm",
        "tool_calls": [{"id": "CALL", "type": "function", "function": function}],
    }


async def test_stream_and_whole_answer_say_the_same():
    whole = (await post(CannedEngine(THINK + SAY + CALL), tools=[TOOL])).json()["choices"][0]
    text = {"content": "", "reasoning_content": "", "arguments": ""}
    for event in events_of(await post(CannedEngine(THINK + SAY + CALL), tools=[TOOL], stream=True)):
        delta = event["choices"][0]["delta"]
        for key in ("content", "reasoning_content"):
            text[key] += delta.get(key, "")
        text["arguments"] += "".join(call["function"]["arguments"] for call in delta.get("tool_calls", []))
    message = whole["message"]
    assert (text["content"], text["reasoning_content"]) == (message["content"], message["reasoning_content"])
    assert text["arguments"] == message["tool_calls"][0]["function"]["arguments"]


@pytest.mark.parametrize(("field", "keys"), [("reasoning", {"reasoning"}), ("both", {"reasoning", "reasoning_content"})])
async def test_the_reasoning_field_can_be_chosen(field, keys):
    config = {"reasoning_field": field}
    delta = events_of(await post(CannedEngine(THINK + SAY), stream=True, config=config))[1]["choices"][0]["delta"]
    assert delta == dict.fromkeys(keys, "hm")
    message = (await post(CannedEngine(THINK + SAY), config=config)).json()["choices"][0]["message"]
    assert {key: message[key] for key in message if key.startswith("reasoning")} == dict.fromkeys(keys, "hm")


async def test_choices_are_told_apart_by_index_and_end_together():
    engine = CannedEngine(THINK + SAY)
    wanted = {"n": 2, "seed": 5, "stream_options": {"include_usage": True}}
    events = normalised(events_of(await post(engine, stream=True, **wanted)))
    *chunks, last = events
    for index in (0, 1):
        own = [event["choices"][0] for event in chunks if event["choices"][0]["index"] == index]
        expected = [{"role": "assistant", "content": ""}, {"reasoning_content": "hm"}, {"content": "He"}, {"content": "llo"}, {}]
        assert [choice["delta"] for choice in own] == expected
        assert [choice["finish_reason"] for choice in own] == [None] * 4 + ["stop"]
    first, second = engine.requests
    assert (second.id, second.follows, second.params.seed) == (f"{first.id}.1", first.id, 6)
    whole = normalised((await post(CannedEngine(THINK + SAY), **wanted)).json())
    assert [(choice["index"], choice["message"]["content"]) for choice in whole["choices"]] == [(0, "Hello"), (1, "Hello")]
    assert whole["usage"] == last["usage"]
    single = (await post(CannedEngine(THINK + SAY))).json()["usage"]
    assert (last["usage"]["prompt_tokens"], last["usage"]["completion_tokens"]) == (
        single["prompt_tokens"],
        2 * single["completion_tokens"],
    )


@pytest.mark.parametrize("stream", [False, True])
async def test_a_failing_choice_ends_all(stream):
    class SecondFails(CannedEngine):
        def generate(self, request):
            if self.requests:
                raise QueueFullError("full")
            return super().generate(request)

    engine = SecondFails(THINK + SAY, ending=None)
    response = await post(engine, n=3, stream=stream)
    assert response.status_code == 503 or "queue_full" in response.text
    assert engine.aborted == [engine.requests[0].id]


async def test_the_last_message_can_be_continued():
    engine = CannedEngine(SAY)
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Well,"}]
    response = await post(engine, messages=messages, continue_final_message=True, add_generation_prompt=False)
    assert MODEL.tokenizer.decode(engine.requests[0].prompt_ids).endswith("Well,")
    assert response.json()["choices"][0]["message"]["content"] == "Hello"
    for wrong in ({"continue_final_message": True}, {"add_generation_prompt": False}):
        assert (await post(engine, **wrong)).json()["error"]["param"] == next(iter(wrong))


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "both"])
@pytest.mark.parametrize("include_usage", [False, True])
def test_a_step_of_one_piece_of_text_is_written_like_each_piece_of_a_larger_step(field, include_usage):
    pieces = [ReasoningDelta('h"m\u2028'), ContentDelta("Zü\n🙂")]
    wire = ChatWire(Answer("id", 1, "m", field), MODEL.tokenizer, Delivery(include_usage=include_usage), num_choices=2)
    for index in (0, 1):
        alone = [wire.step(TurnStep((piece,), token_ids=(65,)), index) for piece in pieces]
        assert b"".join(alone) == wire.step(TurnStep(tuple(pieces), token_ids=(65, 66)), index)
        assert json.loads(alone[1].removeprefix(b"data: "))["choices"][0] == {
            "index": index,
            "delta": {"content": "Zü\n🙂"},
            "logprobs": None,
            "finish_reason": None,
        }


async def test_counts_come_with_every_chunk_when_asked_for():
    options = {"include_usage": True, "continuous_usage_stats": True}
    *chunks, last = events_of(await post(CannedEngine(THINK + SAY), stream=True, stream_options=options))
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks[:-1]] == [0, 4, 8, 11]
    assert last["usage"]["completion_tokens"] == 11


async def test_a_stop_string_can_be_kept():
    fields = {"stop": ["ll"], "include_stop_str_in_output": True, "chat_template_kwargs": {"enable_thinking": False}}
    assert (await post(CannedEngine(SAY), **fields)).json()["choices"][0]["message"]["content"] == "Hell"


class WithLogprobs(CannedEngine):
    """Reports a log probability for every token."""

    def generate(self, request):
        inner = super().generate(request)

        async def outputs():
            async for output in inner:
                entries = [TokenLogprobs(token, -0.5, ((token, -0.5), (65, float("-inf")))) for token in output.token_ids]
                yield EngineOutput(output.request_id, output.token_ids, entries, output.finish_reason)

        return MadeOutputs(outputs())


async def test_log_probabilities_cover_every_token_in_streams_and_whole_answers():
    engine = WithLogprobs([[token] for token in ENCODE("Zürich")])  # the ü arrives in two steps
    wanted = {"chat_template_kwargs": {"enable_thinking": False}, "logprobs": True, "top_logprobs": 2}
    whole = (await post(engine, **wanted)).json()["choices"][0]["logprobs"]["content"]
    streamed = []
    for event in events_of(await post(engine, stream=True, **wanted)):
        streamed += (event["choices"][0]["logprobs"] or {"content": []})["content"]
    assert whole == streamed
    assert b"".join(bytes(entry["bytes"]) for entry in whole).decode() == "Zürich"
    likeliest, impossible = whole[0].pop("top_logprobs")
    assert whole[0] == likeliest == {"token": "Z", "bytes": [90], "logprob": -0.5}
    assert impossible["logprob"] == -9999.0  # JSON has no minus infinity


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "status", "code", "retry"),
    [
        (QueueFullError("full", retry_after_s=2.4), 503, "queue_full", "2"),
        (EngineDeadError("gone"), 503, "engine_unavailable", "5"),
        (DeadlineExceededError("late"), 504, "deadline_exceeded", None),
        (EngineError("broke"), 500, "engine_error", None),
    ],
)
async def test_a_failure_before_the_first_token_is_a_status(error, status, code, retry, stream):
    response = await post(CannedEngine([], error=error), stream=stream)
    assert response.status_code == status
    assert response.json()["error"]["code"] == code
    assert response.headers.get("retry-after") == retry


async def test_a_failure_in_the_middle_is_an_error_event_and_a_proper_end():
    engine = CannedEngine([ENCODE("He"), []], ending="error", failure=("internal", "broke"))
    *chunks, last = events_of(await post(engine, stream=True, chat_template_kwargs={"enable_thinking": False}))
    assert chunks[-1]["choices"][0]["delta"] == {"content": "He"}
    assert last == {
        "error": {
            "message": "the engine could not finish this request: broke",
            "type": "server_error",
            "param": None,
            "code": "engine_error",
        }
    }


async def test_a_bug_shows_the_client_an_incident_number_and_nothing_else(server_errors):
    response = await post(CannedEngine([], error=ZeroDivisionError("/secret/path 0x7f0000000000")))
    assert response.status_code == 500
    message = response.json()["error"]["message"]
    assert "secret" not in response.text and "0x" not in response.text
    incident = message.split()[-1]
    assert [incident in record.getMessage() for record in server_errors] == [True]
