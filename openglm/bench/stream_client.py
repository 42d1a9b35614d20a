"""A client that costs as little as a client can: it sends one request over a socket of its own and notes when events arrive.

It parses neither HTTP nor JSON. An event of server-sent events ends with an empty line, and nothing else on this wire holds two line feeds
in a row: chunk framing has carriage returns, JSON escapes its own. So counting them counts events, however the bytes were cut.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Sequence
from typing import Any, cast
from urllib.parse import urlsplit

from openglm.errors import EngineError

_TAIL_BYTES = 2048  # of an answer: where its token counts and its end are
_TOKENS = re.compile(rb'"completion_tokens":(\d+)')
_CERTAIN = 100  # the largest bias there is: no other token is ever chosen
_NUM_OPENING_EVENTS = 2  # who speaks, and the first text


class StreamClient(asyncio.Protocol):
    """One streamed answer. `arrivals` holds a time (`time.perf_counter`) for every event, those of one read the same."""

    def __init__(self, request: bytes, on_speaking: Callable[[], None], on_end: Callable[[], None]) -> None:
        self.arrivals: list[float] = []
        self.num_tokens = 0
        self._request = request
        self._on_speaking = on_speaking
        self._on_end = on_end
        self._done = asyncio.get_running_loop().create_future()
        self._head, self._tail = b"", b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Count."""
        now = time.perf_counter()
        count = data.count(b"\n\n") + (data[:1] == b"\n" and self._tail[-1:] == b"\n")
        before = len(self.arrivals)
        self.arrivals += [now] * count
        if before < _NUM_OPENING_EVENTS <= before + count:
            self._on_speaking()
        if not self._head:
            self._head = data[:200]
        self._tail = data if len(data) > _TAIL_BYTES else (self._tail + data)[-_TAIL_BYTES:]
        if b"[DONE]" in self._tail[-40:] and not self._done.done():
            counts = _TOKENS.findall(self._tail)
            self.num_tokens = int(counts[-1]) if counts else 0
            self._on_end()
            self._done.set_result(None)
            assert self._transport is not None
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """An end without [DONE] is a failure."""
        if not self._done.done():
            self._done.set_exception(EngineError(f"a stream ended early: {self._head[:200]!r} {exc or ''}"))

    async def wait(self) -> None:
        """Until the answer is complete; raises `EngineError` when it never will be."""
        await self._done


def chat_body(prompt: str, tokens: int) -> dict[str, Any]:
    """A streamed chat request for exactly `tokens` tokens."""
    return {
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": tokens,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def chat_request(url: str, prompt: str, tokens: int, *, only: Sequence[int] = ()) -> bytes:
    """`chat_body` as the bytes of an HTTP/1.1 request. The answer consists of the tokens `only`, if there are any."""
    bias = {"logit_bias": dict.fromkeys(map(str, only), _CERTAIN)} if only else {}
    body = json.dumps(chat_body(prompt, tokens) | bias).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {urlsplit(url).netloc}\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


def stream_all(
    url: str, requests: Sequence[bytes], *, on_speaking: Callable[[], Any] = lambda: None, on_end: Callable[[], Any] = lambda: None
) -> list[StreamClient]:
    """Send all requests at once and read all answers. `on_speaking` is called when every answer has begun, `on_end` when the first of
    them is complete: in between all streams run."""
    import uvloop

    parts = urlsplit(url)
    num_speaking, num_ended = 0, 0

    def speaking() -> None:
        nonlocal num_speaking
        num_speaking += 1
        if num_speaking == len(requests):
            on_speaking()

    def ended() -> None:
        nonlocal num_ended
        num_ended += 1
        if num_ended == 1:
            on_end()

    async def connect(request: bytes) -> StreamClient:
        def client() -> StreamClient:
            return StreamClient(request, speaking, ended)

        return (await asyncio.get_running_loop().create_connection(client, parts.hostname or "", parts.port or 80))[1]

    async def run() -> list[StreamClient]:
        clients = [await connect(request) for request in requests]
        await asyncio.gather(*(client.wait() for client in clients))
        return clients

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run())
