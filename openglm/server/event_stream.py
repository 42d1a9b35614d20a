"""Sending an answer while its client may leave: server-sent events, and one JSON body.

Both watch the connection beside the work. A client that goes away cancels the work, and with it the engine's request, so its
pages are free within a step. A silent stream sends a comment, or what its dialect has for that, now and then, because proxies cut
connections on which nothing moves during a long prefill. The response starts only when its first bytes are there, so that whatever
fails before then is still an HTTP status.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Sequence
from typing import Final, TypeVar

from starlette.types import Receive, Scope, Send

from openglm.server.direct_line import DirectLine

Result = TypeVar("Result")

_HEADERS: Final = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class ClientGone(Exception):
    """The client closed the connection before the answer was complete."""


class EventStream:
    """An ASGI response that sends `chunks` as they come, the first of which has been made already."""

    def __init__(
        self,
        first: bytes,
        chunks: AsyncGenerator[bytes],
        *,
        keep_alive_s: float,
        keep_alive: bytes = b": keep-alive\n\n",
        headers: Sequence[tuple[str, str]] = (),
        direct: DirectLine | None = None,
    ) -> None:
        """After `keep_alive_s` seconds of silence `keep_alive` is sent. `headers` come on top of the usual ones. `direct` sends what
        does not come as a chunk; it is opened when the response has begun."""
        self._keep_alive = keep_alive
        self._headers = [*_HEADERS, *((name.encode(), value.encode()) for name, value in headers)]
        self._first = first
        self._chunks = chunks
        self._keep_alive_s = keep_alive_s
        self._direct = direct
        self._sent_since_tick = False
        self._complete = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send everything; ends early, with the chunks closed, when the client leaves."""
        del scope
        pump = asyncio.create_task(self._pump(send))
        watch = asyncio.create_task(self._watch(receive, send, pump))
        try:
            await asyncio.wait((pump,))
        finally:
            pump.cancel()
            watch.cancel()
            await asyncio.wait((pump, watch))
            await self._chunks.aclose()
        if not pump.cancelled() and (error := pump.exception()) is not None:
            raise error

    async def _pump(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self._headers})
        if self._first:
            await send({"type": "http.response.body", "body": self._first, "more_body": True})
        if self._direct is not None:
            self._direct.open()
        async for chunk in self._chunks:
            self._sent_since_tick = True
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        self._complete = True
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _watch(self, receive: Receive, send: Send, pump: asyncio.Task[None]) -> None:
        gone = asyncio.create_task(_client_gone(receive))
        try:
            while not gone.done():
                await asyncio.wait((gone,), timeout=self._keep_alive_s)
                if not gone.done() and not self._was_heard() and not self._complete:
                    await send({"type": "http.response.body", "body": self._keep_alive, "more_body": True})
            pump.cancel()
        finally:
            gone.cancel()

    def _was_heard(self) -> bool:
        """Whether anything was sent since the last time."""
        heard, self._sent_since_tick = self._sent_since_tick, False
        if self._direct is not None:
            heard, self._direct.has_written = heard or self._direct.has_written, False
        return heard


async def unless_client_leaves(work: Awaitable[Result], receive: Receive) -> Result:
    """Await `work`; raises `ClientGone`, with the work cancelled, if the client leaves first."""
    task = asyncio.ensure_future(work)
    gone = asyncio.create_task(_client_gone(receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait((task,))


async def interleave(streams: Sequence[AsyncGenerator[Result]]) -> AsyncGenerator[tuple[int, Result]]:
    """What several streams yield, as it comes, with the number of its stream. They are begun in order; a failure of one, or leaving
    early, closes all."""
    if len(streams) == 1:
        async with contextlib.aclosing(streams[0]) as only:
            async for item in only:
                yield 0, item
        return
    waiting: dict[asyncio.Future[Result], int] = {asyncio.ensure_future(anext(s)): i for i, s in enumerate(streams)}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(done, key=waiting.__getitem__):
                index = waiting.pop(task)
                with contextlib.suppress(StopAsyncIteration):
                    item = task.result()
                    waiting[asyncio.ensure_future(anext(streams[index]))] = index
                    yield index, item
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        for stream in streams:
            await stream.aclose()


async def _client_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
