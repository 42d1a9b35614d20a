"""HTTP/1.1 over raw sockets: send exactly these bytes, see exactly what comes back, leave at any moment."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

MAX_HEAD = 64 << 10


class Hang(Exception):
    """Nothing came within the time that a scenario allows."""


@dataclass
class Answer:
    """What came back. `status` 0: the connection ended without an answer."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    def error(self) -> dict:
        """The error object of a refusal; raises `ValueError` when the body holds none that a client could show."""
        value = json.loads(self.body)
        error = value.get("error") if isinstance(value, dict) else None
        if not isinstance(error, dict) or not isinstance(error.get("message"), str):
            raise ValueError("no error object with a message")
        if not isinstance(error.get("type", error.get("code")), str):  # Z.ai's errors have a code for a type
            raise ValueError("no error object with a type or a code")
        return error


@dataclass(frozen=True)
class Target:
    """A server under test."""

    url: str
    model: str = ""
    api_key: str = ""
    admin_key: str = ""
    """Key of the routes that only operators may use; none: they are left alone."""
    patience_s: float = 5.0
    """How long an answer to a short request may take before it counts as a hang."""

    @property
    def authority(self) -> str:
        return urlsplit(self.url).netloc

    @property
    def prefix(self) -> str:
        """A path in front of every route, usually none."""
        return urlsplit(self.url).path.rstrip("/").removesuffix("/v1")

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A new connection."""
        parts = urlsplit(self.url)
        tls = None
        if parts.scheme == "https":
            tls = ssl.create_default_context()
            tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE  # the server's own certificate is not what is tested
        return await asyncio.open_connection(
            parts.hostname, parts.port or (443 if tls else 80), ssl=tls, limit=1 << 20, happy_eyeballs_delay=None
        )

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """A connection that is cut off at the end, whatever state it is in."""
        reader, writer = await self.connect()
        try:
            yield reader, writer
        finally:
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def request(self, path: str, body: bytes | dict | None = None, *, method: str = "", headers: dict[str, str] | None = None) -> bytes:
        """The bytes of a well-formed request."""
        payload = json.dumps(body).encode() if isinstance(body, dict) else body
        lines = {"host": self.authority, "accept": "*/*"}
        if self.api_key:
            lines["authorization"] = f"Bearer {self.api_key}"
        if self.admin_key:
            lines["x-api-key"] = self.admin_key
        if payload is not None:
            lines |= {"content-type": "application/json", "content-length": str(len(payload))}
        lines |= headers or {}
        verb = method or ("GET" if payload is None else "POST")
        head = f"{verb} {self.prefix}{path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items()) + "\r\n"
        return head.encode("latin-1") + (payload or b"")

    async def send(self, data: bytes, *, patience_s: float | None = None) -> Answer:
        """Send bytes on a connection of their own; the whole answer. Raises `Hang`."""
        limit_s = self.patience_s if patience_s is None else patience_s
        async with self.connection() as (reader, writer):
            try:
                async with asyncio.timeout(limit_s):
                    with contextlib.suppress(ConnectionError):  # an early refusal may close while we still write
                        writer.write(data)
                        await writer.drain()
                    return await read_answer(reader)
            except TimeoutError:
                raise Hang(f"no whole answer within {limit_s:g} s") from None

    async def get(self, path: str) -> Answer:
        """GET a path."""
        return await self.send(self.request(path))

    async def post(self, path: str, body: dict, *, patience_s: float | None = None, headers: dict[str, str] | None = None) -> Answer:
        """POST JSON to a path."""
        return await self.send(self.request(path, body, headers=headers), patience_s=patience_s)


async def read_head(reader: asyncio.StreamReader) -> Answer:
    """Status and headers; interim answers (100) are skipped."""
    while True:
        try:
            raw = await reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            return Answer(0)
        lines = raw.decode("latin-1").split("\r\n")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:] if line)}
        status = int(lines[0].split()[1])
        if status >= 200:
            return Answer(status, headers)


async def body_pieces(reader: asyncio.StreamReader, head: Answer) -> AsyncGenerator[bytes]:
    """The body as it comes. Raises `asyncio.IncompleteReadError` or `ConnectionError` when it is cut off."""
    if head.headers.get("transfer-encoding", "").lower() == "chunked":
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            yield await reader.readexactly(size)
            await reader.readexactly(2)
        await reader.readuntil(b"\r\n")
    elif "content-length" in head.headers:
        yield await reader.readexactly(int(head.headers["content-length"]))
    else:
        while piece := await reader.read(1 << 16):
            yield piece


async def read_answer(reader: asyncio.StreamReader) -> Answer:
    """One whole answer. A body that is cut off makes it no answer (status 0)."""
    answer = await read_head(reader)
    try:
        answer.body = b"".join([piece async for piece in body_pieces(reader, answer)]) if answer.status else b""
    except (asyncio.IncompleteReadError, ConnectionError):
        return Answer(0)
    return answer


async def events(reader: asyncio.StreamReader, head: Answer) -> AsyncGenerator[str]:
    """The `data:` of every server-sent event; a comment is yielded as an empty string."""
    rest = b""
    async for piece in body_pieces(reader, head):
        rest += piece
        *blocks, rest = rest.split(b"\n\n")
        for block in blocks:
            data = [line[5:].strip() for line in block.split(b"\n") if line.startswith(b"data:")]
            yield b"\n".join(data).decode()
