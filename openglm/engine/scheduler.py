"""Who runs in the next step, with how many tokens. Policy only: no tensors, no clocks, no threads.

One step processes at most `max_num_batched_tokens` tokens. A prefill chunk, a decode token, and a decode token with drafts
behind it are the same thing: some next tokens of a sequence. Sequences are ranked by priority (lower first), then by arrival. Order
of service:

1. sequences that decode, by rank: a long prefill therefore never holds up running streams for more than one step;
2. running prefills, by rank, with what is left of the budget;
3. waiting requests, by rank, while a row and pages for their whole prompt are there.

The budget holds a token and its drafts for every row, and a sequence that still prefills uses a row without decoding, so at least
that much is left for the first of them in every step: prefills do not starve either. Nobody overtakes a waiting request of better
rank, however well it would fit.

Out of pages, the sequence of lowest rank is preempted: its pages go back, and it waits at its place in the queue to be recomputed.
Rank decides, so the first sequence always advances. A sequence preempted `max_preemptions` times is admitted again only
with all the pages it can ever need and is never chosen again, not even for an urgent one; so the number of preemptions of a
request is bounded, and since such a sequence needs nothing more and one longest request always fits the pool, nobody waits for
ever, except for an endless stream of requests with better priority.

Prefixes are shared between sequences of one cache salt and adapter under one version of the weights. A change of weights starts
an *epoch*: what runs goes on with the KV it has, but offers none of it any more, because part of it is of the old weights.

Every sequence that is added ends by exactly one `finish`, which gives its pages back. Deadlines are instants of a clock
that the caller owns: `expired` names the sequences to finish.
"""

from __future__ import annotations

import heapq
import math
from bisect import insort
from collections import deque
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import NamedTuple

from openglm.engine.cache_history import CacheOutcome
from openglm.engine.page_key import PageKey, root_key
from openglm.engine.pages import PagePool
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
    num_host_pages: int = 0
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

    def __init__(self, limits: SchedulerLimits) -> None:
        self.limits = limits
        self.pool = PagePool(limits.num_pages, num_host_pages=limits.num_host_pages)
        self.waiting: deque[Sequence] = deque()  # by rank
        self.running: list[Sequence] = []  # by rank
        self.weight_version = 0
        self._lookahead = 1 if limits.num_speculative_tokens else 0
        self._epoch = 0
        self._timed: dict[str, Sequence] = {}  # those that have a deadline
        self._rows = list(range(limits.max_num_seqs))
        self._num_admissions = 0
        self._plan: dict[str, Scheduled] = {}
        self._budget = 0
        self.reset_counters()

    def reset_counters(self) -> None:
        """Start counting anew."""
        self.num_preemptions = 0
        self.num_prompt_tokens_looked_up = 0
        self.num_prompt_tokens_cached = 0
        self.cache_outcomes: dict[CacheOutcome, int] = {}

    @property
    def has_work(self) -> bool:
        """Whether any sequence waits or runs."""
        return bool(self.running or self.waiting)

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence; a full queue raises `QueueFullError`."""
        if len(self.waiting) >= self.limits.max_queued_requests + max(0, self.limits.max_num_seqs - len(self.running)):
            raise QueueFullError(f"{len(self.waiting)} requests wait already; try again later")
        insort(self.waiting, sequence, key=_rank)
        if sequence.deadline < math.inf:
            self._timed[sequence.id] = sequence

    def expired(self, now: float) -> list[Sequence]:
        """The waiting and running sequences whose deadline has come; the caller finishes them."""
        return [sequence for sequence in self._timed.values() if sequence.deadline <= now]

    def schedule(self) -> list[Scheduled]:
        """Choose the next step's work and reserve its pages. Nothing is computed yet: `computed` is untouched."""
        self._plan = {}
        self._budget = self.limits.max_num_batched_tokens
        for decoding in (True, False):
            for sequence in [s for s in self.running if s.decoding is decoding]:
                if self._budget < 1:
                    break
                if sequence.row >= 0:  # not preempted by one before it a moment ago
                    self._grant(sequence)
        while self._budget > 0 and self._rows:
            candidate = next((s for s in self.waiting if not s.held), None)
            if candidate is None or not self._admit(candidate):
                break
            self.waiting.remove(candidate)
            self._grant(candidate)
        return list(self._plan.values())

    def reserve_ahead(self, sequences: Seq[Sequence]) -> bool:
        """Reserve what each of these running sequences needs for the token behind its next one, which is not known yet.

        False, and no change, when the step for those tokens cannot consist of them alone: because a waiting sequence could be admitted, or
        because there are not enough pages without preempting anyone.
        """
        if self._could_admit():
            return False
        slots = [self._slots(sequence, len(sequence.tokens) + 1) for sequence in sequences]
        missing = [-(-count // self.limits.page_size) - len(sequence.pages) for sequence, count in zip(sequences, slots, strict=True)]
        if sum(count for count in missing if count > 0) > self.pool.num_available:
            return False
        for sequence, count in zip(sequences, slots, strict=True):
            self._reserve(sequence, count)
        return True

    def publish(self, sequence: Sequence, valid: int) -> None:
        """Offer the sequence's complete pages among its first `valid` positions, whose KV is final in every layer, to others."""
        if not (self.limits.prefix_caching and sequence.healthy and sequence.epoch == self._epoch):
            return
        count = valid // self.limits.page_size
        if count <= sequence.num_published:
            return
        keys = self._keys(sequence, count)
        for index in range(sequence.num_published, count):
            self.pool.publish(sequence.pages[index], keys[index], keys[index - 1] if index else self._root(sequence))
        sequence.num_published = count

    def finish(self, sequence: Sequence) -> None:
        """Take a running or waiting sequence out for good and free its pages."""
        sequence.ended = True
        self._timed.pop(sequence.id, None)
        if sequence.row >= 0:
            self._stop(sequence)
        else:
            self.waiting.remove(sequence)

    def set_weight_version(self, version: int) -> None:
        """From now on the model's weights are those called `version`. Prefixes of other versions are not found until it returns."""
        if version == self.weight_version:
            return
        self.weight_version = version
        self._epoch += 1
        for sequence in self.waiting:
            sequence.keys = []

    def forget(self) -> None:
        """Drop every cached prefix, of all versions; what runs keeps its pages but offers none of them any more."""
        self.pool.forget()
        self._epoch += 1

    def preempt_all(self) -> None:
        """Send every running sequence back to the queue (to be recomputed)."""
        while self.running:
            self._preempt(self.running[-1])

    def rebuild(self) -> None:
        """Start over with an empty page pool after its accounting was found wrong; running sequences are recomputed."""
        for sequence in reversed(self.running):
            sequence.pages = []
            heapq.heappush(self._rows, sequence.row)
            sequence.row = -1
            self._wait_again(sequence)
        self.running = []
        self.pool = PagePool(self.limits.num_pages, num_host_pages=self.limits.num_host_pages)

    def check(self) -> str | None:
        """The accounting identity and every reference count, recomputed; a description of what is wrong, or None."""
        return self.pool.check(s.pages for s in self.running)

    def _grant(self, sequence: Sequence) -> None:
        """Plan as many pending tokens as the budget allows, preempting the last in rank while pages are short."""
        num_tokens = min(sequence.pending, self._budget)
        slots = self._slots(sequence, sequence.computed + num_tokens)
        while not self._reserve(sequence, slots):
            victim = next(s for s in reversed(self.running) if s.num_preempted < self.limits.max_preemptions)
            self._preempt(victim)
            if victim is sequence:
                return
        self._budget -= num_tokens
        self._plan[sequence.id] = Scheduled(sequence, num_tokens)

    def _slots(self, sequence: Sequence, length: int) -> int:
        """Slots to reserve for `length` processed tokens: a chained MTP draft writes its own KV behind those that are verified."""
        return min(length + max(0, self.limits.num_speculative_tokens - 1), sequence.max_total)

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
        reads, keys, count = self._first_pages(sequence)
        num_hits = pool.num_known(keys)
        outcome = pool.history.outcome(keys, num_hits) if reads else "bypassed"
        # Each running sequence may want a page soon; admitting into the last ones would only preempt again.
        pages = pool.acquire(keys[:num_hits], count, spare=len(self.running))
        if pages is None:
            return False
        sequence.pages = pages
        sequence.computed = num_hits * limits.page_size
        sequence.num_published = num_hits
        sequence.epoch = self._epoch
        if sequence.cache_outcome is None:
            sequence.cache_outcome = outcome
            sequence.num_cached = sequence.computed
            self.num_prompt_tokens_looked_up += sequence.num_prompt
            self.num_prompt_tokens_cached += sequence.computed
            self.cache_outcomes[outcome] = self.cache_outcomes.get(outcome, 0) + 1
        sequence.row = heapq.heappop(self._rows)
        self._num_admissions += 1
        sequence.admission = self._num_admissions
        insort(self.running, sequence, key=_rank)
        return True

    def _could_admit(self) -> bool:
        """Whether `schedule` would admit someone."""
        if not self._rows or not self.waiting:
            return False
        candidate = next((s for s in self.waiting if not s.held), None)
        if candidate is None:
            return False
        _, keys, count = self._first_pages(candidate)
        return self.pool.could_acquire(keys[: self.pool.num_known(keys)], count, spare=len(self.running))

    def _first_pages(self, sequence: Sequence) -> tuple[bool, list[PageKey], int]:
        """Of a waiting sequence: whether it looks for its prefix, the keys that it would use, and how many pages it starts with."""
        limits = self.limits
        protected = sequence.num_preempted >= limits.max_preemptions
        slots = sequence.max_total if protected else min(len(sequence.tokens) + limits.num_speculative_tokens, sequence.max_total)
        reads = limits.prefix_caching and not sequence.scheduling.skip_reading_prefix_cache and not sequence.scores_prompt
        keys = self._keys(sequence, (len(sequence.tokens) - 1) // limits.page_size) if reads else []
        return reads, keys, -(-slots // limits.page_size)

    def _root(self, sequence: Sequence) -> PageKey:
        return root_key(
            salt=sequence.scheduling.cache_salt,
            adapter=sequence.adapter,
            weight_version=self.weight_version,
            lookahead=self._lookahead,
        )

    def _keys(self, sequence: Sequence, count: int) -> list[PageKey]:
        return sequence.page_keys(count, page_size=self.limits.page_size, lookahead=self._lookahead, root=self._root(sequence))

    def _preempt(self, sequence: Sequence) -> None:
        planned = self._plan.pop(sequence.id, None)
        if planned is not None:
            self._budget += planned.num_tokens
        self._stop(sequence)
        sequence.num_preempted += 1
        self.num_preemptions += 1
        self._wait_again(sequence)

    def _wait_again(self, sequence: Sequence) -> None:
        """Back to its place in the queue, to be recomputed."""
        sequence.computed, sequence.num_published, sequence.drafts = 0, 0, []
        if sequence.epoch != self._epoch:
            sequence.keys = []  # they may be those of former weights
        insort(self.waiting, sequence, key=_rank)

    def _stop(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.pool.release(sequence.pages)
        sequence.pages = []
        heapq.heappush(self._rows, sequence.row)
        sequence.row = -1


def _rank(sequence: Sequence) -> tuple[int, int]:
    return sequence.rank
