"""The scheduler under random operations: every promise of its docstring after every operation."""

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test
from scheduler_simulation import Simulation, limits

from openglm.engine.scheduler import Scheduler
from openglm.errors import QueueFullError

# Few beginnings, so that prefixes are often shared, and short tails, so that they part ways anywhere.
PROMPTS = st.builds(
    lambda pattern, length, tail: (pattern * 40)[:length] + tail,
    st.sampled_from([[1], [1, 1, 0]]),
    st.sampled_from([1, 4, 8, 9, 16, 33]),
    st.lists(st.integers(0, 1), max_size=3),
)


class SchedulerMachine(RuleBasedStateMachine):
    """Requests of all kinds come, run, are preempted, damaged, cancelled and expire, while weights change under them."""

    @initialize(
        depth=st.integers(0, 3),
        num_seqs=st.integers(1, 4),
        num_pages=st.integers(16, 20),
        num_host_pages=st.integers(0, 12),
        budget=st.integers(16, 24),
        caching=st.booleans(),
        max_preemptions=st.integers(0, 2),
        max_queued=st.integers(0, 20),
    )
    def start(self, depth, num_seqs, num_pages, num_host_pages, budget, caching, max_preemptions, max_queued):
        scheduler = Scheduler(
            limits(
                num_speculative_tokens=depth,
                max_num_seqs=num_seqs,
                num_pages=num_pages,
                num_host_pages=num_host_pages,
                max_num_batched_tokens=budget,
                prefix_caching=caching,
                max_preemptions=max_preemptions,
                max_queued_requests=max_queued,
            )
        )
        self.scheduler = scheduler
        self.sim = Simulation(scheduler)
        self.forced: dict[str, int] = {}
        self.everyone = []
        self.num_refused = 0

    @rule(
        prompt=PROMPTS,
        max_tokens=st.integers(1, 40),
        priority=st.integers(-1, 1),
        timeout=st.one_of(st.none(), st.integers(1, 30)),
        salt=st.sampled_from(["", "", "", "s"]),
        adapter=st.sampled_from(["", "", "", "a"]),
        skip=st.sampled_from([False, False, False, True]),
        data=st.data(),
    )
    def add(self, prompt, max_tokens, priority, timeout, salt, adapter, skip, data):
        leader = data.draw(st.sampled_from([None, *self.sim.live.values()]))
        deadline = {} if timeout is None else {"deadline": self.sim.now + timeout}
        waiting, running = len(self.scheduler.waiting), len(self.scheduler.running)
        room = self.scheduler.limits.max_queued_requests + self.scheduler.limits.max_num_seqs - running
        try:
            sequence = self.sim.add(
                prompt,
                max_tokens,
                leader=leader,
                adapter=adapter,
                priority=priority,
                cache_salt=salt,
                skip_reading_prefix_cache=skip,
                **deadline,
            )
        except QueueFullError:
            assert waiting >= room
            self.sim.arrivals -= 1
            self.num_refused += 1
            return
        assert waiting < room
        self.everyone.append(sequence)

    @rule(token=st.integers(0, 1), right=st.integers(0, 3), seconds=st.integers(0, 3))
    def step(self, token, right, seconds):
        self.sim.now += seconds
        running = [s for s in self.scheduler.running if s.decoding and s.deadline > self.sim.now]
        before = {s.id: (s.num_output, s.num_preempted) for s in running}
        self.sim.step(token=token, right=right)
        for sequence in running:
            num_output, num_preempted = before[sequence.id]
            assert sequence.num_output > num_output or sequence.num_preempted > num_preempted, "a stream waits only if preempted"

    @precondition(lambda self: self.scheduler.running)
    @rule()
    def reserve_ahead(self):
        going_on = [s for s in self.scheduler.running if s.decoding and len(s.tokens) + 1 < s.max_total]
        before, available = [list(s.pages) for s in going_on], self.scheduler.pool.num_available
        if self.scheduler.reserve_ahead(going_on):
            assert all(len(s.pages) * self.scheduler.limits.page_size > len(s.tokens) for s in going_on)
            assert all(s.pages[: len(pages)] == pages for s, pages in zip(going_on, before, strict=True))
        else:
            assert ([s.pages for s in going_on], self.scheduler.pool.num_available) == (before, available)

    @rule(times=st.integers(5, 15))
    def run(self, times):
        for _ in range(times):
            self.step(1, 1, 0)

    @precondition(lambda self: self.sim.live)
    @rule(data=st.data())
    def abort(self, data):
        self.sim.end(data.draw(st.sampled_from(list(self.sim.live.values()))))

    @rule()
    def preempt_all(self):
        for sequence in self.scheduler.running:
            self.forced[sequence.id] = self.forced.get(sequence.id, 0) + 1
        self.scheduler.preempt_all()
        assert self.scheduler.pool.num_held == 0

    @precondition(lambda self: self.scheduler.running)
    @rule(data=st.data())
    def damage(self, data):
        self.sim.damage(data.draw(st.sampled_from(self.scheduler.running)))

    @rule()
    def forget(self):
        self.sim.forget()

    @rule(version=st.integers(0, 1), recompute=st.booleans())
    def change_weights(self, version, recompute):
        self.scheduler.set_weight_version(version)
        if recompute:
            self.preempt_all()

    @rule()
    def rebuild(self):
        self.scheduler.rebuild()
        assert self.scheduler.pool.num_free == self.scheduler.pool.num_pages

    @invariant()
    def accounting_holds(self):
        assert self.scheduler.check() is None
        assert len(self.scheduler.running) <= self.scheduler.limits.max_num_seqs

    @invariant()
    def every_request_is_in_one_place(self):
        queued = [s.id for s in (*self.scheduler.running, *self.scheduler.waiting)]
        assert sorted(queued) == sorted(self.sim.live)
        assert not set(queued) & set(self.sim.ended)

    @invariant()
    def preemptions_are_bounded(self):
        bound = self.scheduler.limits.max_preemptions
        assert all(s.num_preempted <= bound + self.forced.get(s.id, 0) for s in self.everyone)

    @invariant()
    def pages_that_are_written_are_shared_with_nobody(self):
        for sequence in self.scheduler.running:
            own = sequence.pages[sequence.computed // self.scheduler.limits.page_size :]
            assert all(self.scheduler.pool.num_users(page) == 1 and not self.scheduler.pool.is_published(page) for page in own)

    @invariant()
    def outcomes_are_told(self):
        admitted = [s for s in self.everyone if s.admission]
        assert all(s.cache_outcome is not None for s in admitted)
        assert sum(self.scheduler.cache_outcomes.values()) == len(admitted)
        caching = self.scheduler.limits.prefix_caching
        bypassed = [s for s in admitted if not caching or s.scheduling.skip_reading_prefix_cache]
        assert all((s.cache_outcome == "bypassed") == (s in bypassed) for s in admitted)
        assert all(s.num_cached == 0 for s in bypassed)

    def teardown(self):
        if not hasattr(self, "sim"):
            return
        self.sim.drain()
        assert sorted(self.sim.ended) == sorted(s.id for s in self.everyone), "every request ends exactly once"
        self.accounting_holds()
        self.preemptions_are_bounded()


SchedulerMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestSchedulerMachine = SchedulerMachine.TestCase


@pytest.mark.slow
def test_ten_thousand_sequences_of_operations():
    profile = settings(max_examples=10_000, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(SchedulerMachine, settings=profile)
