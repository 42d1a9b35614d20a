"""OpenAI's Responses dialect: what requests become, the exact answers, and what is kept of them."""

import asyncio
import json

import pytest
from canned_app import CALL, ENCODE, SAY, SCHEMA, THINK, CannedApp, events_of
from canned_engine import CannedEngine, MadeOutputs
from golden import check_golden

from openglm.config.server import RequestLimits, SamplingDefaults
from openglm.engine.request import EngineOutput
from openglm.errors import RequestError
from openglm.server.response_store import ResponseStore, StoredResponse
from openglm.server.responses_request import read_responses_request
from openglm.text.messages import Message, ToolCall

PATH = "/v1/responses"
TOOL = {"type": "function", "name": "get_weather", "description": "Weather", "parameters": SCHEMA, "strict": False}


class Nothing:
    """No memory of earlier responses."""

    def recall_item(self, item_id):
        return None


def read(**fields):
    body = json.dumps({"input": "Hi", **fields}).encode()
    return read_responses_request(body, limits=RequestLimits(), defaults=SamplingDefaults(), thinking=True, memory=Nothing())


@pytest.mark.parametrize("stream", [True, False])
async def test_a_turn_with_reasoning_text_and_a_call(stream):
    app = CannedApp(THINK + SAY + CALL)
    response = await app.post(PATH, {"model": "test-model", "input": "Hi", "tools": [TOOL], "stream": stream})
    check_golden(f"responses_{'stream' if stream else 'whole'}.txt", response)


async def test_events_are_numbered_announced_filled_and_closed():
    app = CannedApp(THINK + SAY + CALL + CALL)
    events = events_of(await app.post(PATH, {"input": "Hi", "tools": [TOOL], "stream": True}))
    assert [data["sequence_number"] for _, data in events] == list(range(len(events)))
    assert all(name == data["type"] for name, data in events)
    names = [name for name, _ in events]
    assert names[:2] == ["response.created", "response.in_progress"] and names[-1] == "response.completed"
    open_item, items = None, []
    for name, data in events[2:-1]:
        if name == "response.output_item.added":
            assert open_item is None and data["output_index"] == len(items)
            open_item = data["item"]["id"]
        elif name == "response.output_item.done":
            items.append(data["item"])
            assert data["item"]["id"] == open_item
            open_item = None
        else:
            assert data["item_id"] == open_item and data["output_index"] == len(items)
    assert events[-1][1]["response"]["output"] == items
    assert [item["type"] for item in items] == ["reasoning", "message", "function_call", "function_call"]


def test_history_items_become_turns_as_the_model_wrote_them():
    items = [
        {"role": "developer", "content": [{"type": "input_text", "text": "rules"}]},
        {"type": "message", "role": "user", "content": "go"},
        {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [],
            "content": [{"type": "reasoning_text", "text": "hm"}],
            "encrypted_content": None,
        },
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "calling", "annotations": []}]},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"x": 1}'},
        {"type": "function_call", "call_id": "c2", "name": "g", "namespace": "ns", "arguments": ""},
        {"type": "web_search_call", "id": "w"},
        {"type": "function_call_output", "call_id": "c1", "output": "42"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "ok"}]},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "done"}]},
        {"type": "message", "role": "assistant", "content": "bye"},
    ]
    assert read(input=items, instructions="Help.").turn.prompt.messages == (
        Message("system", "Help."),
        Message("system", "rules"),
        Message("user", "go"),
        Message("assistant", "calling", "hm", (ToolCall("f", {"x": 1}, id="c1"), ToolCall("ns.g", {}, id="c2"))),
        Message("tool", "42", tool_call_id="c1"),
        Message("tool", "ok", tool_call_id="c2"),
        Message("assistant", "bye", "done"),
    )


def test_tools_choices_formats_and_effort():
    namespace = {"type": "namespace", "name": "fs", "tools": [{**TOOL, "name": "read"}, {"type": "web_search"}]}
    request = read(tools=[TOOL, namespace, {"type": "web_search"}], tool_choice={"type": "function", "name": "read", "namespace": "fs"})
    assert [tool.name for tool in request.turn.prompt.tools] == ["get_weather", "fs.read"]
    assert len(request.tools.dropped) == 2 and request.turn.params.constraint is not None
    assert request.tools.split_name("fs.read") == ("fs", "read")
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "get_weather"}]}
    assert read(tools=[TOOL], tool_choice=allowed).turn.params.constraint is not None
    assert read(tools=[TOOL], tool_choice="none").turn.prompt.tools == ()
    form = {"type": "json_schema", "name": "x", "schema": SCHEMA, "strict": True}
    assert read(text={"format": form}).turn.params.constraint.param == "text.format"
    assert read(text={"format": {"type": "json_object"}}).turn.params.constraint is not None
    assert read(text={"format": {"type": "text"}}).turn.params.constraint is None
    assert not read(reasoning={"effort": "none"}).turn.prompt.thinking
    assert read(reasoning={"effort": "low", "summary": "auto"}).turn.params.thinking_budget == 2048
    assert read(max_output_tokens=7, top_k=3).turn.params.max_tokens == 7


def test_what_codex_sends_is_taken():
    request = read(
        model="m",
        input=[{"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "a"}]}] * 2,
        store=False,
        stream=True,
        include=["reasoning.encrypted_content"],
        reasoning={"summary": "auto"},
        prompt_cache_key="k",
        client_metadata={"x": "y"},
        tools=[TOOL, {"type": "namespace", "name": "ns", "tools": [TOOL]}, {"type": "web_search"}],
        tool_choice="auto",
        parallel_tool_calls=True,
    )
    assert request.stream and not request.store and request.unknown == ("client_metadata",)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": 7}, "input"),
        ({"input": [7]}, "input[0]"),
        ({"input": [{"type": "magic"}]}, "input[0].type"),
        ({"input": [{"type": 7}]}, "input[0].type"),
        ({"input": [{"role": "wizard", "content": ""}]}, "input[0].role"),
        ({"input": [{"role": {}, "content": ""}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_text", "text": 7}]}]}, "input[0].content[0].text"),
        ({"input": [{"role": "user", "content": [7]}]}, "input[0].content[0]"),
        ({"input": [{"type": "function_call", "name": "f", "arguments": "{"}]}, "input[0].arguments"),
        ({"input": [{"type": "function_call", "name": "a b"}]}, "input[0].name"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
        ({"input": [{"type": "item_reference", "id": 7}]}, "input[0].id"),
        ({"tools": {}}, "tools"),
        ({"tools": [7]}, "tools[0]"),
        ({"tools": [TOOL, TOOL]}, "tools[1].name"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tools": [{**TOOL, "parameters": 7}]}, "tools[0].parameters"),
        ({"tools": [{"type": "namespace", "name": "n", "tools": 7}]}, "tools[0].tools"),
        ({"tools": [{"type": "namespace", "name": "n", "tools": [7]}]}, "tools[0].tools[0]"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "web_search"}}, "tool_choice.type"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_output_tokens": -5}, "max_output_tokens"),
        ({"background": True, "store": False}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"include": ["message.output_text.logprobs"]}, "include"),
        ({"temperature": 5}, "temperature"),
        ({"metadata": {"a": 1}}, "metadata[...]"),
    ],
)
def test_what_is_wrong_is_named(fields, param):
    with pytest.raises(RequestError) as caught:
        read(**fields)
    assert caught.value.param == param


async def test_a_called_tool_of_a_namespace_is_taken_apart_again():
    call = [ENCODE("<tool_call>fs.read\n<arg_key>city</arg_key>\n<arg_value>x</arg_value>\n</tool_call>")]
    tools = [{"type": "namespace", "name": "fs", "tools": [{**TOOL, "name": "read"}]}]
    whole = (await CannedApp(call).post(PATH, {"input": "Hi", "tools": tools, "reasoning": {"effort": "none"}})).json()
    (item,) = whole["output"]
    assert (item["namespace"], item["name"], item["arguments"]) == ("fs", "read", '{"city": "x"}')


async def test_a_stored_response_can_be_read_continued_and_forgotten():
    app = CannedApp(THINK + SAY)
    for stream in (False, True):
        response = await app.post(PATH, {"input": "first", "instructions": "Be brief.", "stream": stream})
        made = events_of(response)[-1][1]["response"] if stream else response.json()
        assert (await app.get(f"{PATH}/{made['id']}")).json() == made
        assert (await app.get(f"{PATH}/{made['id']}?stream=true")).status_code == 400
        await app.post(PATH, {"input": "second", "previous_response_id": made["id"]})
        assert "first" in app.prompt and "Hello" in app.prompt and app.prompt.rstrip().endswith("second<|assistant|>")
        assert "Be brief" not in app.prompt
        assert (await app.post(f"{PATH}/{made['id']}/cancel", {})).status_code == 400
        assert (await app.request("DELETE", f"{PATH}/{made['id']}")).json()["deleted"] is True
        for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/cancel")):
            gone = await app.request(method, f"{PATH}/{made['id']}{path}")
            assert (gone.status_code, gone.json()["error"]["code"]) == (404, "response_not_found")
        gone = await app.post(PATH, {"input": "second", "previous_response_id": made["id"]})
        assert (gone.status_code, gone.json()["error"]["code"]) == (400, "previous_response_not_found")


async def test_items_of_stored_responses_can_be_referred_to():
    app = CannedApp(THINK + SAY)
    made = (await app.post(PATH, {"input": "first"})).json()
    references = [{"type": "item_reference", "id": item["id"]} for item in made["output"]]
    user = {"role": "user", "content": "second"}
    await app.post(PATH, {"input": [{"role": "user", "content": "first"}, *references, user]})
    referred = app.prompt
    await app.post(PATH, {"input": [{"role": "user", "content": "first"}, *made["output"], user]})
    assert referred == app.prompt and "Hello" in referred
    await app.request("DELETE", f"{PATH}/{made['id']}")
    gone = await app.post(PATH, {"input": [*references, user]})
    assert (gone.status_code, gone.json()["error"]["code"]) == (400, "item_not_found")


async def test_store_false_keeps_nothing():
    app = CannedApp(SAY)
    made = (await app.post(PATH, {"input": "x", "store": False})).json()
    assert made["store"] is False
    assert (await app.get(f"{PATH}/{made['id']}")).status_code == 404


class Waits(CannedEngine):
    """Says one thing, then waits until it is aborted."""

    def generate(self, request):
        self.requests.append(request)
        self.released = asyncio.Event()

        async def outputs():
            yield EngineOutput(request.id, ENCODE("He"))
            await self.released.wait()
            yield EngineOutput(request.id, [], finish_reason="abort")

        return MadeOutputs(outputs())

    async def abort(self, request_id):
        await super().abort(request_id)
        self.released.set()


async def test_a_response_that_is_being_made_can_be_looked_at_and_cancelled():
    engine = Waits([])
    app = CannedApp(engine=engine)
    waiting = asyncio.create_task(app.post(PATH, {"input": "x", "reasoning": {"effort": "none"}}))
    while not engine.requests:
        await asyncio.sleep(0)
    path = f"{PATH}/resp_{engine.requests[0].id}"
    assert (await app.get(path)).json()["status"] == "in_progress"
    assert (await app.post(path + "/cancel", {})).json()["status"] == "cancelled"
    assert (await waiting).json()["status"] == "cancelled"
    assert engine.aborted == [engine.requests[0].id]


async def finished(app, response_id):
    while (response := (await app.get(f"{PATH}/{response_id}")).json())["status"] in ("queued", "in_progress"):
        await asyncio.sleep(0)
    return response


async def test_a_response_in_the_background_is_polled_continued_and_counted_as_in_flight():
    app = CannedApp(THINK + SAY)
    made = (await app.post(PATH, {"input": "first", "background": True})).json()
    assert (made["status"], made["background"], made["output"]) == ("queued", True, [])
    assert app.service.traffic.num_in_flight == 1
    done = await finished(app, made["id"])
    assert (done["status"], done["output"][-1]["content"][0]["text"]) == ("completed", "Hello")
    assert app.service.traffic.num_in_flight == 0
    await app.post(PATH, {"input": "second", "previous_response_id": made["id"]})
    assert "first" in app.prompt and "Hello" in app.prompt
    assert (await app.get(f"{PATH}/{made['id']}?stream=true")).status_code == 400


async def test_a_stream_in_the_background_can_be_taken_up_again():
    app = CannedApp(THINK + SAY)
    response = await app.post(PATH, {"input": "x", "background": True, "stream": True})
    events = events_of(response)
    assert events[-1][0] == "response.completed"
    made = events[-1][1]["response"]
    assert await finished(app, made["id"]) == made
    path = f"{PATH}/{made['id']}?stream=true"
    assert (await app.get(path)).text == response.text
    assert events_of(await app.get(path + "&starting_after=4")) == events[5:]
    for wrong in ("x", "-1", "9" * 30):
        assert (await app.get(f"{path}&starting_after={wrong}")).status_code == 400


async def test_whoever_comes_late_hears_the_rest_of_a_running_one_and_can_cancel_it():
    engine = Waits([])
    app = CannedApp(engine=engine)
    body = {"input": "x", "background": True, "stream": True, "reasoning": {"effort": "none"}}
    first = asyncio.create_task(app.post(PATH, body))
    while not engine.requests:
        await asyncio.sleep(0)
    path = f"{PATH}/resp_{engine.requests[0].id}"
    assert (await app.get(path)).json()["status"] == "in_progress"
    late = asyncio.create_task(app.get(path + "?stream=true"))
    await asyncio.sleep(0)
    assert (await app.post(path + "/cancel", {})).json()["status"] == "cancelled"
    assert (await late).text == (await first).text
    assert events_of(await late)[-1][1]["response"]["status"] == "cancelled"
    assert (await finished(app, path.rpartition("/")[2]))["status"] == "cancelled"
    assert app.service.traffic.num_in_flight == 0


@pytest.mark.parametrize("stream", [True, False])
async def test_a_failure_in_the_background_is_kept(stream):
    engine = CannedEngine([ENCODE("He"), []], ending="error", failure=("internal", "broke"))
    app = CannedApp(engine=engine)
    response = await app.post(PATH, {"input": "x", "background": True, "stream": stream})
    made = events_of(response)[-1][1]["response"] if stream else response.json()
    done = await finished(app, made["id"])
    assert (done["status"], done["error"]["code"]) == ("failed", "server_error")
    assert app.service.traffic.num_in_flight == 0


async def test_the_token_limit_makes_it_incomplete_and_a_cut_call_is_never_done():
    engine = CannedEngine(CALL[:3], ending="length")
    body = {"input": "Hi", "tools": [TOOL], "reasoning": {"effort": "none"}}
    whole = (await CannedApp(engine=engine).post(PATH, body)).json()
    assert (whole["status"], whole["incomplete_details"], whole["output"]) == ("incomplete", {"reason": "max_output_tokens"}, [])
    names = [name for name, _ in events_of(await CannedApp(engine=engine).post(PATH, {**body, "stream": True}))]
    assert names[-1] == "response.incomplete" and "response.output_item.done" not in names


async def test_a_failure_in_the_middle_is_a_failed_response():
    engine = CannedEngine([ENCODE("He"), []], ending="error", failure=("internal", "broke"))
    events = events_of(await CannedApp(engine=engine).post(PATH, {"input": "x", "stream": True}))
    name, data = events[-1]
    assert (name, data["response"]["status"]) == ("response.failed", "failed")
    assert data["response"]["error"] == {"code": "server_error", "message": "the engine could not finish this request: broke"}


def test_the_store_is_bounded_by_number_and_size_and_forgets_the_least_recently_used():
    store = ResponseStore(max_entries=2, max_bytes=2000)
    small = StoredResponse(b"x" * 100, ())
    for name in ("a", "b"):
        store.put(name, small)
    assert store.get("a") is small
    store.put("c", small)
    assert store.get("b") is None and store.get("a") is small
    store.put("d", StoredResponse(b"x" * 950, ()))
    assert store.get("a") is None and store.get("c") is None and store.get("d") is not None
    store.put("e", StoredResponse(b"x" * 2000, ()))
    assert store.get("e") is None
    store.put("f", StoredResponse(b"x" * 1000, ()))
    assert store.get("f") is not None and store.remove("f") and not store.remove("f")
