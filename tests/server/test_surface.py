"""Which doors there are, who may pass, and what the server says before it serves."""

import asyncio
import gzip

import httpx
import pytest
from canned_engine import CannedEngine
from text_model import text_model

from openglm.config.server import RequestLimits, ServerConfig
from openglm.server.app import build_app
from openglm.server.forbidden_fields import FORBIDDEN_FIELDS
from openglm.server.service import Service

BODY = {"messages": [{"role": "user", "content": "Hi"}]}


def service_of(engine=None, *, loaded=True, names=("test-model",), **config):
    service = Service(ServerConfig(**config), text_model(names=names), engine or CannedEngine([[65]]))
    if loaded:
        service.engine_loaded(max_model_len=4000, max_num_seqs=1)
    return service


def client_of(service):
    return httpx.AsyncClient(transport=httpx.ASGITransport(build_app(service)), base_url="http://test")


PATHS = """
    / /v1 /v1/models /v1/models/x /v1/chat/completions /v1/chat/completions/ //v1/models /V1/MODELS /v1/%6dodels /metrics/ /drain /docs
    /v1/completions /v1/responses /v1/responses/x /v1/responses/x/cancel /v1/messages /v1/messages/count_tokens /generate /tokenize
    /detokenize /tokenizer_info /version /server_info /get_server_info /v1/loads /flush_cache /abort_request /health_generate
    /api/paas/v4/chat/completions /openapi.json /health/ /health/x /ready/.. /%2e/health //health /v1/../health /health%00 /health;x
"""
WRONG_KEYS = (
    {},
    {"authorization": "Bearer wrong"},
    {"authorization": "Bearer "},
    {"authorization": "secret"},
    {"authorization": "Basic secret"},
    {"x-api-key": "wrong"},
    {"x-api-key": ""},
    {"authorization": "Bearer secre"},
    {"authorization": "Bearer secrets"},
    {"host": "test/health?"},
)


async def call(app, method, path, headers=(), receive=None):
    """The first message that the application sends; no client library may tidy the path up on its way."""
    sent = []

    async def send(message):
        sent.append(message)

    async def nothing():
        return {"type": "http.request", "body": b"{", "more_body": False}

    encoded = [(name.encode(), value.encode()) for name, value in dict(headers).items()]
    scope = {"type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b"", "headers": encoded}
    await app(scope, receive or nothing, send)
    return sent[0]


@pytest.mark.parametrize("path", PATHS.split())
async def test_every_path_needs_a_key(path):
    app = build_app(service_of(api_keys=("secret",)))
    for method in ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "MADE-UP"):
        if path == "/" and method in ("GET", "HEAD"):
            continue  # the web page, which asks for the key
        for headers in WRONG_KEYS:
            start = await call(app, method, path, headers)
            assert start["status"] == 401, (method, path, headers)
            assert (b"www-authenticate", b"Bearer") in start["headers"]


@pytest.mark.parametrize("headers", [{"authorization": "Bearer secret"}, {"authorization": "bearer  second "}, {"x-api-key": "secret"}])
async def test_a_right_key_passes_in_either_header(headers):
    async with client_of(service_of(api_keys=("secret", "second"))) as client:
        assert (await client.get("/v1/models", headers=headers)).status_code == 200
        assert (await client.post("/v1/chat/completions", headers=headers, json=BODY)).status_code == 200


async def test_health_needs_no_key_and_without_keys_nothing_does():
    async with client_of(service_of(api_keys=("secret",))) as client:
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/ready")).status_code == 200
    async with client_of(service_of()) as client:
        assert (await client.get("/v1/models", headers={"authorization": "Bearer "})).status_code == 200


async def test_metrics_are_public_on_loopback_only_unless_the_operator_says_otherwise():
    for config, status in (
        ({}, 200),
        ({"host": "0.0.0.0"}, 401),
        ({"host": "0.0.0.0", "public_metrics": True}, 200),
        ({"public_metrics": False}, 401),
    ):
        async with client_of(service_of(api_keys=("secret",), **config)) as client:
            assert (await client.get("/metrics")).status_code == status, config
            assert (await client.get("/metrics", headers={"x-api-key": "secret"})).status_code == 200


async def test_models_are_listed_and_looked_up_by_any_name():
    async with client_of(service_of(names=("zai-org/GLM-4.5-Air", "air"))) as client:
        listed = (await client.get("/v1/models")).json()
        assert [card["id"] for card in listed["data"]] == ["zai-org/GLM-4.5-Air", "air"]
        assert listed["data"][0]["max_model_len"] == 4000
        assert (await client.get("/v1/models/zai-org/GLM-4.5-Air")).json() == listed["data"][0]
        response = await client.get("/v1/models/gpt")
        assert response.status_code == 404
        assert response.json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize("model", ["air", "zai-org/GLM-4.5-Air", None])
async def test_requests_may_use_any_name_or_none(model):
    async with client_of(service_of(names=("zai-org/GLM-4.5-Air", "air"))) as client:
        response = await client.post("/v1/chat/completions", json={**BODY, "model": model})
        assert response.json()["model"] == "zai-org/GLM-4.5-Air"


async def test_an_unknown_model_is_404_and_names_what_there_is():
    async with client_of(service_of()) as client:
        response = await client.post("/v1/chat/completions", json={**BODY, "model": "gpt-9"})
    assert response.status_code == 404
    error = response.json()["error"]
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert "test-model" in error["message"] and "gpt-9" not in error["message"]


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/nowhere", 404), ("GET", "/v1/chat/completions", 405), ("POST", "/v1/models", 405)]
)
async def test_routes_that_do_not_exist_answer_in_the_same_shape(method, path, status):
    async with client_of(service_of()) as client:
        response = await client.request(method, path)
    assert response.status_code == status
    assert response.json()["error"].keys() == {"message", "type", "param", "code"}
    assert (status == 405) == ("allow" in response.headers)


@pytest.mark.parametrize("media_type", [None, "text/plain", "application/x-www-form-urlencoded", "application/json-seq"])
async def test_a_body_must_say_that_it_is_json(media_type):
    headers = {"content-type": media_type} if media_type else {}
    async with client_of(service_of()) as client:
        response = await client.post("/v1/chat/completions", content=b"{}", headers=headers)
    assert response.status_code == 415


@pytest.mark.parametrize("encoding", ["gzip", "br", "identity, gzip", "zstd"])
async def test_a_compressed_body_is_415(encoding):
    headers = {"content-type": "application/json", "content-encoding": encoding}
    async with client_of(service_of()) as client:
        response = await client.post("/v1/chat/completions", content=gzip.compress(b"{}"), headers=headers)
        assert (response.status_code, response.json()["error"]["code"]) == (415, "unsupported_encoding")
        plain = await client.post("/v1/chat/completions", json=BODY, headers={"content-encoding": "identity"})
        assert plain.status_code == 200


@pytest.mark.parametrize("field", [*FORBIDDEN_FIELDS, "best_of"])
async def test_what_would_be_code_a_tensor_or_an_address_is_refused_by_name(field):
    async with client_of(service_of()) as client:
        response = await client.post("/v1/chat/completions", json={**BODY, field: "http://169.254.169.254/"})
        error = response.json()["error"]
        assert (response.status_code, error["param"], error["code"]) == (400, field, "unsupported_field")
        assert "169.254" not in response.text
        for absent in (None, False if field != "best_of" else 1):
            assert (await client.post("/v1/chat/completions", json={**BODY, field: absent})).status_code == 200


async def test_a_body_over_the_limit_is_413_declared_or_not():
    limits = RequestLimits(body_bytes=1000)

    async def chunks():
        for _ in range(30):
            yield b"x" * 100

    async with client_of(service_of(limits=limits)) as client:
        for content in (b"x" * 1001, chunks()):
            response = await client.post("/v1/chat/completions", content=content, headers={"content-type": "application/json"})
            assert response.status_code == 413
            assert response.json()["error"]["code"] == "body_too_large"
            assert response.headers["connection"] == "close"


async def test_a_body_that_does_not_arrive_is_408():
    async def receive():
        await asyncio.Event().wait()

    app = build_app(service_of(limits=RequestLimits(body_read_s=0.01)))
    start = await call(app, "POST", "/v1/chat/completions", {"content-type": "application/json"}, receive)
    assert start["status"] == 408


async def test_request_ids_come_back_when_harmless_and_are_made_otherwise():
    async with client_of(service_of()) as client:
        assert (await client.get("/health", headers={"x-request-id": "abc.1"})).headers["x-request-id"] == "abc.1"
        for bad in ("a b", "x" * 200, "é".encode()):
            assert (await client.get("/health", headers={"x-request-id": bad})).headers["x-request-id"].startswith("req-")


async def test_while_the_model_loads_the_server_is_alive_but_not_ready_and_chats_wait():
    service = service_of(loaded=False)
    async with client_of(service) as client:
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/ready")).status_code == 503
        waiting = asyncio.create_task(client.post("/v1/chat/completions", json=BODY))
        while not service.traffic.num_in_flight:
            await asyncio.sleep(0)
        service.engine_loaded(max_model_len=4000, max_num_seqs=1)
        assert (await waiting).status_code == 200
        assert (await client.get("/ready")).status_code == 200


async def test_a_model_that_loads_too_long_is_503_with_a_hint():
    async with client_of(service_of(loaded=False, ready_wait_s=0.01)) as client:
        response = await client.post("/v1/chat/completions", json=BODY)
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "model_loading"
    assert int(response.headers["retry-after"]) >= 1


async def test_a_bad_request_is_told_so_even_while_the_model_loads():
    async with client_of(service_of(loaded=False)) as client:
        assert (await client.post("/v1/chat/completions", json={"messages": 1})).status_code == 400


@pytest.mark.parametrize(("state", "health", "ready"), [("restarting", 200, 503), ("dead", 503, 503)])
async def test_a_lost_engine_shows_in_health_and_in_answers(state, health, ready):
    engine = CannedEngine([[65]])
    async with client_of(service_of(engine)) as client:
        engine.state = state
        assert (await client.get("/health")).status_code == health
        assert (await client.get("/ready")).status_code == ready


async def test_a_draining_server_takes_no_more_work():
    service = service_of(loaded=False)
    async with client_of(service) as client:
        waiting = asyncio.create_task(client.post("/v1/chat/completions", json=BODY))
        while not service.traffic.num_in_flight:
            await asyncio.sleep(0)
        service.stop()
        for response in (await waiting, await client.post("/v1/chat/completions", json=BODY)):
            assert response.status_code == 503
            assert response.json()["error"]["code"] == "shutting_down"
        assert (await client.get("/ready")).status_code == 503
        assert (await client.get("/health")).status_code == 200


async def test_more_requests_than_may_wait_are_shed_with_a_hint():
    service = service_of(loaded=False, max_queued_requests=2)
    async with client_of(service) as client:
        waiting = [asyncio.create_task(client.post("/v1/chat/completions", json=BODY)) for _ in range(2)]
        while service.traffic.num_in_flight < 2:
            await asyncio.sleep(0)
        response = await client.post("/v1/chat/completions", json=BODY)
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "queue_full"
        assert int(response.headers["retry-after"]) >= 1
        service.engine_loaded(max_model_len=4000, max_num_seqs=1)
        assert [(await task).status_code for task in waiting] == [200, 200]
    await asyncio.wait_for(service.traffic.wait_idle(), 5)


async def test_a_wrong_method_is_told_every_right_one():
    async with client_of(service_of()) as client:
        answer = await client.put("/v1/responses/x")
        page = await client.put("/page/prompt")
    assert (answer.status_code, answer.headers["allow"]) == (405, "DELETE, GET, HEAD")
    assert (page.status_code, page.headers["allow"]) == (405, "POST")
