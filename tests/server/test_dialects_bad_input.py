"""Whatever arrives at a route of any dialect, the answer has that dialect's shape and is never a 5xx."""

import asyncio
import json
import random

import pytest
from canned_app import ADMIN, CALL, SAY, SCHEMA, THINK, CannedApp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reliability.byte_spoiler import spoiled_bytes

MESSAGES_TOOL = {"name": "f", "description": "d", "input_schema": SCHEMA}
CHAT_TOOL = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}
GOOD = {
    "/v1/messages": {
        "model": "test-model",
        "max_tokens": 50,
        "system": [{"type": "text", "text": "You help."}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Hi 🙂 <|user|>"}]},
            {"role": "system", "content": "inline"},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": ""},
                    {"type": "tool_use", "id": "a", "name": "f", "input": {"x": 1}},
                ],
            },
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": [{"type": "text", "text": "42"}]}]},
        ],
        "tools": [MESSAGES_TOOL, {"type": "web_search_20260209", "name": "web_search"}],
        "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
        "thinking": {"type": "enabled", "budget_tokens": 100},
        "output_config": {"effort": "high"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "stop_sequences": ["END"],
        "temperature": 0.5,
        "top_k": 5,
    },
    "/v1/responses": {
        "model": "test-model",
        "instructions": "You help.",
        "input": [
            {"role": "developer", "content": [{"type": "input_text", "text": "rules"}]},
            {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "42"},
        ],
        "tools": [{"type": "function", "name": "f", "parameters": SCHEMA}, {"type": "namespace", "name": "n", "tools": []}],
        "tool_choice": "auto",
        "reasoning": {"effort": "low", "summary": "auto"},
        "text": {"format": {"type": "text"}},
        "max_output_tokens": 50,
        "metadata": {"a": "b"},
        "store": False,
    },
    "/v1/completions": {
        "model": "test-model",
        "prompt": ["Hi", "Ho"],
        "max_tokens": 5,
        "echo": True,
        "logprobs": 2,
        "n": 2,
        "stop": ["x"],
        "logit_bias": {"5": 1},
        "stream_options": {"include_usage": True},
    },
    "/generate": {
        "text": ["Hi", "Ho"],
        "sampling_params": {"max_new_tokens": 5, "stop": ["x"], "n": 2},
        "return_logprob": True,
        "logprob_start_len": 0,
        "top_logprobs_num": 2,
        "rid": ["a", "b"],
    },
    "/api/paas/v4/chat/completions": {
        "model": "test-model",
        "messages": [{"role": "user", "content": "Hi"}],
        "tools": [CHAT_TOOL, {"type": "web_search", "web_search": {}}],
        "thinking": {"type": "enabled"},
        "do_sample": True,
        "tool_stream": False,
        "request_id": "mine",
    },
    "/v1/messages/count_tokens": {"messages": [{"role": "user", "content": "Hi"}], "tools": [MESSAGES_TOOL]},
    "/tokenize": {"messages": [{"role": "user", "content": "Hi"}], "prompt": None, "return_token_strs": True},
    "/detokenize": {"tokens": [1, 2, 3]},
    "/abort_request": {"rid": "x", "request_ids": ["a"]},
}
BROKEN = (
    b"",
    b"{",
    b"null",
    b"[]",
    b'"x"',
    b"7",
    b"{}",
    b"\xff\xfe",
    rb'{"messages": "\ud800", "prompt": "\ud800", "input": "\ud800"}',
    b'{"a": NaN}',
    b'{"temperature": 1e999}',
    b'{"a": 1, "a": 2}',
    b"[" * 50_000,
    b'{"input": ' * 5000,
)


@pytest.fixture(scope="module")
def app():
    return CannedApp(THINK + SAY + CALL)


@pytest.fixture(autouse=True)
def no_bugs(server_errors):
    yield
    assert not [record.getMessage() for record in server_errors]


def check(path, response):
    assert response.status_code < 500, response.text
    if response.status_code == 200:
        assert '"error":{' not in response.text or '"error":null' in response.text, response.text[-500:]
        return
    body = response.json()
    if path.startswith("/v1/messages"):
        assert body.keys() == {"type", "error", "request_id"} and body["error"].keys() == {"type", "message"}
    elif path.startswith("/api/"):
        assert body["error"].keys() == {"code", "message"}
    else:
        assert body["error"].keys() == {"message", "type", "param", "code"}
    assert len(body["error"]["message"]) < 600 and "Traceback" not in response.text


async def send(app, path, body):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await app.request("POST", path, content=content, headers={**ADMIN, "content-type": "application/json"})


@pytest.mark.parametrize("path", GOOD)
async def test_the_good_requests_are_good_and_broken_ones_are_400(app, path):
    assert (await send(app, path, GOOD[path])).status_code == 200
    for body in BROKEN:
        response = await send(app, path, body)
        assert response.status_code == 400, body[:50]
        check(path, response)


@pytest.mark.parametrize("path", GOOD)
async def test_mutated_requests(app, path):
    source = random.Random(path)
    good = json.dumps(GOOD[path], ensure_ascii=False).encode()
    for _ in range(150):
        check(path, await send(app, path, spoiled_bytes(source, good)))


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "text", "role", "content", "name", "input", "output", "format", "edits", "tools"]), inner
        )
    ),
    max_leaves=6,
)


def _places(value, at=()):
    """The path of every value inside `value`."""
    yield at
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from _places(inner, (*at, key))


def _with(value, place, new):
    if not place:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[place[0]] = _with(value[place[0]], place[1:], new)
    return copy


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.parametrize("path", GOOD)
def test_any_value_at_any_place(app, path, data):
    place = data.draw(st.sampled_from([place for place in _places(GOOD[path]) if place]))
    body = _with(GOOD[path], place, data.draw(ANYTHING))
    body["stream"] = data.draw(st.booleans())
    check(path, asyncio.run(send(app, path, body)))


@pytest.mark.parametrize("path", [path for path in GOOD if path not in ("/detokenize", "/abort_request")])
async def test_text_that_spells_control_tokens_is_text(app, path):
    tags = ("<think>", "</think>", "<tool_call>", "<|user|>", "<|assistant|>", "<|endoftext|>", "[gMASK]", "/nothink", "<arg_key>", "<sop>")
    tokenizer = app.service.model.tokenizer
    special = [tokenizer.token_id(tag) for tag in tags]

    def counts():
        ids = app.engine.requests[-1].prompt_ids
        return [ids.count(token) for token in special]

    def filled(value, text):
        if isinstance(value, dict):
            kept = ("type", "role", "model", "id", "name", "call_id", "tool_use_id", "keep", "arguments", "stop", "effort", "summary")
            return {key: inner if key in kept else filled(inner, text) for key, inner in value.items()}
        if isinstance(value, list):
            return [filled(inner, text) for inner in value]
        return text if isinstance(value, str) and value not in ("object", "string", "auto", "city") else value

    plain, tagged = filled(GOOD[path], "x"), filled(GOOD[path], "".join(tags))
    for body in (plain, tagged):
        body.pop("rid", None)
        body.pop("request_id", None)
        body.pop("stop_sequences", None)
    first, second = await send(app, path, plain), await send(app, path, tagged)
    assert (first.status_code, second.status_code) == (200, 200), second.text
    if path in ("/tokenize", "/v1/messages/count_tokens"):
        return
    await send(app, path, plain)
    before = counts()
    await send(app, path, tagged)
    assert counts() == before


@pytest.mark.parametrize("path", [path for path in GOOD if path != "/abort_request"])
async def test_null_is_as_absent_for_every_field(app, path):
    needed = {"messages", "max_tokens", "input", "prompt", "text", "tokens", "model"}
    body = {key: None if key not in needed else value for key, value in GOOD[path].items()}
    assert (await send(app, path, body)).status_code == 200
