"""Who runs in the next step, with how many tokens. Policy only: no tensors, no clocks, no threads.

One step processes at most `max_num_batched_tokens` tokens. A prefill chunk, a decode token, and a decode token with drafts
behind it are the same thing: some next tokens of a sequence. Order of service:

1. sequences that decode, oldest first: a long prefill therefore never holds up running streams for more than one step;
2. running prefills, oldest first, with what is left of the budget;
3. waiting requests, in order of arrival, while a row and pages for their whole prompt are there.

Out of pages, the youngest sequence is preempted: its pages go back, and it waits at the head of the queue to be recomputed. Age
decides, so the oldest sequence always advances. A sequence preempted `max_preemptions` times is admitted again only
with all the pages it can ever need and is never chosen again; so the number of preemptions of a request is bounded, and since
such a sequence needs nothing more and one longest request always fits the pool, nobody waits for ever.

Every sequence that is added ends by exactly one `finish` (or `abort`), which gives its pages back.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

from openglm.engine.pages import PagePool, root_key
from openglm.engine.sequence import Sequence
from openglm.errors import QueueFullError


@dataclass(frozen=True)
class SchedulerLimits:
    """The numbers that bound a step and the queue."""

    num_pages: int
    page_size: int
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_queued_requests: int
    num_speculative_tokens: int = 0
    prefix_caching: bool = True
    max_preemptions: int = 4

    def __post_init__(self) -> None:
        """Refuse limits with which a request could wait for ever."""
        if self.num_pages * self.page_size < self.max_model_len:
            raise ValueError(f"{self.num_pages} pages of {self.page_size} tokens hold no request of max_model_len {self.max_model_len}")
        if self.max_num_batched_tokens < self.max_num_seqs * (1 + self.num_speculative_tokens):
            raise ValueError("max_num_batched_tokens must hold one token and its drafts for every one of max_num_seqs sequences")


class Scheduled(NamedTuple):
    """`num_tokens` next tokens of a sequence, from its position `computed` on."""

    sequence: Sequence
    num_tokens: int

    @property
    def samples(self) -> bool:
        """Whether the newest known token is among them, so that a next token is chosen."""
        return self.sequence.computed + self.num_tokens >= len(self.sequence.tokens)


class Scheduler:
    """Waiting and running sequences and the pages they hold."""

    def __init__(self, limits: SchedulerLimits, *, salt: str = "") -> None:
        self.limits = limits
        self.pool = PagePool(limits.num_pages)
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # by arrival, oldest first
        self.num_preemptions = 0
        self.num_prompt_tokens_looked_up = 0
        self.num_prompt_tokens_cached = 0
        self._lookahead = 1 if limits.num_speculative_tokens else 0
        self._root = root_key(salt=salt, lookahead=self._lookahead)
        self._rows = list(range(limits.max_num_seqs))
        self._num_admissions = 0
        self._plan: dict[str, Scheduled] = {}
        self._budget = 0

    @property
    def has_work(self) -> bool:
        """Whether any sequence waits or runs."""
        return bool(self.running or self.waiting)

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence; a full queue raises `QueueFullError`."""
        if len(self.waiting) >= self.limits.max_queued_requests + max(0, self.limits.max_num_seqs - len(self.running)):
            raise QueueFullError(f"{len(self.waiting)} requests wait already; try again later")
        self.waiting.append(sequence)

    def schedule(self) -> list[Scheduled]:
        """Choose the next step's work and reserve its pages. Nothing is computed yet: `computed` is untouched."""
        self._plan = {}
        self._budget = self.limits.max_num_batched_tokens
        for decoding in (True, False):
            for sequence in [s for s in self.running if s.decoding is decoding]:
                if self._budget < 1:
                    break
                if sequence.row >= 0:  # not preempted by an older one a moment ago
                    self._grant(sequence)
        while self._budget > 0 and self._rows:
            candidate = next((s for s in self.waiting if not s.held), None)
            if candidate is None or not self._admit(candidate):
                break
            self.waiting.remove(candidate)
            self._grant(candidate)
        return list(self._plan.values())

    def publish(self, sequence: Sequence, valid: int) -> None:
        """Offer the sequence's complete pages among its first `valid` positions, whose KV is final in every layer, to others."""
        if not (self.limits.prefix_caching and sequence.healthy):
            return
        count = valid // self.limits.page_size
        if count <= sequence.num_published:
            return
        keys = self._keys(sequence, count)
        for index in range(sequence.num_published, count):
            self.pool.publish(sequence.pages[index], keys[index])
        sequence.num_published = count

    def finish(self, sequence: Sequence) -> None:
        """Take a running or waiting sequence out for good and free its pages."""
        sequence.ended = True
        if sequence.row >= 0:
            self._stop(sequence)
        else:
            self.waiting.remove(sequence)

    def preempt_all(self) -> None:
        """Send every running sequence back to the queue (to be recomputed)."""
        while self.running:
            self._preempt(self.running[-1])

    def rebuild(self) -> None:
        """Start over with an empty page pool after its accounting was found wrong; running sequences are recomputed."""
        for sequence in reversed(self.running):
            sequence.pages, sequence.num_published, sequence.computed, sequence.drafts = [], 0, 0, []
            heapq.heappush(self._rows, sequence.row)
            sequence.row = -1
            self.waiting.appendleft(sequence)
        self.running = []
        self.pool = PagePool(self.limits.num_pages)

    def check(self) -> str | None:
        """The accounting identity and every reference count, recomputed; a description of what is wrong, or None."""
        return self.pool.check(s.pages for s in self.running)

    def _grant(self, sequence: Sequence) -> None:
        """Plan as many pending tokens as the budget allows, preempting the youngest while pages are short."""
        num_tokens = min(sequence.pending, self._budget)
        # A chained MTP draft writes its own KV behind the verified tokens, so those slots are reserved too.
        ahead = max(0, self.limits.num_speculative_tokens - 1)
        slots = min(sequence.computed + num_tokens + ahead, sequence.max_total)
        while not self._reserve(sequence, slots):
            victim = next(s for s in reversed(self.running) if s.num_preempted < self.limits.max_preemptions)
            self._preempt(victim)
            if victim is sequence:
                return
        self._budget -= num_tokens
        self._plan[sequence.id] = Scheduled(sequence, num_tokens)

    def _reserve(self, sequence: Sequence, slots: int) -> bool:
        missing = -(-slots // self.limits.page_size) - len(sequence.pages)
        if missing > 0:
            pages = self.pool.allocate(missing)
            if pages is None:
                return False
            sequence.pages += pages
        return True

    def _admit(self, sequence: Sequence) -> bool:
        """Give a waiting sequence a row, the cached pages of its prefix and fresh pages for the rest of its tokens."""
        limits, pool = self.limits, self.pool
        protected = sequence.num_preempted >= limits.max_preemptions
        slots = sequence.max_total if protected else min(len(sequence.tokens) + limits.num_speculative_tokens, sequence.max_total)
        hits = self._cached_prefix(sequence)
        pool.share(hits)
        missing = -(-slots // limits.page_size) - len(hits)
        # Each running sequence may want a page soon; admitting into the last ones would only preempt again.
        headroom = len(self.running)
        pages = pool.allocate(missing) if pool.num_available >= missing + headroom else None
        if pages is None:
            pool.release(hits)
            return False
        sequence.pages = hits + pages
        sequence.computed = len(hits) * limits.page_size
        sequence.num_published = len(hits)
        if not sequence.num_preempted:
            sequence.num_cached = sequence.computed
            self.num_prompt_tokens_looked_up += sequence.num_prompt
            self.num_prompt_tokens_cached += sequence.computed
        sequence.row = heapq.heappop(self._rows)
        self._num_admissions += 1
        sequence.admission = self._num_admissions
        position = len(self.running)
        while position and self.running[position - 1].arrival > sequence.arrival:
            position -= 1
        self.running.insert(position, sequence)
        return True

    def _cached_prefix(self, sequence: Sequence) -> list[int]:
        if not self.limits.prefix_caching or sequence.scores_prompt:  # scoring needs the hidden state of every position
            return []
        pages: list[int] = []
        for key in self._keys(sequence, (len(sequence.tokens) - 1) // self.limits.page_size):
            page = self.pool.find(key)
            if page is None:
                break
            pages.append(page)
        return pages

    def _keys(self, sequence: Sequence, count: int) -> list[bytes]:
        return sequence.page_keys(count, page_size=self.limits.page_size, lookahead=self._lookahead, root=self._root)

    def _preempt(self, sequence: Sequence) -> None:
        planned = self._plan.pop(sequence.id, None)
        if planned is not None:
            self._budget += planned.num_tokens
        self._stop(sequence)
        sequence.computed, sequence.num_published, sequence.drafts = 0, 0, []
        sequence.num_preempted += 1
        self.num_preemptions += 1
        # Back to its place by age: in front of everything younger that waits.
        position = 0
        while position < len(self.waiting) and self.waiting[position].arrival < sequence.arrival:
            position += 1
        self.waiting.insert(position, sequence)

    def _stop(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.pool.release(sequence.pages)
        sequence.pages = []
        heapq.heappush(self._rows, sequence.row)
        sequence.row = -1
