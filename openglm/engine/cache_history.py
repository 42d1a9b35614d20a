"""Why a cached prefix ended where it did. Remembers the shape of the prefix cache and, for a while, what was evicted. No tensors.

The outcomes, of which every admitted request has exactly one:

    full       every page that may come from the cache did (the last prompt token is always computed)
    short      the prompt has no complete page in front of its last token
    cold       its first page is not known under the request's salt, adapter and weights
    diverged   the pages before are known, and the cache goes on with other tokens
    extended   the pages before are known, and the cache knows nothing behind them: the usual next turn of a conversation
    evicted    the next page was known and had to make room since
    bypassed   the cache was not asked: caching is off, or the request did not want it

"Known" means findable on the device or in the host tier. Memory is bounded: one entry per known page, and the `NUM_REMEMBERED` latest
evictions; an older eviction reads as cold, extended or diverged. Nothing is ever said about pages under another salt.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Literal

from openglm.engine.page_key import PageKey

CacheOutcome = Literal["full", "short", "cold", "diverged", "extended", "evicted", "bypassed"]

NUM_REMEMBERED = 16_384


class CacheHistory:
    """Known keys with their parents, and recently evicted keys."""

    def __init__(self, num_remembered: int = NUM_REMEMBERED) -> None:
        self._num_remembered = num_remembered
        self._parent_of: dict[PageKey, PageKey] = {}
        self._num_children: dict[PageKey, int] = {}
        self._evicted: OrderedDict[PageKey, None] = OrderedDict()  # oldest first

    def appear(self, key: PageKey, parent: PageKey) -> None:
        """A page becomes known as a successor of `parent`."""
        if key not in self._parent_of:
            self._parent_of[key] = parent
            self._num_children[parent] = self._num_children.get(parent, 0) + 1
            self._evicted.pop(key, None)

    def evict(self, key: PageKey) -> None:
        """A known page had to leave the last tier it was in."""
        self.withdraw(key)
        self._evicted[key] = None
        if len(self._evicted) > self._num_remembered:
            self._evicted.popitem(last=False)

    def withdraw(self, key: PageKey) -> None:
        """A known page is offered no longer."""
        parent = self._parent_of.pop(key)
        left = self._num_children.pop(parent) - 1
        if left:
            self._num_children[parent] = left

    def clear(self) -> None:
        """Nothing is known, and nothing was ever."""
        self._parent_of.clear()
        self._num_children.clear()
        self._evicted.clear()

    def outcome(self, keys: Sequence[PageKey], num_hits: int) -> CacheOutcome:
        """Why only the first `num_hits` of a prompt's pages `keys` were found."""
        if not keys:
            return "short"
        if num_hits == len(keys):
            return "full"
        if keys[num_hits] in self._evicted:
            return "evicted"
        if num_hits == 0:
            return "cold"
        return "diverged" if keys[num_hits - 1] in self._num_children else "extended"

    def check(self, known: Iterable[PageKey]) -> str | None:
        """Compare with the keys that are really findable; a description of the first mismatch, or None."""
        counted: dict[PageKey, int] = {}
        for parent in self._parent_of.values():
            counted[parent] = counted.get(parent, 0) + 1
        if self._parent_of.keys() != set(known) or counted != self._num_children:
            return "the history of the prefix cache disagrees with its pages"
        if len(self._evicted) > self._num_remembered or not self._evicted.keys().isdisjoint(self._parent_of):
            return "a page is known and evicted at once, or too many evictions are remembered"
        return None
