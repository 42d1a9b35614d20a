"""/openapi.json names every route, its requests are those that are decoded, and its answers those that are given."""

import json
import re
from pathlib import Path

import jsonschema
import msgspec
import pytest
from canned_app import ADMIN, CALL, ENCODE, SAY, SCHEMA, THINK, CannedApp, events_of

from openglm.server import anthropic_shapes, completions_shapes, openai_shapes, responses_shapes, sglang_shapes
from openglm.server.openapi import OPERATIONS

GOLDEN = Path(__file__).parent / "golden"
STREAMS = {
    "completions_stream.txt": completions_shapes.Completion,
    "generate_stream.txt": sglang_shapes.Generated,
    "messages_stream.txt": anthropic_shapes.MessageEvent,
    "responses_stream.txt": responses_shapes.ResponseEvent,
    "zai_stream.txt": openai_shapes.ChatChunk,
}
WHOLE = {
    "completions_whole.txt": completions_shapes.Completion,
    "generate_whole.txt": sglang_shapes.Generated,
    "messages_whole.txt": anthropic_shapes.MessageObject,
    "responses_whole.txt": responses_shapes.ResponseObject,
    "zai_whole.txt": openai_shapes.ChatCompletion,
}
TURN = [*THINK, *SAY, *CALL]
HELLO = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 50}
FUNCTION = {"name": "get_weather", "parameters": SCHEMA}
REQUESTS = [
    ("/v1/chat/completions", HELLO | {"tools": [{"type": "function", "function": FUNCTION}], "n": 2}),
    ("/v1/chat/completions", HELLO | {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}),
    ("/api/paas/v4/chat/completions", HELLO | {"request_id": "mine", "tool_stream": True}),
    ("/v1/completions", {"prompt": ["a", "b"], "echo": True, "logprobs": 1, "return_token_ids": True}),
    ("/generate", {"input_ids": [[65], [66]], "sampling_params": {"n": 2}}),
    ("/v1/responses", {"input": "Hi", "metadata": {"a": "b"}, "reasoning": {"effort": "low"}, "max_output_tokens": 20}),
    ("/v1/messages", HELLO | {"thinking": {"type": "enabled", "budget_tokens": 1024}}),
    ("/v1/messages/count_tokens", HELLO),
    ("/tokenize", {"prompt": "Hi", "return_token_strs": True}),
    ("/v1/detokenize", {"tokens": [65]}),
    ("/page/prompt", HELLO),
    ("/abort_request", {"rid": "mine"}),
    ("/drain", {}),
    ("/resume", {}),
    ("/flush_cache", {}),
]
BAD = [(path, {"messages": 5, "model": 7, "text": 1, "rid": 1, "tokens": "x"}) for (method, path), each in OPERATIONS.items() if each.body]


def operation_of(method, path):
    found = [each for (verb, known), each in OPERATIONS.items() if verb == method and re.fullmatch(re.sub(r"{\w+}", r"[^/]+", known), path)]
    return found[0]


@pytest.mark.parametrize(("name", "shape"), (STREAMS | WHOLE).items())
def test_recorded_answers_have_the_shapes_that_are_told(name, shape):
    text = (GOLDEN / name).read_text("utf-8")
    bodies = re.findall(r"^data: ({.*)$", text, re.MULTILINE) if name in STREAMS else [text]
    assert bodies
    for body in bodies:
        msgspec.json.decode(body, type=shape)


@pytest.mark.parametrize(("path", "body"), REQUESTS)
async def test_answers_have_the_shapes_that_are_told(path, body):
    app = CannedApp(TURN)
    operation = operation_of("POST", path)
    whole = await app.post(path, body, headers=ADMIN)
    assert whole.status_code == operation.status, whole.text
    assert whole.headers["content-type"].startswith(operation.media_type)
    if operation.media_type == "application/json":
        msgspec.json.decode(whole.content, type=operation.reply)
    if operation.event is not None:
        events = events_of(await app.post(path, body | {"stream": True}))
        assert events
        for _, event in events:
            msgspec.convert(event, operation.event)


@pytest.mark.parametrize(("path", "body"), BAD)
async def test_refusals_have_the_shapes_that_are_told(path, body):
    answer = await CannedApp(TURN).post(path, body, headers=ADMIN)
    assert answer.status_code == 400, answer.text
    msgspec.json.decode(answer.content, type=operation_of("POST", path).error)


@pytest.mark.parametrize("path", [path for method, path in OPERATIONS if method == "GET" and "{" not in path])
async def test_reads_have_the_shapes_that_are_told(path):
    app = CannedApp(TURN)
    answer = await app.request("GET", path, headers=ADMIN)
    operation = operation_of("GET", path)
    assert answer.status_code == 200
    if operation.reply is not None:
        assert answer.headers["content-type"].startswith(operation.media_type)
    if operation.media_type == "application/json" and operation.reply is not None:
        msgspec.json.decode(answer.content, type=operation.reply)


async def test_a_response_is_told_alike_when_it_is_read_cancelled_and_deleted():
    app = CannedApp([ENCODE("x")])
    made = msgspec.json.decode((await app.post("/v1/responses", {"input": "Hi"})).content, type=responses_shapes.ResponseObject)
    path = f"/v1/responses/{made.id}"
    assert msgspec.json.decode((await app.get(path)).content, type=responses_shapes.ResponseObject) == made
    assert (await app.post(f"{path}/cancel", {})).status_code == 400
    msgspec.json.decode((await app.request("DELETE", path)).content, type=responses_shapes.DeletedResponse)
    msgspec.json.decode((await app.get(path)).content, type=openai_shapes.OpenAIError)


async def test_the_document_is_valid_and_holds_control_routes_for_those_who_may_use_them():
    app = CannedApp(TURN, api_keys=("key",))
    document = (await app.request("GET", "/openapi.json", headers={"x-api-key": "key"})).json()
    everything = (await app.request("GET", "/openapi.json", headers=ADMIN)).json()
    assert everything["paths"].keys() - document["paths"].keys() == {
        *("/drain", "/resume", "/flush_cache", "/reset_prefix_cache", "/abort_request", "/abort_requests")
    }
    assert (await app.get("/openapi.json")).status_code == 401
    operations = [each for path in everything["paths"].values() for each in path.values()]
    ids = [each["operationId"] for each in operations]
    assert len(set(ids)) == len(ids) == len(OPERATIONS)
    schemas = everything["components"]["schemas"]
    for schema in schemas.values():
        jsonschema.Draft202012Validator.check_schema(schema)
    references = re.findall(r'"\$ref": "#/components/schemas/(\w+)"', json.dumps(everything))
    assert references and set(references) <= schemas.keys()


@pytest.mark.parametrize(("path", "body"), [each for each in REQUESTS if operation_of("POST", each[0]).body])
async def test_good_requests_are_valid_and_bad_ones_are_not(path, body):
    document = (await CannedApp(TURN).request("GET", "/openapi.json", headers=ADMIN)).json()
    schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    validator = jsonschema.Draft202012Validator(schema | {"components": document["components"]})
    validator.validate(body)
    assert not validator.is_valid({"messages": 5, "model": 7, "text": 1, "rid": 1, "tokens": "x"})
