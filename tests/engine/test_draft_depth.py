"""The depth policy in simulated worlds: near the best fixed depth, never far below no drafting, quick to notice change."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_decoding import World, fixed_rates, simulate

from openglm.engine.draft_costs import StepCosts
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


def changing(before: float, after: float) -> World:
    """A world in which acceptance is another one from step 1000 on."""
    changed = world(row=0.4, first=0.2, acceptance=[0.0] * 3)
    changed.acceptance = lambda i, t, j: before if t < 1000 else after
    return changed


def best_rate(acceptance: float) -> float:
    return max(fixed_rates(world(row=0.4, first=0.2, acceptance=[acceptance] * 3), DEPTHS, sequences=1, steps=1).values())


@pytest.mark.parametrize("seed", range(6))
def test_falling_acceptance_is_noticed_within_some_tens_of_steps(seed):
    before = simulate(changing(0.9, 0.02), AdaptiveDepth(3), sequences=1, steps=1000, skip=600, lifetime=10_000, seed=seed)
    assert before.rate >= 0.92 * best_rate(0.9)  # of 400 steps, so some of it is luck
    after = simulate(changing(0.9, 0.02), AdaptiveDepth(3), sequences=1, steps=1500, skip=1040, lifetime=10_000, seed=seed)
    assert after.rate >= 0.92 * best_rate(0.02)
    assert sum(after.depths[:200]) / 200 < 0.35


@pytest.mark.parametrize("seed", range(6))
def test_rising_acceptance_is_noticed_by_a_look(seed):
    """Which cannot come often where drafting does not pay: looks may cost one step in a hundred."""
    before = simulate(changing(0.02, 0.9), AdaptiveDepth(3), sequences=1, steps=1000, skip=600, lifetime=10_000, seed=seed)
    assert before.rate >= 0.95 * best_rate(0.02)
    after = simulate(changing(0.02, 0.9), AdaptiveDepth(3), sequences=1, steps=2000, skip=1600, lifetime=10_000, seed=seed)
    assert after.rate >= 0.92 * best_rate(0.9)


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
        if run.measures():
            run.observe_step(1, depth, 10, 1.0 + 5.0 * depth)
        if depth:
            run.observe_verified("a", 0, 1)
    assert run.rests()


def test_what_it_remembers_is_bounded():
    policy = AdaptiveDepth(2)
    for n in range(1, 400):
        policy.costs.add(n, 300 * n, 0, 1.0)
        policy.observe_verified(str(n), 1, 2)
        policy.forget(str(n))
    assert len(policy.costs) <= 128 and not policy._own


def test_steps_that_drafting_slowed_are_no_measure_of_steps_without():
    """One draft is worth 1.3 tokens and costs 1.4 steps; a step behind it takes half as long again, so a short look would favour it."""
    haunted = world(row=0.2, first=0.2, acceptance=[0.3, 0.05, 0.05])
    haunted.aftermath = 1.5
    rate, fixed = compare(haunted, 4)
    assert rate >= 0.96 * fixed[0]


def test_first_figures_make_the_first_choice_and_no_trial_is_needed():
    costs = StepCosts(3)
    for depth, seconds in enumerate((1.0, 2.5, 3.5, 4.5)):
        for _ in range(6):
            costs.add(4, 0, depth, seconds)
    policy = AdaptiveDepth(3, costs)
    names = [Candidate(str(i), 100) for i in range(4)]
    for _ in range(400):
        assert policy.rests() or policy.choose(names, 50) == [0] * 4, "not even drafts that are always right would pay"
        if policy.measures():
            policy.observe_step(4, 0, 50, 1.0)


def test_the_cost_of_what_was_never_measured_is_that_of_a_similar_situation():
    costs = StepCosts(2)
    assert costs.of(1, 0) is None
    for depth, seconds in enumerate((1.0, 1.5, 2.0)):
        costs.add(4, 0, depth, seconds)
    costs.add(8, 0, 0, 3.0)
    assert costs.of(8, 0) == pytest.approx([3.0, 4.5, 6.0])
    assert costs.num_measured(1, 16, 0) == 1 and costs.num_measured(1, 32, 0) == 0
