"""Finished responses that a client may ask for again or continue: in memory, bounded, the least recently used forgotten first.

Ids are random numbers of 96 bits, so knowing one is the right to read it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from openglm.text.messages import Message


@dataclass(frozen=True)
class StoredResponse:
    """A response object as JSON, and the turns up to and with it."""

    body: bytes
    turns: tuple[Message, ...]
    items: tuple[dict[str, Any], ...] = ()
    """The items of its output, which have ids of their own."""
    events: tuple[bytes, ...] = ()
    """The server-sent events of one that was streamed in the background."""

    @property
    def num_bytes(self) -> int:
        """About how much memory it takes; turns shared with an earlier response count again."""
        return (
            2 * len(self.body)
            + sum(map(len, self.events))
            + sum(200 + len(turn.content) + len(turn.reasoning or "") for turn in self.turns)
        )


class ResponseStore:
    """Keeps at most `max_entries` responses of `max_bytes` in all. Safe to use from threads."""

    def __init__(self, *, max_entries: int = 1000, max_bytes: int = 64 << 20) -> None:
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._entries: OrderedDict[str, StoredResponse] = OrderedDict()
        self._items: dict[str, dict[str, Any]] = {}
        self._num_bytes = 0
        self._lock = threading.Lock()

    def put(self, response_id: str, response: StoredResponse) -> None:
        """Keep a response; others may be forgotten for it, and one that is larger than everything allowed is not kept."""
        with self._lock:
            self._entries[response_id] = response
            self._items |= {item["id"]: item for item in response.items}
            self._num_bytes += response.num_bytes
            while self._entries and (len(self._entries) > self._max_entries or self._num_bytes > self._max_bytes):
                self._forget(next(iter(self._entries)))

    def get(self, response_id: str) -> StoredResponse | None:
        """The response, which now counts as just used."""
        with self._lock:
            found = self._entries.get(response_id)
            if found is not None:
                self._entries.move_to_end(response_id)
            return found

    def item(self, item_id: str) -> dict[str, Any] | None:
        """An item of a stored response's output."""
        with self._lock:
            return self._items.get(item_id)

    def remove(self, response_id: str) -> bool:
        """Forget a response; whether it was there."""
        with self._lock:
            return self._forget(response_id)

    def _forget(self, response_id: str) -> bool:
        found = self._entries.pop(response_id, None)
        if found is None:
            return False
        self._num_bytes -= found.num_bytes
        for item in found.items:
            del self._items[item["id"]]
        return True
