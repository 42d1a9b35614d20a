"""Nobody waits for ever: streams get a token in every step, and prefills advance in every step."""

import pytest
from scheduler_simulation import Simulation, limits

from openglm.engine.scheduler import Scheduler

LONG = 600


def roomy(**changes):
    return limits(**{"num_pages": 4 * LONG // 4, "max_model_len": LONG + 100, "max_num_batched_tokens": 32, **changes})


@pytest.mark.parametrize("depth", [0, 3])
@pytest.mark.parametrize("priority", [0, -1])
def test_streams_get_a_token_in_every_step_while_a_long_prompt_is_processed(depth, priority):
    sim = Simulation(Scheduler(roomy(num_speculative_tokens=depth)))
    streams = [sim.add([1, 2, i], max_tokens=4 * LONG) for i in range(3)]
    sim.step()
    long = sim.add([5] * LONG, max_tokens=4, priority=priority)
    steps = 0
    while long.num_output == 0:
        before = [s.num_output for s in streams]
        plan = sim.step(right=steps % (depth + 1))
        steps += 1
        assert all(s.num_output > count for s, count in zip(streams, before, strict=True))
        assert sum(plan.values()) <= 32
        assert long.num_output or plan[long.id] >= 32 - 3 * (1 + depth), "and it gets all that the streams leave"
    assert steps <= -(-LONG // (32 - 3 * (1 + depth))) + 1


@pytest.mark.parametrize("depth", [0, 2])
def test_a_prompt_advances_even_if_the_budget_holds_no_more_than_the_streams_need(depth):
    """The tightest budget that is allowed: one token and its drafts for every row."""
    sim = Simulation(Scheduler(roomy(num_speculative_tokens=depth, max_num_batched_tokens=4 * (1 + depth))))
    for i in range(3):
        sim.add([1, 2, i], max_tokens=4 * LONG)
    for _ in range(6):
        sim.step(right=depth)
    long = sim.add([5] * 300, max_tokens=1)
    for _ in range(300 // (1 + depth) + 1):
        sim.step(right=depth)
    assert long.id in sim.ended


def test_many_long_prompts_are_served_in_turn_without_holding_up_a_stream():
    sim = Simulation(Scheduler(roomy(max_num_seqs=3)))
    stream = sim.add([1], max_tokens=4 * LONG)
    sim.step()
    prompts = [sim.add([2 + i] * 300, max_tokens=2) for i in range(20)]
    steps = 0
    while len(sim.ended) < 20:
        before = stream.num_output
        sim.step()
        steps += 1
        assert stream.num_output == before + 1
    assert sim.ended == [s.id for s in prompts], "first come, first served"
    assert steps < 20 * 300 / 31 + 20


def test_short_requests_do_not_overtake_a_long_one_for_ever():
    """The long one needs most of the pages; admitting every small request that fits would keep them from ever being free."""
    sim = Simulation(Scheduler(limits(max_num_batched_tokens=64, prefix_caching=False)))
    for _ in range(3):
        sim.add([1] * 8, max_tokens=20)
    sim.step()
    long = sim.add([2] * 60, max_tokens=1)
    for _ in range(40):
        sim.add([1] * 8, max_tokens=20)
    for _ in range(60):
        sim.step()
    assert long.id in sim.ended
