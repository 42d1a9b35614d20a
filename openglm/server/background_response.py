"""A response that is made whether or not anybody listens, and can be listened to from any of its events on.

It holds a place among the requests in flight until it is over, so that draining waits for it and the queue stays bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

from openglm.server.exchange import Exchange, run_all
from openglm.server.refusal import refusal_of
from openglm.server.responses_response import ResponsesWire
from openglm.server.service import Service
from openglm.server.turn import PreparedTurn
from openglm.text.messages import Message


class BackgroundResponse:
    """One of them. `events` are kept only when the client asked for a stream; each is one server-sent event, in order of its number."""

    def __init__(
        self,
        service: Service,
        exchange: Exchange,
        turns: Sequence[PreparedTurn],
        wire: ResponsesWire,
        *,
        on_end: Callable[[BackgroundResponse], None],
    ) -> None:
        """Begins at once; raises `QueueFullError` when there is no place. `on_end` is called when nothing more will come."""
        self.wire = wire
        self.failure: dict[str, Any] | None = None
        """The response object of one that failed."""
        self.finished: tuple[dict[str, Any], Message] | None = None
        """The response object of one that was finished, and the model's turn."""
        self.events: list[bytes] = []
        self._service = service
        self._streams = exchange.stream
        self._on_end = on_end
        self._over = False
        self._grown = asyncio.Condition()
        self._place = contextlib.ExitStack()
        self._place.enter_context(service.traffic.admitted())
        self._task = asyncio.create_task(self._run(exchange, turns), name="background response")

    async def follow(self, first: int) -> AsyncGenerator[bytes]:
        """The events from number `first` on, as they come."""
        while True:
            async with self._grown:
                while not self._over and len(self.events) <= first:
                    await self._grown.wait()
            for event in self.events[first:]:
                yield event
                first += 1
            if self._over and first >= len(self.events):
                return

    async def _run(self, exchange: Exchange, turns: Sequence[PreparedTurn]) -> None:
        with self._place:
            try:
                await self._tell(self.wire.start())
                async with contextlib.aclosing(run_all(self._service, exchange, turns)) as steps:
                    async for index, step in steps:
                        await self._tell(self.wire.step(step, index))
            except Exception as error:
                refusal = refusal_of(error)
                self.failure = self.wire.failed(refusal)
                await self._tell(self.wire.error(refusal))
            finally:
                self._over = True
                self._on_end(self)
                async with self._grown:
                    self._grown.notify_all()

    async def _tell(self, events: bytes) -> None:
        if self._streams and events:
            async with self._grown:
                self.events += [event + b"\n\n" for event in events.split(b"\n\n")[:-1]]
                self._grown.notify_all()
