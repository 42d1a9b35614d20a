"""What a connection may cost: every bound of the HTTP layer, from the socket's side."""

import asyncio
import json
import socket
import ssl
import subprocess

import httpx
import pytest
from bounded_server import BODY, CHAT, read_answer, request, serving
from canned_engine import CannedEngine

from openglm.config.server import ServerConfig
from openglm.engine.request import EngineOutput
from openglm.errors import ConfigError
from openglm.server.http_protocol import is_own_host
from openglm.server.http_server import admin_listener, listen

STREAM = request(body=json.dumps({**json.loads(BODY), "stream": True}).encode())
FAST = {"head_read_s": 0.2, "idle_s": 0.2, "write_stall_s": 0.2}


class Flood(CannedEngine):
    """Steps without end, each a large piece of text."""

    def __init__(self) -> None:
        super().__init__([])

    def generate(self, request):
        return _FloodStream(self, request.id)


class _FloodStream:
    def __init__(self, engine, request_id) -> None:
        self._engine, self._id = engine, request_id

    def __aiter__(self):
        return self

    def divert(self, sink) -> None:
        """Every output is there already."""

    async def __anext__(self):
        await asyncio.sleep(0)
        return EngineOutput(self._id, [65] * 5_000)

    async def aclose(self) -> None:
        self._engine.aborted.append(self._id)


async def closed(reader) -> bool:
    """Wait until the server ends the connection."""
    try:
        while await asyncio.wait_for(reader.read(1 << 16), 10):
            pass
    except ConnectionError:
        pass
    return True


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (request(headers={"x-long": "a" * 9000}), "headers_too_large"),
        (request(headers={f"x-{i}": "1" for i in range(120)}), "headers_too_large"),
        (request(headers={f"x-{i}": "a" * 7000 for i in range(6)}), "headers_too_large"),
        (request(path="/" + "a" * 9000), "headers_too_large"),
        (b"GET / HTTP/1.1\r\nx: " + b"a" * (20 << 20), "headers_too_large"),
        (b"GET /" + b"a" * (1 << 20), "headers_too_large"),
        (b"\r\n" * 20_000, "headers_too_large"),
    ],
    ids=["one line", "many lines", "together", "target", "20 MB that never end", "target that never ends", "blank lines"],
)
async def test_a_large_head_is_431_however_it_is_made(data, code):
    async with serving() as server:
        answer = await server.send(data)
        assert (answer.status, answer.code) == (431, code)
        assert answer.headers["connection"] == "close"
        assert server.service.census.cuts["head"] == 1
        assert (await server.send(request())).status == 200


async def test_heads_at_the_limits_pass():
    async with serving() as server:
        longest = 8 << 10
        assert (await server.send(request(headers={"x-a": "a" * (longest - 3)}))).status == 200
        assert (await server.send(request(headers={f"x-{i}": "1" for i in range(97)}))).status == 200


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
        request(headers={"transfer-encoding": "chunked"}),
        b"GET / HTTP/1.1\r\nx: a\x00b\r\n\r\n",
        b"GET / HTTP/1.1\r\nbad name: 1\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: -5\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
        b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nZZ\r\n",
        b"CONNECT localhost:443 HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nx: 1\r\n folded\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
async def test_what_is_no_request_is_400_in_our_words(data):
    async with serving() as server:
        answer = await server.send(data)
        assert (answer.status, answer.code) == (400, "invalid_http")
        assert (await server.send(request())).status == 200


async def test_slow_heads_are_closed_and_disturb_nobody():
    async with serving(connection_limits={**FAST, "idle_s": 60}) as server:
        slow = [await server.connect() for _ in range(30)]
        for i, (_, writer) in enumerate(slow):
            writer.write((b"", b"POST / HT", b"\r\n")[i % 3])
        assert (await server.send(request())).status == 200
        answers = [await asyncio.wait_for(read_answer(reader), 10) for reader, _ in slow]
        assert [answer.status for answer in answers] == [0, 408, 408] * 10
        assert all([await closed(reader) for reader, _ in slow])
        assert server.service.census.cuts["head_timeout"] == 30


async def test_a_slow_second_request_on_a_connection_is_closed_too():
    async with serving(connection_limits={**FAST, "idle_s": 60}) as server:
        for dribble in (b"GET /hea", b"\r\n"):
            reader, writer = await server.connect()
            writer.write(request("/health", b""))
            assert (await read_answer(reader)).status == 200
            writer.write(dribble)
            assert (await asyncio.wait_for(read_answer(reader), 10)).status == 408


async def test_an_idle_connection_is_closed():
    async with serving(connection_limits=FAST) as server:
        reader, writer = await server.connect()
        writer.write(request("/health", b""))
        assert (await read_answer(reader)).status == 200
        assert await closed(reader)


async def test_a_slow_body_is_408():
    async with serving(limits={"body_read_s": 0.2}) as server:
        answer = await server.send(request()[:-5])
        assert (answer.status, answer.code) == (408, "body_timeout")


async def test_the_rest_of_a_refused_body_may_neither_dribble_nor_flood():
    async with serving(api_keys=("secret",), limits={"body_read_s": 0.2, "body_bytes": 1 << 20}) as server:
        head = request(body=b"x" * (64 << 20))[: -(64 << 20)]
        reader, writer = await server.connect()
        writer.write(head)
        assert (await read_answer(reader)).status == 401
        assert await closed(reader)
        reader, writer = await server.connect()
        writer.write(head)
        assert (await read_answer(reader)).status == 401
        with pytest.raises(ConnectionError):
            for _ in range(64):
                writer.write(b"x" * (1 << 20))
                await writer.drain()


async def test_a_body_in_too_many_chunks_is_413():
    async with serving(connection_limits={"body_chunks": 100}) as server:
        head = request(body=b"", method="POST", headers={"content-type": "application/json", "transfer-encoding": "chunked"})
        assert (await server.send(head + b"1\r\n \r\n" * 101)).code == "too_many_chunks"
        chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in BODY) + b"0\r\n\r\n"
        assert (await server.send(head + chunks)).status == 200


async def test_a_sender_that_is_refused_in_the_middle_of_its_body_can_read_why():
    """The rest is taken in for a moment: a connection closed on unread data is reset, and the answer lost."""
    async with serving(limits={"body_bytes": 1 << 20}) as server:
        headers = {"content-type": "application/json", "transfer-encoding": "chunked"}
        reader, writer = await server.connect()
        writer.write(request(body=b"", method="POST", headers=headers))
        for _ in range(30):  # of 64 KiB each: past the limit, not past what is dropped
            writer.write(b"10000\r\n" + b" " * 65536 + b"\r\n")
            await writer.drain()
        answer = await read_answer(reader)
        assert (answer.status, answer.code) == (413, "body_too_large")
        assert await closed(reader)


async def test_trailers_are_no_headers():
    async with serving(api_keys=("secret",)) as server:
        head = request(body=b"", method="POST", headers={"content-type": "application/json", "transfer-encoding": "chunked"})
        whole = head + b"%x\r\n%b\r\n0\r\nx-api-key: secret\r\n\r\n" % (len(BODY), BODY)
        assert (await server.send(whole)).status == 401


async def test_a_wish_to_upgrade_is_ignored_and_the_body_arrives():
    wish = {"connection": "Upgrade, HTTP2-Settings", "upgrade": "h2c", "http2-settings": "AAMAAABk"}
    async with serving() as server:
        answer = await server.send(request(headers=wish))
        assert answer.status == 200 and b"choices" in answer.body
        reader, writer = await server.connect()
        whole = request(headers=wish)
        for i in range(0, len(whole), 7):
            writer.write(whole[i : i + 7])
            await writer.drain()
        assert (await read_answer(reader)).status == 200
        writer.write(request("/health", b""))
        assert (await read_answer(reader)).status == 200


async def test_requests_may_be_pipelined_and_garbage_behind_one_does_not_spoil_it():
    async with serving() as server:
        reader, writer = await server.connect()
        writer.write(request() * 3)
        assert [(await read_answer(reader)).status for _ in range(3)] == [200] * 3
    async with serving(Flood()) as server:
        reader, writer = await server.connect()
        writer.write(STREAM)
        await reader.readuntil(b"data:")
        writer.write(b"\x00garbage\r\n\r\n")
        rest = b""
        while piece := await asyncio.wait_for(reader.read(1 << 16), 10):
            rest = (rest + piece)[-1000:]
        assert b"HTTP/1.1" not in rest  # not a second status in the middle of the answer
        await asyncio.wait_for(server.service.traffic.wait_idle(), 10)


async def test_connections_are_bounded_in_all_and_by_peer():
    for name in ("connections", "connections_per_peer"):
        async with serving(connection_limits={name: 3}) as server:
            for _ in range(3):
                await server.connect()
            answer = await server.send(request())
            assert (answer.status, answer.code) == (503, "too_many_connections")
            assert answer.headers["retry-after"] == "1" and f"--limit-{name.replace('_', '-')}" in answer.body.decode()
            await server.disconnect()
            while server.service.census.num_open:
                await asyncio.sleep(0)
            assert (await server.send(request())).status == 200


async def test_a_reader_that_stops_reading_is_cut_and_its_request_aborted():
    async with serving(Flood(), connection_limits={"write_stall_s": 0.3}) as server:
        reader, writer = await server.connect()
        writer.write(STREAM)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.pause_reading()
        await asyncio.wait_for(server.service.traffic.wait_idle(), 20)
        assert server.service.census.cuts["stalled"] == 1
        assert len(server.service.engine.aborted) == 1


@pytest.mark.parametrize(
    ("host", "own"),
    [
        (b"localhost", True), (b"LOCALHOST:8000", True), (b"127.0.0.1:80", True), (b"[::1]:80", True), (b"192.168.1.5", True),
        (b"app.localhost:1", True), (b"localhost.", True), (b"box.lan:8000", True), (b"evil.example", False), (b"evil.example:8000", False),
        (b"localhost.evil.example", False), (b"127.0.0.1.evil.example", False), (b"localhost:8000:9", False), (b"", False),
        (b"[evil]", False), (b"localhost@evil.example", False), (b"\xff", False),
    ],
)  # fmt: skip
def test_only_local_names_addresses_and_named_hosts_are_ours(host, own):
    assert is_own_host(host, ("Box.lan",)) is own


async def test_a_rebound_name_is_refused_on_loopback_before_anything_else():
    async with serving(allowed_hosts=("box.lan",)) as server:
        for path in ("/health", CHAT, "/metrics"):
            answer = await server.send(request(path, headers={"host": "evil.example"}))
            assert (answer.status, answer.code) == (421, "unknown_host")
        assert (await server.send(request(headers={"host": "box.lan:1"}))).status == 200
    async with serving(host="0.0.0.0") as server:
        assert (await server.send(request(headers={"host": "glm.example"}))).status == 200


async def test_control_routes_are_there_for_administrators_only(tmp_path):
    path = tmp_path / "admin"
    async with serving(api_keys=("user",), admin_api_keys=("boss",), admin_socket=str(path)) as server:
        for headers, status in (({}, 401), ({"x-api-key": "user"}, 404), ({"authorization": "Bearer boss"}, 200)):
            assert (await server.send(request("/drain", b"", method="POST", headers=headers))).status == status
        assert (await server.send(request(headers={"x-api-key": "user"}))).status == 503
        assert path.stat().st_mode & 0o777 == 0o600
        transport = httpx.AsyncHTTPTransport(uds=str(path))
        async with httpx.AsyncClient(transport=transport, base_url="http://anything") as client:
            assert (await client.post("/resume")).json() == {"draining": False, "ready": True, "in_flight": 0}
            assert (await client.get("/v1/models")).status_code == 200
        assert (await server.send(request(headers={"x-api-key": "boss"}))).status == 200
    assert not path.exists()
    async with serving() as server:
        assert (await server.send(request("/drain", b"", method="POST"))).status == 404


def test_an_admin_socket_never_replaces_a_file(tmp_path):
    (tmp_path / "precious").write_text("x")
    with pytest.raises(ConfigError, match="no socket"), admin_listener(ServerConfig(admin_socket=str(tmp_path / "precious"))):
        pass
    with pytest.raises(ConfigError, match="cannot listen"), admin_listener(ServerConfig(admin_socket=str(tmp_path / "no" / "where"))):
        pass
    assert (tmp_path / "precious").read_text() == "x"


async def test_no_page_of_another_origin_may_call_unless_named():
    preflight = {
        "origin": "https://chat.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "content-type",
    }
    async with serving(api_keys=("secret",)) as server:
        answer = await server.send(request(body=b"", method="OPTIONS", headers=preflight))
        assert answer.status == 401 and not [name for name in answer.headers if name.startswith("access-control")]
    async with serving(api_keys=("secret",), allowed_origins=("https://chat.example",)) as server:
        answer = await server.send(request(body=b"", method="OPTIONS", headers=preflight))
        assert answer.status == 200 and answer.headers["access-control-allow-origin"] == "https://chat.example"
        assert "access-control-allow-credentials" not in answer.headers
        refused = await server.send(request(body=b"", method="OPTIONS", headers={**preflight, "origin": "https://evil.example"}))
        assert refused.status == 400 and "access-control-allow-origin" not in refused.headers
        own = await server.send(request(headers={"x-api-key": "secret", "origin": "https://chat.example"}))
        assert own.headers["access-control-allow-origin"] == "https://chat.example"
        foreign = await server.send(request(headers={"x-api-key": "secret", "origin": "https://evil.example"}))
        assert "access-control-allow-origin" not in foreign.headers
        assert (await server.send(request(headers={"origin": "https://chat.example"}))).status == 401


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
         "-keyout", "key.pem", "-out", "cert.pem"],
        cwd=folder, check=False, capture_output=True,
    )  # fmt: skip
    if made.returncode:
        pytest.skip("openssl is not here to make a certificate")
    return folder / "cert.pem", folder / "key.pem"


async def test_tls_serves_and_bounds_as_plain_http_does(certificate):
    cert, key = map(str, certificate)
    async with serving(ssl_certfile=cert, ssl_keyfile=key, connection_limits=FAST) as server:
        trust = ssl.create_default_context(cafile=cert)
        async with httpx.AsyncClient(verify=trust) as client:
            response = await client.post(f"https://127.0.0.1:{server.port}{CHAT}", json=json.loads(BODY))
            assert response.status_code == 200
            long = await client.get(f"https://127.0.0.1:{server.port}/health", headers={"x-a": "a" * 9000})
            assert long.status_code == 431
        reader, writer = await server.connect(ssl=trust)
        writer.write(b"GET /heal")
        assert (await asyncio.wait_for(read_answer(reader), 10)).status == 408


def test_a_certificate_that_cannot_be_used_is_told_at_the_start(certificate, tmp_path):
    cert, _ = map(str, certificate)
    (tmp_path / "key.pem").write_text("no key")
    for key in (tmp_path / "key.pem", tmp_path / "missing.pem"):
        with pytest.raises(ConfigError, match=r"--ssl-certfile .* cannot be used"):
            listen(ServerConfig(ssl_certfile=cert, ssl_keyfile=str(key), port=0))
    with pytest.raises(ConfigError, match="both"):
        ServerConfig(ssl_certfile=cert)
