"""A scheduler with a pretended model, which computes no numbers but knows what every slot of every page must hold.

The content of a slot is a fingerprint of all that its KV depends on: salt, adapter, weights, and the tokens up to its position (for
the MTP layer also the next one). Steps write fingerprints, host transfers copy them, and before each step every sequence's pages
must hold exactly what it computed or found in the cache. So a page that is reused too early, copied in the wrong order or found by
somebody whose prefix differs fails at once.
"""

import math
from dataclasses import dataclass, field

from openglm.engine.request import GenerationRequest, SamplingParams
from openglm.engine.scheduler import Scheduler, SchedulerLimits
from openglm.engine.scheduling import SchedulingParams
from openglm.engine.sequence import Sequence

PAGE = 4


def limits(**changes) -> SchedulerLimits:
    base = {
        "num_pages": 16,
        "page_size": PAGE,
        "max_model_len": 64,
        "max_num_seqs": 4,
        "max_num_batched_tokens": 16,
        "max_queued_requests": 100,
    }
    return SchedulerLimits(**{**base, **changes})


@dataclass
class Content:
    """What one sequence's pages must hold."""

    admission: int = 0
    slots: list[tuple[int, int]] = field(default_factory=list)  # per position: fingerprints of trunk and MTP entry


class Simulation:
    """Adds, steps and ends requests; the scheduler's promises are checked in every step."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.now = 0.0
        self.arrivals = 0
        self.live: dict[str, Sequence] = {}
        self.ended: list[str] = []
        self.num_forgotten = 0
        num_slots = scheduler.limits.num_pages * PAGE
        self._device: list[tuple[int, int] | None] = [None] * num_slots
        self._host: list[tuple[int, int] | None] = [None] * (scheduler.limits.num_host_pages * PAGE)
        self._contents: dict[str, Content] = {}
        self._meaning: dict[bytes, tuple] = {}  # of every key that was published since the last `forget`

    def add(self, prompt: list[int], max_tokens: int = 8, *, leader=None, deadline=math.inf, adapter="", **scheduling) -> Sequence:
        self.arrivals += 1
        request = GenerationRequest(
            f"r{self.arrivals}", prompt, SamplingParams(max_tokens=max_tokens), scheduling=SchedulingParams(**scheduling)
        )
        max_model_len = self.scheduler.limits.max_model_len
        sequence = Sequence(request, arrival=self.arrivals, max_model_len=max_model_len, seed=0, deadline=deadline, adapter=adapter)
        sequence.leader = leader
        self.scheduler.add(sequence)
        self.live[sequence.id] = sequence
        self._contents[sequence.id] = Content()
        return sequence

    def step(self, *, token: int = 1, right: int = 0) -> dict[str, int]:
        """One step at the present time: expire, schedule, transfer, compute, settle. Returns tokens by request."""
        scheduler, depth = self.scheduler, self.scheduler.limits.num_speculative_tokens
        for sequence in scheduler.expired(self.now):
            self.end(sequence)
        plan = scheduler.schedule()
        for kind, page, slot in scheduler.pool.take_transfers():
            source, target = (self._device, self._host) if kind == "store" else (self._host, self._device)
            taken, place = (page, slot) if kind == "store" else (slot, page)
            target[place * PAGE : (place + 1) * PAGE] = source[taken * PAGE : (taken + 1) * PAGE]
        self._check_plan(plan)
        for sequence, num_tokens in plan:
            self._read(sequence)
            self._write(sequence, num_tokens)
        for item in plan:
            sequence, num_tokens = item
            if not item.samples:
                sequence.computed += num_tokens
            else:
                kept = min(right, len(sequence.drafts)) + 1
                kept = min(kept, sequence.max_total - len(sequence.tokens))
                sequence.computed += num_tokens - len(sequence.drafts) - 1 + kept
                sequence.tokens += [token] * kept
                room = sequence.max_total - len(sequence.tokens)
                sequence.drafts = [token] * max(0, min(depth, room - 1))
                assert sequence.decoding
            self._settle(sequence)
            if item.samples:
                self._publish(sequence)
                if len(sequence.tokens) == sequence.max_total:
                    self.end(sequence)
        return {item.sequence.id: item.num_tokens for item in plan}

    def end(self, sequence: Sequence) -> None:
        self.scheduler.finish(sequence)
        del self.live[sequence.id], self._contents[sequence.id]
        self.ended.append(sequence.id)

    def damage(self, sequence: Sequence) -> None:
        """Something not finite was seen in this sequence: it goes on here, but its pages may never be found again."""
        sequence.healthy = False
        self.scheduler.pool.unpublish(sequence.pages)

    def forget(self) -> None:
        """The weights changed without a version: everything cached is worthless."""
        self.num_forgotten += 1
        self._meaning = {}
        self.scheduler.forget()

    def drain(self, *, max_steps: int = 5000) -> None:
        """Step until every request has ended."""
        for _ in range(max_steps):
            if not self.live:
                break
            before = len(self.ended)
            assert self.step() or len(self.ended) > before, "work is left, so something runs"
            assert self.scheduler.check() is None
        assert not self.live and not self.scheduler.has_work
        assert self.scheduler.pool.num_held == 0

    def _check_plan(self, plan) -> None:
        scheduler, depth = self.scheduler, self.scheduler.limits.num_speculative_tokens
        assert sum(item.num_tokens for item in plan) <= scheduler.limits.max_num_batched_tokens
        rows = [item.sequence.row for item in plan]
        assert len(set(rows)) == len(rows) and all(0 <= row < scheduler.limits.max_num_seqs for row in rows)
        planned = {item.sequence.id for item in plan}
        assert all(s.id in planned for s in scheduler.running if s.decoding), "whoever decodes gets a token in every step"
        for queue in (scheduler.running, scheduler.waiting):
            assert [s.rank for s in queue] == sorted(s.rank for s in queue)
        for sequence, num_tokens in plan:
            assert not sequence.ended and sequence.deadline > self.now
            assert num_tokens > 0 and len(sequence.window(num_tokens)) == num_tokens
            reached = sequence.computed + num_tokens + max(0, depth - 1)
            assert len(sequence.pages) * PAGE >= min(reached, sequence.max_total), "every token of the step has its slot"

    def _read(self, sequence: Sequence) -> None:
        """What attention would read must be what the sequence computed itself, or what it would compute now."""
        content = self._contents[sequence.id]
        if content.admission != sequence.admission:
            content.admission = sequence.admission
            content.slots = self._fingerprints(sequence, 0, sequence.computed, None)
        found = [self._device[self._slot(sequence, p)] for p in range(sequence.computed)]
        assert found == content.slots[: sequence.computed], f"{sequence.id} reads what is not its own"

    def _write(self, sequence: Sequence, num_tokens: int) -> None:
        """The forward pass: trunk entries of all planned tokens, drafts included; whatever the MTP layer had there is void."""
        for p in range(sequence.computed, sequence.computed + num_tokens):
            self._device[self._slot(sequence, p)] = (0, 0)

    def _settle(self, sequence: Sequence) -> None:
        """What is settled holds true trunk and MTP entries."""
        content = self._contents[sequence.id]
        start = len(content.slots)
        content.slots += self._fingerprints(sequence, start, sequence.computed, content.slots[-1] if start else None)
        for p in range(start, sequence.computed):
            self._device[self._slot(sequence, p)] = content.slots[p]

    def _publish(self, sequence: Sequence) -> None:
        """What is offered to others must be what the present weights make of the tokens, all the way from the start."""
        before = sequence.num_published
        self.scheduler.publish(sequence, sequence.computed)
        if sequence.num_published > before:
            assert sequence.healthy
            content, offered = self._contents[sequence.id].slots, sequence.num_published * PAGE
            assert content[:offered] == self._fingerprints(sequence, 0, offered, None)
            for index in range(before, sequence.num_published):
                page = tuple(content[index * PAGE : (index + 1) * PAGE])
                assert self._meaning.setdefault(sequence.keys[index], page) == page, "one key stands for one content"

    def _fingerprints(self, sequence: Sequence, start: int, end: int, last: tuple[int, int] | None) -> list[tuple[int, int]]:
        """Of the positions from `start` on, computed with the present weights after an entry `last`."""
        weights = (self.scheduler.weight_version, self.num_forgotten)
        trunk = hash((sequence.scheduling.cache_salt, sequence.adapter)) if last is None else last[0]
        made = []
        behind = 0 if last is None else last[1]
        lookahead = self.scheduler.limits.num_speculative_tokens > 0
        for p in range(start, end):
            trunk = hash((trunk, sequence.tokens[p], weights))
            behind = hash((behind, trunk, sequence.tokens[p + 1])) if lookahead else 0
            made.append((trunk, behind))
        return made

    def _slot(self, sequence: Sequence, position: int) -> int:
        return sequence.pages[position // PAGE] * PAGE + position % PAGE
