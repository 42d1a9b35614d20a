"""Z.ai's dialect: how it differs from OpenAI's."""

import pytest
from canned_app import CALL, ENCODE, SAY, SCHEMA, THINK, CannedApp, events_of
from canned_engine import CannedEngine
from golden import check_golden

from openglm.errors import QueueFullError

PATH = "/api/paas/v4/chat/completions"
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": SCHEMA}}
ASK = {"model": "test-model", "messages": [{"role": "user", "content": "Hi"}]}


@pytest.mark.parametrize("stream", [True, False])
async def test_a_turn_with_a_call_in_one_piece(stream):
    body = {**ASK, "tools": [TOOL], "stream": stream, "request_id": "mine", "response_format": None, "thinking": None}
    check_golden(f"zai_{'stream' if stream else 'whole'}.txt", await CannedApp(THINK + SAY + CALL).post(PATH, body))


async def test_tool_stream_sends_arguments_as_they_come():
    events = events_of(await CannedApp(CALL).post(PATH, {**ASK, "tools": [TOOL], "stream": True, "tool_stream": True}))
    calls = [call for _, data in events for call in data["choices"][0]["delta"].get("tool_calls", [])]
    assert len(calls) > 2 and "".join(call["function"]["arguments"] for call in calls) == '{"city": "Zürich"}'
    whole = events_of(await CannedApp(CALL).post("/v1/chat/completions", {**ASK, "tools": [TOOL], "stream": True, "tool_stream": False}))
    assert len([data for _, data in whole if data["choices"][0]["delta"].get("tool_calls")]) == 1


async def test_a_call_in_one_piece_that_was_cut_is_not_sent():
    engine = CannedEngine(CALL[:3], ending="length")
    events = events_of(await CannedApp(engine=engine).post(PATH, {**ASK, "tools": [TOOL], "stream": True}))
    assert not any(data["choices"][0]["delta"].get("tool_calls") for _, data in events)
    assert events[-1][1]["choices"][0]["finish_reason"] == "length"


async def test_greedy_thinking_and_hosted_tools():
    app = CannedApp(SAY)
    hosted = [{"type": "web_search", "web_search": {}}, TOOL, {"type": "mcp", "mcp": {}}]
    body = {**ASK, "do_sample": False, "temperature": 0.8, "thinking": {"type": "disabled"}, "tools": hosted, "stop": ["x"]}
    for path in ("/v1/chat/completions", PATH):
        response = await app.post(path, body)
        assert "2 of the tools" in response.headers["x-openglm-warning"]
    assert app.params.greedy and app.prompt.endswith("<think></think>") and "get_weather" in app.prompt and "web_search" not in app.prompt
    assert response.json()["request_id"]


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({"messages": None}, 400, "1213"),
        ({"temperature": 9}, 400, "1214"),
        ({"model": "glm-9"}, 404, "1211"),
        ({"messages": [{"role": "user", "content": "x" * 5000}]}, 400, "1261"),
    ],
)
async def test_errors_have_numbers(fields, status, code):
    response = await CannedApp(SAY).post(PATH, {**ASK, **fields})
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert response.json()["error"].keys() == {"code", "message"}


async def test_errors_of_the_gate_and_in_the_middle():
    assert (await CannedApp(SAY, api_keys=("k",)).post(PATH, ASK)).json()["error"]["code"] == "1000"
    full = await CannedApp(engine=CannedEngine([], error=QueueFullError("full"))).post(PATH, ASK)
    assert (full.json()["error"]["code"], full.status_code) == ("1302", 503)
    engine = CannedEngine([ENCODE("He"), []], ending="error", failure=("internal", "broke"))
    assert events_of(await CannedApp(engine=engine).post(PATH, {**ASK, "stream": True}))[-1][1]["error"]["code"] == "500"
