"""The HTTP layer and the application on a loopback port in the test's own event loop, over an engine that plays back outputs."""

import asyncio
import contextlib
import json
import socket
import ssl
from dataclasses import dataclass

from canned_engine import CannedEngine
from text_model import text_model

from openglm.config.server import ConnectionLimits, RequestLimits, ServerConfig
from openglm.server.app import build_app
from openglm.server.http_server import admin_listener, http_server
from openglm.server.service import Service

CHAT = "/v1/chat/completions"
BODY = json.dumps({"messages": [{"role": "user", "content": "Hi"}]}).encode()


@dataclass
class Answer:
    """One HTTP answer; `status` 0 is a connection that ended without one."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str:
        return json.loads(self.body)["error"]["code"]


class Server:
    """`service` and the raw way to it."""

    def __init__(self, service, port) -> None:
        self.service, self.port = service, port
        self._writers = []

    async def connect(self, **options):
        """A raw connection, closed with the server."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, **options)
        self._writers.append(writer)
        return reader, writer

    async def disconnect(self) -> None:
        """Close what `connect` opened."""
        for writer in self._writers:
            writer.transport.abort()
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                await writer.wait_closed()
        self._writers.clear()

    async def send(self, data: bytes, *, timeout: float = 10.0) -> Answer:
        """Send bytes on a connection of their own; the first answer to them."""
        reader, writer = await self.connect()
        try:
            writer.write(data)
            return await asyncio.wait_for(read_answer(reader), timeout)
        finally:
            writer.close()


@contextlib.asynccontextmanager
async def serving(engine=None, *, limits=None, connection_limits=None, **config):
    """A running server. `limits` and `connection_limits` are keyword arguments of theirs."""
    settings = ServerConfig(
        limits=RequestLimits(**(limits or {})), connection_limits=ConnectionLimits(**(connection_limits or {})), **config
    )
    service = Service(settings, text_model(), engine or CannedEngine([[65]]))
    service.engine_loaded(max_model_len=4000, max_num_seqs=4)
    with admin_listener(settings) as admin:
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)  # the kernel is not to swallow megabytes for a slow reader
        http = http_server(build_app(service), settings, service.census)
        running = asyncio.create_task(http.serve(sockets=[listener, *admin]))
        while not http.started:
            await asyncio.sleep(0)
        server = Server(service, listener.getsockname()[1])
        try:
            yield server
        finally:
            await server.disconnect()
            http.should_exit = True
            await running


async def read_answer(reader) -> Answer:
    """One answer from a connection, chunked or with a length."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return Answer(0, {}, b"")
    lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:] if line)}
    body = b""
    if headers.get("transfer-encoding") == "chunked":
        while size := int(await reader.readuntil(b"\r\n"), 16):
            body += await reader.readexactly(size)
            await reader.readexactly(2)
        await reader.readexactly(2)
    else:
        body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Answer(int(lines[0].split()[1]), headers, body)


def request(path=CHAT, body=BODY, *, method=None, headers=()) -> bytes:
    """A well-formed request."""
    method = method or ("POST" if body else "GET")
    given = dict(headers)
    lines = {"host": "127.0.0.1", **({"content-type": "application/json", "content-length": str(len(body))} if body else {}), **given}
    return f"{method} {path} HTTP/1.1\r\n".encode() + b"".join(f"{n}: {v}\r\n".encode() for n, v in lines.items()) + b"\r\n" + body
