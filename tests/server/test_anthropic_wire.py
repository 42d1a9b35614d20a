"""Anthropic's dialect: what requests become, and the exact answers."""

import json

import pytest
from canned_app import CALL, ENCODE, MODEL, SAY, SCHEMA, THINK, CannedApp, events_of
from canned_engine import CannedEngine, MadeOutputs
from golden import check_golden
from text_model import text_model

from openglm.config.server import RequestLimits, SamplingDefaults
from openglm.engine.request import EngineOutput
from openglm.errors import EngineDeadError, QueueFullError, RequestError
from openglm.server.anthropic_request import read_messages_request
from openglm.text.messages import Message, ToolCall

PATH = "/v1/messages"
TOOL = {"name": "get_weather", "description": "Weather", "input_schema": SCHEMA}
ASK = {"model": "test-model", "max_tokens": 100, "messages": [{"role": "user", "content": "Hi"}]}


def read(**fields):
    return read_messages_request(json.dumps({**ASK, **fields}).encode(), limits=RequestLimits(), defaults=SamplingDefaults())


def turns(messages, **fields):
    return read(messages=messages, **fields).turn.prompt.messages


@pytest.mark.parametrize("stream", [True, False])
async def test_a_turn_with_thinking_text_and_a_call(stream):
    app = CannedApp(THINK + SAY + CALL)
    response = await app.post(PATH, {**ASK, "tools": [TOOL], "thinking": {"type": "adaptive"}, "stream": stream})
    check_golden(f"messages_{'stream' if stream else 'whole'}.txt", response)


async def test_blocks_come_one_after_another_and_add_up():
    app = CannedApp(THINK + SAY + CALL + CALL)
    events = events_of(await app.post(PATH, {**ASK, "tools": [TOOL], "thinking": {"type": "enabled"}, "stream": True}))
    assert all(name == data["type"] for name, data in events)
    is_open, count, arguments = None, 0, {}
    for name, data in events:
        if name == "content_block_start":
            assert is_open is None and data["index"] == count
            is_open, count = data["index"], count + 1
        elif name == "content_block_delta":
            assert data["index"] == is_open
            if data["delta"]["type"] == "input_json_delta":
                arguments[is_open] = arguments.get(is_open, "") + data["delta"]["partial_json"]
        elif name == "content_block_stop":
            assert data["index"] == is_open
            is_open = None
    assert count == 4 and [json.loads(text) for text in arguments.values()] == [{"city": "Zürich"}] * 2


async def test_thinking_is_off_unless_asked_for_and_the_effort_bounds_it():
    for fields, think, budget in (
        ({}, False, None),
        ({"thinking": {"type": "disabled"}}, False, None),
        ({"thinking": {"type": "enabled", "budget_tokens": 77}}, True, 77),
        ({"thinking": {"type": "adaptive"}}, True, None),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}}, True, 2048),
        ({"output_config": {"effort": "high"}}, True, None),
        ({"output_config": {"effort": "none"}}, False, None),
    ):
        turn = read(**fields).turn
        assert (turn.prompt.thinking, turn.params.thinking_budget) == (think, budget), fields


def test_history_becomes_turns_in_order():
    history = [
        {"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}, {"type": "text", "text": "b"}]},
        {"role": "system", "content": [{"type": "text", "text": "inline"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "anything"},
                {"type": "redacted_thinking", "data": "xyz"},
                {"type": "text", "text": "said"},
                {"type": "tool_use", "id": "t1", "name": "f", "input": {"x": 1}},
                {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}},
                {"type": "web_search_tool_result", "tool_use_id": "s", "content": []},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "42"}, {"type": "image", "source": {}}]},
                {"type": "tool_result", "tool_use_id": "t2", "content": "broke", "is_error": True},
                {"type": "tool_result", "tool_use_id": "t3"},
                {"type": "text", "text": "and now?"},
            ],
        },
        {"role": "assistant", "content": "bye"},
    ]
    assert turns(history, system=[{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]) == (
        Message("system", "one\n\ntwo"),
        Message("user", "a\nb"),
        Message("system", "inline"),
        Message("assistant", "said", "hm", (ToolCall("f", {"x": 1}, id="t1"),)),
        Message("tool", "42\n[image left out: this model reads text only]", tool_call_id="t1"),
        Message("tool", "Error: broke", tool_call_id="t2"),
        Message("tool", "", tool_call_id="t3"),
        Message("user", "and now?"),
        Message("assistant", "bye"),
    )


def test_the_billing_header_and_cache_marks_do_not_change_the_prompt():
    user = [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
    marked = [{"role": "user", "content": [{"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}}]}]
    system = {"type": "text", "text": "You are Claude Code."}
    billing = {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.197; cch=abcde;"}
    prompts = [
        MODEL.prompt(read(messages=messages, system=blocks).turn.prompt)[0]
        for messages, blocks in (
            (user, [system]),
            (marked, [billing, system | {"cache_control": {"type": "ephemeral"}}]),
            (user, billing["text"] + "\n" + system["text"]),
        )
    ]
    assert prompts[0] == prompts[1] == prompts[2]


async def test_an_assistant_message_at_the_end_is_continued_unless_there_is_thinking():
    messages = [*ASK["messages"], {"role": "assistant", "content": '{"answer": '}]
    app = CannedApp([ENCODE("42}")])
    whole = (await app.post(PATH, {**ASK, "messages": messages})).json()
    assert app.prompt.endswith('{"answer":') and whole["content"] == [{"type": "text", "text": "42}"}]
    await app.post(PATH, {**ASK, "messages": messages, "thinking": {"type": "adaptive"}})
    assert app.prompt.endswith("<|assistant|>")
    calls = [*ASK["messages"], {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "f", "input": {}}]}]
    await app.post(PATH, {**ASK, "messages": calls})
    assert app.prompt.endswith("<think></think>")


def test_tools_are_shown_in_the_form_that_the_model_knows_and_server_tools_are_left_out():
    request = read(tools=[TOOL, {"type": "web_search_20260209", "name": "web_search"}, {**TOOL, "name": "g", "type": "custom"}])
    first, second = request.turn.prompt.tools
    assert first.definition == {
        "type": "function",
        "function": {"name": "get_weather", "description": "Weather", "parameters": SCHEMA},
    }
    assert (second.name, request.dropped_tools) == ("g", ("web_search_20260209",))
    assert read(tools=[TOOL], tool_choice={"type": "none"}).turn.prompt.tools == ()


async def test_left_out_tools_are_told_in_a_header():
    app = CannedApp(SAY)
    response = await app.post(PATH, {**ASK, "tools": [{"type": "web_search_20260209", "name": "web_search"}]})
    assert "1 of the tools" in response.headers["x-openglm-warning"]


def test_choices_and_formats_constrain_the_answer():
    assert read(tools=[TOOL], tool_choice={"type": "auto"}).turn.params.constraint is None
    for choice in ({"type": "any"}, {"type": "tool", "name": "get_weather"}):
        turn = read(tools=[TOOL], tool_choice={**choice, "disable_parallel_tool_use": True}).turn
        assert turn.params.constraint is not None and not turn.parallel_tool_calls
    config = {"format": {"type": "json_schema", "schema": SCHEMA}, "effort": "high"}
    assert read(output_config=config).turn.params.constraint.param == "output_config.format"


def test_management_that_keeps_all_thinking_keeps_it():
    def keeps(edit):
        return read(context_management={"edits": [edit]}).turn.prompt.keep_thinking

    assert keeps({"type": "clear_thinking_20251015", "keep": "all"})
    assert not keeps({"type": "clear_thinking_20251015", "keep": {"type": "thinking_turns", "value": 1}})


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": [7]}, "messages[0]"),
        ({"messages": [{"role": "tool", "content": ""}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [7]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": [{"type": {}}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result", "content": 7}]}]}, "messages[0].content[0].content"),
        ({"messages": [{"role": "assistant", "content": [{"type": "tool_use", "name": "a b"}]}]}, "messages[0].content[0].name"),
        (
            {"messages": [{"role": "assistant", "content": [{"type": "tool_use", "name": "f", "input": []}]}]},
            "messages[0].content[0].input",
        ),
        ({"messages": [{"role": "assistant", "content": [{"type": "thinking", "thinking": 7}]}]}, "messages[0].content[0].thinking"),
        ({"system": 7}, "system"),
        ({"system": [{"type": "image"}]}, "system[0].type"),
        ({"tools": {}}, "tools"),
        ({"tools": [7]}, "tools[0]"),
        ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
        ({"tools": [TOOL, TOOL]}, "tools[1].name"),
        ({"tools": [{**TOOL, "name": "<b>"}]}, "tools[0].name"),
        ({"tools": [TOOL], "tool_choice": {"type": "magic"}}, "tool_choice.type"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "other"}}, "tool_choice"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"thinking": {"type": "magic"}}, "thinking.type"),
        ({"thinking": {"type": "enabled", "budget_tokens": -1}}, "thinking.budget_tokens"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format"),
        ({"output_config": {"format": {"type": "json_schema", "schema": 7}}}, "output_config.format.schema"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"stop_sequences": "x"}, "stop_sequences"),
        ({"temperature": 3}, "temperature"),
    ],
)
def test_what_is_wrong_is_named(fields, param):
    with pytest.raises(RequestError) as caught:
        read(**fields)
    assert caught.value.param == param


async def test_what_has_no_meaning_here_is_ignored_and_counted():
    app = CannedApp(SAY)
    extra = {"metadata": {"user_id": "u"}, "service_tier": "auto", "speed": "fast", "temperature": None, "top_k": None, "system": None}
    response = await app.request("POST", PATH + "?beta=true", json={**ASK, **extra}, headers={"anthropic-version": "2099-01-01"})
    assert response.status_code == 200
    assert app.service.ignored_fields.by_name == {"metadata": 1, "service_tier": 1, "speed": 1}


class Ends(CannedEngine):
    """Ends with this reason and stop."""

    def __init__(self, steps, reason, stop):
        super().__init__(steps)
        self.reason, self.stop = reason, stop

    def generate(self, request):
        inner = super().generate(request)

        async def outputs():
            async for output in inner:
                last = output.finish_reason is not None
                yield EngineOutput(output.request_id, output.token_ids, None, self.reason if last else None, self.stop if last else None)

        return MadeOutputs(outputs())


@pytest.mark.parametrize(
    ("engine", "fields", "reason", "sequence"),
    [
        (Ends(SAY, "stop", 263), {}, "end_turn", None),
        (Ends(SAY, "length", None), {}, "max_tokens", None),
        (Ends(SAY, "length", None), {"max_tokens": 100_000}, "model_context_window_exceeded", None),
        (Ends(SAY, "stop", 263), {"stop_sequences": ["zz", "ll"]}, "stop_sequence", "ll"),
        (Ends(CALL, "stop", 265), {"tools": [TOOL]}, "tool_use", None),
        (Ends(SAY, "abort", None), {}, "end_turn", None),
    ],
)
async def test_stop_reasons(engine, fields, reason, sequence):
    whole = (await CannedApp(engine=engine).post(PATH, {**ASK, **fields})).json()
    assert (whole["stop_reason"], whole["stop_sequence"]) == (reason, sequence)
    events = events_of(await CannedApp(engine=engine).post(PATH, {**ASK, **fields, "stream": True}))
    assert events[-2][1]["delta"] == {"stop_reason": reason, "stop_sequence": sequence}


async def test_a_call_that_was_cut_is_closed_json_in_a_stream_and_left_out_of_a_whole_answer():
    engine = Ends(CALL[:3], "length", None)
    events = events_of(await CannedApp(engine=engine).post(PATH, {**ASK, "tools": [TOOL], "stream": True}))
    pieces = [data["delta"]["partial_json"] for name, data in events if name == "content_block_delta"]
    json.loads("".join(pieces))
    assert events[-2][1]["delta"]["stop_reason"] == "max_tokens"
    assert (await CannedApp(engine=engine).post(PATH, {**ASK, "tools": [TOOL]})).json()["content"] == []


async def test_a_prompt_that_is_too_long_is_told_in_the_words_that_clients_parse():
    app = CannedApp(SAY, model=text_model(max_model_len=50))
    response = await app.post(PATH, {**ASK, "messages": [{"role": "user", "content": "x" * 60}]})
    assert response.status_code == 400
    count = (await app.post(PATH + "/count_tokens", {"messages": [{"role": "user", "content": "x" * 60}]})).json()["input_tokens"]
    assert response.json()["error"] == {
        "type": "invalid_request_error",
        "message": f"prompt is too long: {count} tokens > 50 maximum",
    }


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [(QueueFullError("full"), 503, "overloaded_error"), (EngineDeadError("gone"), 503, "overloaded_error")],
)
async def test_refusals_have_anthropics_shape(error, status, kind, stream):
    response = await CannedApp(engine=CannedEngine([], error=error)).post(PATH, {**ASK, "stream": stream})
    assert response.status_code == status
    body = response.json()
    assert (body["type"], body["error"]["type"]) == ("error", kind)
    assert body["request_id"] == response.headers["request-id"] == response.headers["x-request-id"]
    assert "retry-after" in response.headers


async def test_refusals_before_the_route_have_it_too():
    app = CannedApp(SAY, api_keys=("secret",))
    for path in (PATH, PATH + "/count_tokens"):
        response = await app.post(path, ASK)
        assert (response.status_code, response.json()["error"]["type"]) == (401, "authentication_error")
    for headers in ({"x-api-key": "secret"}, {"authorization": "Bearer secret"}):
        assert (await app.request("POST", PATH, json=ASK, headers=headers)).status_code == 200
    response = await CannedApp(SAY).request("GET", "/v1/models/none", headers={"anthropic-version": "2023-06-01"})
    assert response.json()["error"]["type"] == "not_found_error"
    assert (await CannedApp(SAY).get(PATH)).json()["type"] == "error"
    assert (await CannedApp(SAY).post(PATH, {**ASK, "model": "gpt"})).json()["error"]["type"] == "not_found_error"


async def test_a_failure_in_the_middle_is_an_error_event():
    engine = CannedEngine([ENCODE("He"), []], ending="error", failure=("internal", "broke"))
    events = events_of(await CannedApp(engine=engine).post(PATH, {**ASK, "stream": True}))
    assert events[-1] == (
        "error",
        {"type": "error", "error": {"type": "api_error", "message": "the engine could not finish this request: broke"}},
    )


async def test_counted_tokens_are_those_of_the_prompt():
    app = CannedApp(SAY)
    body = {**ASK, "tools": [TOOL], "system": "You help."}
    counted = (await app.post(PATH + "/count_tokens", {**body, "max_tokens": None})).json()
    await app.post(PATH, body)
    assert counted == {"input_tokens": len(app.engine.requests[-1].prompt_ids)}


def test_results_count_as_turns():
    blocks = [{"type": "tool_result", "tool_use_id": "a"}] * 5000
    with pytest.raises(RequestError, match="at most 4096") as caught:
        read(messages=[{"role": "user", "content": blocks}])
    assert caught.value.param == "messages"
