"""The depth policy in simulated worlds: near the best fixed depth, never far below no drafting, quick to notice change."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_decoding import World, fixed_rates, simulate

from openglm.engine.draft_depth import AdaptiveDepth, Candidate, FixedDepth

DEPTHS = range(4)


def world(*, row: float, first: float, acceptance: list[float], noise: float = 0.1, spikes: float = 0.02, spread: float = 0.0) -> World:
    """`row` is what one draft for every sequence adds to a step of 1 second, `first` what a drafting pass takes."""
    return World(
        step_seconds=lambda n, drafts: (1 + 0.03 * n) * (1 + row * drafts / n),
        pass_seconds=lambda depth, n: first * (1 + 0.03 * n),
        acceptance=lambda i, t, j: min(max(acceptance[j] + (spread if i % 2 else -spread), 0.0), 0.99),
        noise=noise,
        spikes=spikes,
    )


def compare(world: World, sequences: int | Callable[[int], int], seed: int = 0) -> tuple[float, dict[int, float]]:
    """Tokens per second of the policy after its warm-up, and of every fixed depth."""
    rate = simulate(world, AdaptiveDepth(3), sequences=sequences, seed=seed, steps=2300, skip=300).rate
    return rate, fixed_rates(world, DEPTHS, sequences=sequences, steps=1 if isinstance(sequences, int) else 336)


@pytest.mark.parametrize(
    ("row", "first", "acceptance", "best"),
    [
        (0.5, 0.25, [0.2, 0.1, 0.1], 0),
        (0.3, 0.1, [0.85, 0.1, 0.05], 1),
        (0.2, 0.02, [0.8, 0.7, 0.1], 2),
        (0.02, 0.02, [0.9, 0.85, 0.8], 3),
    ],
)
@pytest.mark.parametrize("sequences", [1, 8])
def test_it_finds_the_best_fixed_depth_and_loses_less_than_three_percent(row, first, acceptance, best, sequences):
    rate, fixed = compare(world(row=row, first=first, acceptance=acceptance), sequences)
    assert max(fixed, key=fixed.__getitem__) == best
    assert rate >= 0.97 * fixed[best]


@pytest.mark.slow
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    row=st.floats(0, 1),
    first=st.floats(0.02, 0.5),
    acceptance=st.lists(st.floats(0.02, 0.95), min_size=3, max_size=3).map(lambda rates: sorted(rates, reverse=True)),
    sequences=st.sampled_from([1, 2, 4, 16]),
    seed=st.integers(0, 1000),
)
def test_it_is_near_the_best_fixed_depth_in_any_world(row, first, acceptance, sequences, seed):
    rate, fixed = compare(world(row=row, first=first, acceptance=acceptance, spikes=0.0), sequences, seed)
    assert rate >= 0.96 * max(fixed.values())  # 0.03 of the policy, the rest luck: acceptance is drawn
    assert rate >= 0.97 * fixed[0]


def test_where_drafting_cannot_pay_it_costs_only_its_probes():
    rate, fixed = compare(world(row=1.0, first=0.5, acceptance=[0.05, 0.05, 0.05], noise=0.3, spikes=0.05), 4)
    assert rate >= 0.97 * fixed[0]


def test_sequences_that_are_hard_to_guess_do_not_draft_though_others_do():
    uneven = world(row=0.5, first=0.05, acceptance=[0.5, 0.4, 0.3], spread=0.45)
    rate, fixed = compare(uneven, 8)
    assert rate > 1.08 * max(fixed.values()), "no depth for all is as good"


def test_falling_acceptance_is_noticed_within_some_tens_of_steps():
    falling = world(row=0.4, first=0.2, acceptance=[0.0] * 3)
    falling.acceptance = lambda i, t, j: 0.9 if t < 1000 else 0.02
    for seed in range(3):
        run = simulate(falling, AdaptiveDepth(3), sequences=1, steps=1500, lifetime=10_000, seed=seed)
        assert sum(run.depths[900:1000]) / 100 > 1.5
        assert sum(run.depths[1040:1240]) / 200 < 0.35


def test_rising_acceptance_is_noticed_by_a_probe():
    """Which cannot come often where drafting does not pay: they may cost one step in a hundred."""
    rising = world(row=0.4, first=0.2, acceptance=[0.0] * 3)
    rising.acceptance = lambda i, t, j: 0.02 if t < 1000 else 0.9
    for seed in range(3):
        run = simulate(rising, AdaptiveDepth(3), sequences=1, steps=1900, lifetime=10_000, seed=seed)
        assert sum(run.depths[900:1000]) / 100 < 0.35
        assert sum(run.depths[1600:]) / 300 > 1.5


def test_a_machine_that_slows_down_for_all_changes_nothing():
    shaky = world(row=0.5, first=0.25, acceptance=[0.6, 0.2, 0.1])
    fixed = fixed_rates(shaky, DEPTHS, sequences=4, steps=1)
    shaky.pace = lambda step: 1.0 if step // 100 % 2 else 1.6
    assert simulate(shaky, AdaptiveDepth(3), sequences=4, steps=2300, skip=300).rate >= 0.97 * max(fixed.values()) / 1.3


def test_a_changing_number_of_sequences_keeps_what_was_learned():
    rate, fixed = compare(world(row=0.3, first=0.1, acceptance=[0.85, 0.3, 0.1]), lambda t: 1 + t // 7 % 24)
    assert rate >= 0.97 * max(fixed.values())


def test_the_end_of_a_sequence_limits_its_depth():
    for policy in (FixedDepth(3), AdaptiveDepth(3)):
        assert max(policy.choose([Candidate("a", 1), Candidate("b", 0)], 10)) <= 1
    assert FixedDepth(2).choose([Candidate("a", 1), Candidate("b", 9)], 10) == [1, 2]


def test_it_rests_while_a_decision_against_drafts_holds():
    run = AdaptiveDepth(1)
    for _ in range(200):
        if not run.rests():
            (depth,) = run.choose([Candidate("a", 5)], 10)
        else:
            depth = 0
        run.observe_step(1, depth, 10, 1.0 + 5.0 * depth)
        if depth:
            run.observe_verified("a", 0, 1)
    assert run.rests()
    run.reset()
    assert not run.rests() and run.choose([Candidate("a", 5)], 10) == [1]


def test_what_it_remembers_is_bounded():
    policy = AdaptiveDepth(2)
    for n in range(1, 400):
        policy.observe_step(n, 0, 300 * n, 1.0)
        policy.observe_verified(str(n), 1, 2)
        policy.forget(str(n))
    assert len(policy._step_times) <= 128 and not policy._own
