"""The host tier: which evicted pages live on in host memory, and what must be copied for it. No tensors.

A page that the device's pool evicts is stored in one of a fixed number of slots and stays findable under its key. A hit
copies it back into a device page; the slot keeps its content, so that evicting the page once more costs no copy. The least recently
stored or loaded key goes first.

Stores and loads are only *recorded* here, as `Transfer`s in the order in which they were decided. Whoever owns the tensors
must carry them out in that order before the next forward pass. Until then no page changes, so each transfer finds
exactly the content it was decided for, even when one step stores a page, reuses it, and reuses the slot of another.

While an admission is being put together, the slots it will load from are pinned: the pages it evicts must not overwrite them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Literal, NamedTuple

from openglm.engine.page_key import PageKey


class Transfer(NamedTuple):
    """One page to copy, in every layer: "store" from device page to host slot, "load" from host slot to device page."""

    kind: Literal["store", "load"]
    page: int
    slot: int


class Stored(NamedTuple):
    """The slot a key was given, and the key that had to leave for it."""

    slot: int
    dropped: PageKey | None


class HostTier:
    """A bounded map from page keys to host slots in LRU order. Without slots it takes nothing."""

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self._free = list(range(num_slots - 1, -1, -1))
        self._slot_of: OrderedDict[PageKey, int] = OrderedDict()  # least recently used first
        self._pinned: frozenset[PageKey] = frozenset()

    def __contains__(self, key: PageKey) -> bool:
        return key in self._slot_of

    @property
    def num_used(self) -> int:
        """Slots that hold a page."""
        return len(self._slot_of)

    def keys(self) -> Iterable[PageKey]:
        """Every key that is stored."""
        return self._slot_of.keys()

    def slot(self, key: PageKey) -> int:
        """Where a stored key lies; it becomes the most recently used."""
        self._slot_of.move_to_end(key)
        return self._slot_of[key]

    def pin(self, keys: Iterable[PageKey]) -> None:
        """Keep these stored keys, and only these, until `unpin`."""
        self._pinned = frozenset(keys)
        for key in self._pinned:
            self._slot_of.move_to_end(key)

    def unpin(self) -> None:
        """Let every key leave again."""
        self._pinned = frozenset()

    def store(self, key: PageKey) -> Stored | None:
        """A slot for a key that is not stored yet, taken from the least recently used one if need be; None when no slot may be taken."""
        if self._free:
            slot, dropped = self._free.pop(), None
        else:
            dropped = next(iter(self._slot_of), None)
            if dropped is None or dropped in self._pinned:  # pinned keys are the most recent: if the oldest is pinned, all are
                return None
            slot = self._slot_of.pop(dropped)
        self._slot_of[key] = slot
        return Stored(slot, dropped)

    def drop(self, key: PageKey) -> None:
        """Forget a key, if it is stored."""
        slot = self._slot_of.pop(key, None)
        if slot is not None:
            self._free.append(slot)

    def clear(self) -> None:
        """Forget everything."""
        self._free += self._slot_of.values()
        self._slot_of.clear()

    def check(self) -> str | None:
        """Every slot is free or holds one key; a description of the first mismatch, or None."""
        if sorted([*self._free, *self._slot_of.values()]) != list(range(self.num_slots)):
            return f"host slots: free {len(self._free)} + used {len(self._slot_of)} are not each of {self.num_slots} once"
        return "host slots are still pinned" if self._pinned else None
