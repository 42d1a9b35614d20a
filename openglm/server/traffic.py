"""Who is being served: bounds on requests in flight, the hint when to come back, and the signal that all are done.

A request is in flight from its admission to the end of its answer, whether the engine runs it or still queues it. Their number is bounded,
and so is the sum of their prompts, which is what a few very long ones cost. The hint in `Retry-After` is the measured time between
completions: one place becomes free about that often.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from openglm.errors import QueueFullError

_SMOOTHING: Final = 0.2
_LONGEST_HINT_S: Final = 60.0


class Traffic:
    """Counts requests in and out. Single-threaded: belongs to the event loop."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.token_limit: int | None = None
        """Prompt tokens in flight; None: as many as come."""
        self.num_in_flight = 0
        self.num_tokens_in_flight = 0
        self.num_shed = 0
        self._interval_s = 1.0
        self._last_completion = time.monotonic()
        self._idle = asyncio.Event()
        self._idle.set()

    def refuse_if_full(self) -> None:
        """Raise `QueueFullError` when there is no place. Asked before a body is read, too: under overload most of the work is saying no."""
        if self.num_in_flight >= self.limit:
            self.num_shed += 1
            raise QueueFullError(f"{self.num_in_flight} requests are waiting or running already; try again soon", retry_after_s=self.hint())

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Hold one place; raises `QueueFullError` when there is none."""
        self.refuse_if_full()
        self.num_in_flight += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.num_in_flight -= 1
            now = time.monotonic()
            elapsed, self._last_completion = now - self._last_completion, now
            self._interval_s += _SMOOTHING * (elapsed - self._interval_s)
            if not self.num_in_flight:
                self._idle.set()

    @contextmanager
    def holding(self, num_tokens: int) -> Iterator[None]:
        """Count a prompt of an admitted request; raises `QueueFullError` when there are too many tokens already. One alone always fits."""
        if self.token_limit is not None and self.num_tokens_in_flight and self.num_tokens_in_flight + num_tokens > self.token_limit:
            self.num_shed += 1
            raise QueueFullError(
                f"prompts of {self.num_tokens_in_flight} tokens are waiting or running already; try again soon", retry_after_s=self.hint()
            )
        self.num_tokens_in_flight += num_tokens
        try:
            yield
        finally:
            self.num_tokens_in_flight -= num_tokens

    def hint(self) -> float:
        """Seconds after which a place is likely to be free."""
        return min(max(self._interval_s, 1.0), _LONGEST_HINT_S)

    async def wait_idle(self) -> None:
        """Return once nothing is in flight."""
        await self._idle.wait()
