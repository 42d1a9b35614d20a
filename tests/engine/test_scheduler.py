"""Scheduling policy, without any model: order, budgets, pages, preemption, and that every request ends exactly once."""

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openglm.engine.request import GenerationRequest, SamplingParams
from openglm.engine.scheduler import Scheduler, SchedulerLimits
from openglm.engine.sequence import Sequence
from openglm.errors import QueueFullError

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


class Simulation:
    """A scheduler with a pretended model: tokens are processed, drafts are right or wrong as told."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.arrivals = 0
        self.live: dict[str, Sequence] = {}
        self.ended: list[str] = []

    def add(self, prompt: list[int], max_tokens: int = 8) -> Sequence:
        self.arrivals += 1
        request = GenerationRequest(f"r{self.arrivals}", prompt, SamplingParams(max_tokens=max_tokens))
        sequence = Sequence(request, arrival=self.arrivals, max_model_len=self.scheduler.limits.max_model_len, seed=0)
        self.scheduler.add(sequence)
        self.live[sequence.id] = sequence
        return sequence

    def step(self, *, token: int = 1, right: int = 0) -> dict[str, int]:
        plan = self.scheduler.schedule()
        depth = self.scheduler.limits.num_speculative_tokens
        assert sum(item.num_tokens for item in plan) <= self.scheduler.limits.max_num_batched_tokens
        rows = [item.sequence.row for item in plan]
        assert len(set(rows)) == len(rows) and all(0 <= row < self.scheduler.limits.max_num_seqs for row in rows)
        for sequence, num_tokens in plan:
            assert num_tokens > 0 and len(sequence.window(num_tokens)) == num_tokens
            reached = sequence.computed + num_tokens + max(0, depth - 1)
            assert len(sequence.pages) * PAGE >= min(reached, sequence.max_total), "every token of the step has its slot"
        for item in plan:
            sequence, num_tokens = item
            if not item.samples:
                sequence.computed += num_tokens
                continue
            kept = min(right, len(sequence.drafts)) + 1
            kept = min(kept, sequence.max_total - len(sequence.tokens))
            sequence.computed += num_tokens - len(sequence.drafts) - 1 + kept
            sequence.tokens += [token] * kept
            room = sequence.max_total - len(sequence.tokens)
            sequence.drafts = [token] * max(0, min(depth, room - 1))
            assert sequence.decoding
            self.scheduler.publish(sequence, sequence.computed)
            if room == 0:
                self.end(sequence)
        return {item.sequence.id: item.num_tokens for item in plan}

    def end(self, sequence: Sequence) -> None:
        self.scheduler.finish(sequence)
        del self.live[sequence.id]
        self.ended.append(sequence.id)


def test_decodes_come_before_prefills_and_a_long_prompt_is_cut_to_the_budget():
    sim = Simulation(Scheduler(limits()))
    sim.add([1, 2, 3])
    assert sim.step() == {"r1": 3}
    sim.add(list(range(40)))
    assert sim.step() == {"r1": 1, "r2": 15}
    assert sim.step() == {"r1": 1, "r2": 15}
    assert sim.step() == {"r1": 1, "r2": 10}
    assert sim.step() == {"r1": 1, "r2": 1}


def test_drafts_are_verified_in_the_ordinary_step():
    sim = Simulation(Scheduler(limits(num_speculative_tokens=2)))
    sequence = sim.add([1, 2, 3])
    sim.step()
    assert sim.step(right=2) == {"r1": 3}
    assert sequence.num_output == 4


def test_no_more_sequences_run_than_there_are_rows():
    sim = Simulation(Scheduler(limits(max_num_seqs=2)))
    for _ in range(5):
        sim.add([1, 2])
    assert set(sim.step()) == {"r1", "r2"}
    assert len(sim.scheduler.waiting) == 3


def test_full_queue_refuses():
    sim = Simulation(Scheduler(limits(max_num_seqs=1, max_queued_requests=1)))
    sim.add([1])
    sim.add([1])
    with pytest.raises(QueueFullError):
        sim.add([1])


def test_short_of_pages_the_youngest_is_preempted_and_resumes():
    sim = Simulation(Scheduler(limits(num_pages=16, max_num_batched_tokens=64, prefix_caching=False)))
    old = sim.add(list(range(28)), max_tokens=30)
    young = sim.add(list(range(28)), max_tokens=30)
    while not young.num_preempted:
        sim.step()
    assert old.num_preempted == 0 and young in sim.scheduler.waiting and not young.pages
    output_before = young.num_output
    while sim.live:
        sim.step()
    assert young.num_output == 30 > output_before


def test_a_sequence_preempted_too_often_is_admitted_with_all_its_pages():
    sim = Simulation(Scheduler(limits(max_preemptions=0, prefix_caching=False)))
    sequence = sim.add([1, 2], max_tokens=50)
    sim.step()
    assert len(sequence.pages) == 13


def test_prefix_hit_skips_the_shared_pages_but_never_the_last_token():
    sim = Simulation(Scheduler(limits()))
    first = sim.add(list(range(12)), max_tokens=2)
    while first.id in sim.live:
        sim.step()
    again = sim.add(list(range(12)), max_tokens=2)
    longer = sim.add([*range(12), 50, 51], max_tokens=2)
    plan = sim.step()
    assert (again.num_cached, longer.num_cached) == (8, 12)
    assert plan == {again.id: 4, longer.id: 2}


def test_with_speculation_a_page_is_shared_only_if_the_next_token_agrees_too():
    sim = Simulation(Scheduler(limits(num_speculative_tokens=1)))
    first = sim.add([1, 2, 3, 4, 5], max_tokens=2)
    while first.id in sim.live:
        sim.step()
    differs = sim.add([1, 2, 3, 4, 9], max_tokens=2)
    agrees = sim.add([1, 2, 3, 4, 5, 6], max_tokens=2)
    sim.step()
    assert (differs.num_cached, agrees.num_cached) == (0, 4)


def test_unhealthy_sequences_publish_nothing():
    sim = Simulation(Scheduler(limits()))
    sick = sim.add(list(range(12)), max_tokens=4)
    sick.healthy = False
    while sick.id in sim.live:
        sim.step()
    again = sim.add(list(range(12)), max_tokens=2)
    sim.step()
    assert again.num_cached == 0 and sim.scheduler.pool.num_cached == 0


def test_rebuild_recomputes_everyone_with_a_fresh_pool():
    sim = Simulation(Scheduler(limits()))
    sequences = [sim.add(list(range(9)), max_tokens=5) for _ in range(3)]
    sim.step()
    sim.scheduler.pool._references[3] += 1
    assert sim.scheduler.check() is not None
    sim.scheduler.rebuild()
    assert sim.scheduler.check() is None
    while sim.live:
        sim.step()
    assert sim.ended == [s.id for s in sequences]


@pytest.mark.parametrize("changes", [{"num_pages": 15}, {"max_num_batched_tokens": 7, "num_speculative_tokens": 1}])
def test_limits_that_could_starve_someone_are_refused(changes):
    with pytest.raises(ValueError, match="max_"):
        limits(**changes)


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.lists(st.integers(0, 1), min_size=1, max_size=40), st.integers(1, 40)),
        st.tuples(st.just("step"), st.integers(0, 1), st.integers(0, 3)),
        st.tuples(st.just("abort"), st.integers(0, 30), st.just(0)),
        st.tuples(st.just("preempt"), st.just(0), st.just(0)),
    ),
    max_size=60,
)


@settings(max_examples=250, deadline=None)
@given(
    operations=OPERATIONS,
    depth=st.integers(0, 3),
    num_seqs=st.integers(1, 4),
    num_pages=st.integers(16, 24),
    budget=st.integers(16, 24),
    caching=st.booleans(),
    max_preemptions=st.integers(0, 2),
)
def test_no_page_leaks_budgets_hold_and_every_request_ends_once(operations, depth, num_seqs, num_pages, budget, caching, max_preemptions):
    scheduler = Scheduler(
        limits(
            num_speculative_tokens=depth,
            max_num_seqs=num_seqs,
            num_pages=num_pages,
            max_num_batched_tokens=budget,
            prefix_caching=caching,
            max_preemptions=max_preemptions,
        )
    )
    sim = Simulation(scheduler)
    forced: dict[str, int] = {}
    for name, a, b in operations:
        if name == "add":
            sim.add(a, b)
        elif name == "step":
            sim.step(token=a, right=b)
        elif name == "preempt":
            for sequence in scheduler.running:
                forced[sequence.id] = forced.get(sequence.id, 0) + 1
            scheduler.preempt_all()
        elif sim.live:
            sim.end(list(sim.live.values())[a % len(sim.live)])
        assert scheduler.check() is None
    everyone = list(sim.live.values())
    steps = 0
    while sim.live:
        progress = sum(s.num_output + s.computed for s in sim.live.values()), len(sim.live)
        plan = sim.step()
        assert plan, "work is left, so something runs"
        steps += 1
        assert steps < 5000, progress
        assert scheduler.check() is None
    assert sorted(sim.ended) == sorted({f"r{i + 1}" for i in range(sim.arrivals)})
    assert not scheduler.has_work and scheduler.pool.num_held == 0
    assert all(s.num_preempted <= max_preemptions + forced.get(s.id, 0) for s in everyone)


def test_policy_and_client_load_no_torch():
    code = "import sys, openglm.engine.scheduler, openglm.engine.client; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
