"""KV pages and the prefix cache: which page holds what, who uses it, what may be thrown away. No tensors.

A page is 64 token slots in every layer. It is in exactly one state:

    free     nobody uses it and its content means nothing
    held     one or more live requests use it (reference count > 0)
    cached   nobody uses it, but its content is published under a key and may be used again

so `free + cached + held == total` holds at all times (`check` recomputes it from scratch). When the free list is empty, the
least recently used cached page is taken. A request releases its pages last first, so the tail of a prefix goes before its head.

With a host tier, a page that is taken this way is copied to host memory first, and a later request for its key gets it copied back
into a fresh page (`openglm.engine.host_tier`; the copies are returned by `take_transfers`).

A misuse (a page released twice, published by nobody) is a bug of ours but no reason to die: it is noted in `fault`, the pool goes on,
and the engine, which looks at `balanced` after every step, starts over with an empty pool.

Publishing is the owner's decision (the scheduler publishes only pages that are complete and whose request is healthy).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from openglm.engine.cache_history import CacheHistory
from openglm.engine.host_tier import HostTier, Transfer
from openglm.engine.page_key import PageKey


class PagePool:
    """All pages of one KV cache: free list, reference counts, published pages in LRU order, and the host tier behind them."""

    def __init__(self, num_pages: int, *, num_host_pages: int = 0) -> None:
        if num_pages < 1:
            raise ValueError("a page pool needs at least one page")
        self.num_pages = num_pages
        self.host = HostTier(num_host_pages)
        self.history = CacheHistory()
        self.num_evicted = 0
        self.fault: str | None = None
        """The first misuse that was noticed."""
        self.num_stored = 0
        self.num_loaded = 0
        self._references = [0] * num_pages
        self._free = list(range(num_pages - 1, -1, -1))  # popped from the end: low pages are reused first
        self._num_held = 0
        self._key_of: dict[int, PageKey] = {}
        self._page_of: dict[PageKey, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()  # published and unused, least recently used first
        self._transfers: list[Transfer] = []

    @property
    def num_free(self) -> int:
        """Pages without use and without content."""
        return len(self._free)

    @property
    def num_cached(self) -> int:
        """Published pages that nobody uses at present."""
        return len(self._idle)

    @property
    def num_held(self) -> int:
        """Pages in use."""
        return self._num_held

    @property
    def balanced(self) -> bool:
        """Whether nothing was noticed and free + cached + held == total; cheap enough to ask after every step."""
        return self.fault is None and len(self._free) + len(self._idle) + self._num_held == self.num_pages

    @property
    def num_available(self) -> int:
        """Pages that `allocate` could hand out now."""
        return len(self._free) + len(self._idle)

    def allocate(self, count: int) -> list[int] | None:
        """Take `count` pages, evicting cached ones if need be; None (and no change) when there are not enough."""
        if count > self.num_available:
            return None
        pages = []
        for _ in range(count):
            if not self._free:
                self._evict()
            page = self._free.pop()
            self._references[page] = 1
            pages.append(page)
        self._num_held += count
        return pages

    def num_known(self, keys: Sequence[PageKey]) -> int:
        """How many of these keys, from the first on without a gap, are cached on the device or in the host tier."""
        return next((i for i, key in enumerate(keys) if key not in self._page_of and key not in self.host), len(keys))

    def acquire(self, keys: Sequence[PageKey], count: int, *, spare: int = 0) -> list[int] | None:
        """`count` pages, of which the first hold what is cached under `keys` (all different, all known) and the rest are fresh.

        None (and no change) when that would leave fewer than `spare` available.
        """
        on_device = [self._page_of[key] for key in keys if key in self._page_of]
        self.share(on_device)
        missing = count - len(on_device)
        fresh: list[int] | None = None
        if missing + spare <= self.num_available:
            self.host.pin(key for key in keys if key not in self._page_of)
            fresh = self.allocate(missing)
            self.host.unpin()
        if fresh is None:
            self.release(on_device)
            return None
        unused = iter(fresh)
        cached = [self._page_of[key] if key in self._page_of else self._load(key, next(unused)) for key in keys]
        return [*cached, *unused]

    def could_acquire(self, keys: Sequence[PageKey], count: int, *, spare: int = 0) -> bool:
        """Whether `acquire` would succeed."""
        on_device = [self._page_of[key] for key in keys if key in self._page_of]
        unused = self.num_available - sum(page in self._idle for page in on_device)
        return count - len(on_device) + spare <= unused

    def share(self, pages: Iterable[int]) -> None:
        """Use pages that `find` named; they leave the LRU order until they are released."""
        for page in pages:
            if self._references[page] == 0:
                self._idle.pop(page, None)
                self._num_held += 1
            self._references[page] += 1

    def release(self, pages: Sequence[int]) -> None:
        """Give back one use of each page, in the order of a sequence; published pages become cached, others free."""
        for page in reversed(pages):
            count = self._references[page]
            if count < 1:
                self.fault = self.fault or f"page {page} is released more often than it was taken"
                continue
            self._references[page] = count - 1
            if count > 1:
                continue
            self._num_held -= 1
            if page in self._key_of:
                self._idle[page] = None
            else:
                self._free.append(page)

    def publish(self, page: int, key: PageKey, parent: PageKey) -> None:
        """Offer a held, complete page under `key`. The first page with a key wins; a second one stays private.

        `parent` is the key of the page before it in the chain, or the chain's root.
        """
        if self._references[page] < 1:
            self.fault = self.fault or f"page {page} is published by nobody"
            return
        if key not in self._page_of and page not in self._key_of:
            self._page_of[key] = page
            self._key_of[page] = key
            self.history.appear(key, parent)

    def unpublish(self, pages: Iterable[int]) -> None:
        """Let nobody find these held pages any more, nor their copies in the host tier; who uses them keeps them."""
        for page in pages:
            key = self._key_of.pop(page, None)
            if key is not None:
                del self._page_of[key]
                self.host.drop(key)
                self.history.withdraw(key)

    def find(self, key: PageKey) -> int | None:
        """The page published under `key`, or None."""
        return self._page_of.get(key)

    def is_published(self, page: int) -> bool:
        """Whether others may find the page."""
        return page in self._key_of

    def num_users(self, page: int) -> int:
        """How many live requests use the page."""
        return self._references[page]

    def forget(self) -> None:
        """Unpublish everything (weights changed, or the user asked); pages in use stay with their users."""
        self._free.extend(self._idle)
        self._idle.clear()
        self._key_of.clear()
        self._page_of.clear()
        self.host.clear()
        self.history.clear()

    def take_transfers(self) -> list[Transfer]:
        """The copies decided since the last call; to be carried out in this order before any page is written."""
        taken, self._transfers = self._transfers, []
        return taken

    def check(self, tables: Iterable[Sequence[int]]) -> str | None:
        """Recompute the accounting from the page tables of all live requests; a description of the first mismatch, or None."""
        if self.fault is not None:
            return self.fault
        counted = [0] * self.num_pages
        for table in tables:
            for page in table:
                if not 0 <= page < self.num_pages:
                    return f"a page table holds page {page}, which does not exist"
                counted[page] += 1
        if counted != self._references:
            page = next(p for p in range(self.num_pages) if counted[p] != self._references[p])
            return f"page {page} has {counted[page]} users in the page tables and reference count {self._references[page]}"
        held = sum(1 for count in counted if count)
        if held != self._num_held or len(self._free) + len(self._idle) + held != self.num_pages:
            return f"free {len(self._free)} + cached {len(self._idle)} + held {held} (counted {self._num_held}) is not {self.num_pages}"
        states = set(self._free) | self._idle.keys()
        if len(states) != len(self._free) + len(self._idle) or any(counted[page] for page in states):
            return "a page is in two states at once"
        if any(page not in self._key_of for page in self._idle) or len(self._key_of) != len(self._page_of):
            return "the tables of published pages disagree"
        return self.host.check() or self.history.check([*self._page_of, *self.host.keys()])

    def _evict(self) -> None:
        """Free the least recently used cached page; its content moves to the host tier if that takes it."""
        page, _ = self._idle.popitem(last=False)
        key = self._key_of.pop(page)
        del self._page_of[key]
        self._free.append(page)
        self.num_evicted += 1
        if key in self.host:
            return
        stored = self.host.store(key)
        if stored is None:
            self.history.evict(key)
            return
        self._transfers.append(Transfer("store", page, stored.slot))
        self.num_stored += 1
        if stored.dropped is not None and stored.dropped not in self._page_of:
            self.history.evict(stored.dropped)

    def _load(self, key: PageKey, page: int) -> int:
        """Bring a page back from the host tier; it is published at once, since the copy comes before anyone reads it."""
        self._transfers.append(Transfer("load", page, self.host.slot(key)))
        self.num_loaded += 1
        self._page_of[key] = page
        self._key_of[page] = key
        return page
