"""A time limit for clients that does not punish them for this process: a server that was stopped, or starved, for a while finds its timers
expired before it has read what arrived in time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

HELD_UP_S: Final = 0.25
"""A timer that fires this much after its time says that the process did not run."""
GRACE_S: Final = 1.0
"""What a client gets then: enough to read what lies in the socket."""


class Deadline:
    """Calls `expire` after `seconds`, and a moment later where this process was held up at that time."""

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float, expire: Callable[[], None]) -> None:
        self._loop = loop
        self._expire = expire
        self._due = loop.time() + seconds
        self._timer = loop.call_later(seconds, self._fire)

    def cancel(self) -> None:
        """It is kept."""
        self._timer.cancel()

    def _fire(self) -> None:
        now = self._loop.time()
        if now - self._due > HELD_UP_S:
            self._due = now + GRACE_S
            self._timer = self._loop.call_later(GRACE_S, self._fire)
        else:
            self._expire()
