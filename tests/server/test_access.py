"""What the logs say and do not say, and what holders of different keys learn of each other."""

import io
import json
import logging

import pytest
from canned_engine import CannedEngine
from test_surface import BODY, client_of, service_of

from openglm.config.server import ServerConfig
from openglm.engine.protocol import EngineInfo
from openglm.log import set_up_logging
from openglm.server.banner import banner

SECRETS = ("s3cret-key", "boss-key", "my private question", "query-token")


@pytest.fixture
def log_lines(logging_restored):
    """The JSON lines that were logged so far."""
    stream = io.StringIO()
    set_up_logging("debug", "json", stream)
    return lambda: [json.loads(line) for line in stream.getvalue().splitlines()]


async def test_a_request_leaves_a_line_that_can_be_found_by_its_id_and_holds_no_secret(log_lines):
    service = service_of(CannedEngine([[65]]), api_keys=("s3cret-key",), admin_api_keys=("boss-key",))
    body = {"messages": [{"role": "user", "content": "my private question"}]}
    async with client_of(service) as client:
        headers = {"authorization": "Bearer s3cret-key", "x-request-id": "mine.1"}
        await client.post("/v1/chat/completions?token=query-token", json=body, headers=headers)
        await client.post("/drain", headers={"x-api-key": "boss-key"})
        await client.get("/v1/models", headers={"authorization": "Bearer s3cret-key-but-wrong"})
        await client.get("/a%0Ab%1B[31m" + "c" * 500, headers=headers)
        service.engine.error = ValueError("my private question")  # an internal error may quote anything to the log, but not to the client
        service.end_drain()
        answer = await client.post("/v1/chat/completions", json={**body, "messages": [{"role": "user", "content": "x"}]}, headers=headers)
    assert answer.status_code == 500 and "private" not in answer.text
    lines = log_lines()
    access = [line for line in lines if line["logger"] == "openglm.access"]
    assert [(line["message"], line["status"], line["request_id"]) for line in access[:1]] == [("POST /v1/chat/completions", 200, "mine.1")]
    assert [line["status"] for line in access] == [200, 200, 401, 404, 500]
    assert all(len(line["message"]) < 220 and line["seconds"] >= 0 for line in access)
    turn = next(line for line in lines if line["message"].startswith("turn ended: stop"))
    assert turn["request_id"] == "mine.1" and turn["completion_tokens"] == 1
    (incident,) = [line for line in lines if line["level"] == "error"]
    assert incident["request_id"] == "mine.1" and incident["message"].split()[-1] in answer.text
    text = json.dumps([line for line in lines if line is not incident])
    assert not [secret for secret in SECRETS if secret in text]


async def test_the_access_log_can_be_left_out(logging_restored):
    stream = io.StringIO()
    set_up_logging("info", "json", stream, access=False)
    async with client_of(service_of()) as client:
        await client.post("/v1/chat/completions", json=BODY)
    assert "turn ended" in stream.getvalue() and "openglm.access" not in stream.getvalue()


async def test_figures_and_errors_hold_no_secret():
    service = service_of(api_keys=("s3cret-key",), admin_api_keys=("boss-key",))
    assert "s3cret" not in repr(service.config) and "boss" not in repr(service.config)
    async with client_of(service) as client:
        headers = {"authorization": "Bearer s3cret-key"}
        texts = [(await client.get(path, headers=headers)).text for path in ("/metrics", "/v1/models", "/nowhere/s3cret-key")]
    assert not [text for text in texts if "s3cret" in text]


async def test_holders_of_different_keys_share_no_prefixes_unless_told_to():
    def salts(engine):
        return [request.scheduling.cache_salt for request in engine.requests]

    async def ask(**config):
        engine = CannedEngine([[65]])
        async with client_of(service_of(engine, **config)) as client:
            for key in ("first", "second", "first"):
                for salt in (None, "mine"):
                    await client.post("/v1/chat/completions", json={**BODY, "cache_salt": salt}, headers={"x-api-key": key})
        return salts(engine)

    one, one_salted, two, two_salted, again, again_salted = await ask(api_keys=("first", "second"))
    assert (one, one_salted) == (again, again_salted)
    assert len({one, one_salted, two, two_salted}) == 4 and all((one, two))
    assert await ask(api_keys=("first", "second"), share_prefix_cache=True) == ["", "mine"] * 3
    assert await ask() == ["", "mine"] * 3
    engine = CannedEngine([[65]])
    async with client_of(service_of(engine, api_keys=("first",))) as client:
        await client.post("/v1/chat/completions", json=BODY, headers={"x-api-key": "first"})
    assert salts(engine) == [""]


@pytest.mark.parametrize("level", ["access", "turn"])
async def test_a_quiet_server_formats_no_line(level, logging_restored):
    set_up_logging("warning", "json", io.StringIO())
    name = {"access": "openglm.access", "turn": "openglm.server.service"}[level]
    assert not logging.getLogger(name).isEnabledFor(logging.INFO)


def banner_of(max_model_len, num_pages, **config):
    info = EngineInfo("m", 100, max_model_len, 16, 3, "bfloat16", "cpu", ("dtype bfloat16: as stored in the checkpoint",))
    model = service_of(names=("glm-4.5-air",)).model
    return banner(ServerConfig(**config), model, info, port=8000, num_pages=num_pages, seconds=1.5)


def test_the_banner_says_where_how_and_how_much():
    text = banner_of(131_072, 41 * 512)
    assert "OpenAI base URL   http://127.0.0.1:8000/v1\n" in text
    assert "Anthropic base    http://127.0.0.1:8000\n" in text
    assert "curl http://127.0.0.1:8000/v1/chat/completions" in text
    assert "ANTHROPIC_BASE_URL=http://127.0.0.1:8000 ANTHROPIC_AUTH_TOKEN=none ANTHROPIC_MODEL=glm-4.5-air claude" in text
    assert "room for 41 session(s) of 32K tokens, each up to 131,072" in text
    assert "no key needed, from this machine only" in text
    assert "dtype bfloat16: as stored" in text and "WARNING" not in text


def test_the_banner_tells_what_a_wide_door_means_and_never_a_key():
    text = banner_of(1000, 16, host="0.0.0.0", ssl_certfile="c", ssl_keyfile="k", admin_api_keys=("boss-key",))
    assert "https://127.0.0.1:8000/v1" in text and "room for 1 session(s) of 1,000 tokens" in text
    assert "WARNING: anyone who can reach 0.0.0.0:8000" in text
    closed = banner_of(1000, 16, host="::", api_keys=("s3cret-key", "another"))
    assert "https" not in closed and "http://[::1]:8000/v1" in closed and "WARNING" not in closed
    assert "2 API key(s)" in closed and "ANTHROPIC_AUTH_TOKEN=KEY" in closed
    assert not [secret for secret in SECRETS if secret in text + closed]
