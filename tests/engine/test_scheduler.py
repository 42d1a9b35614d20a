"""Scheduling policy, without any model: order, budgets, pages, preemption, deadlines, and who shares prefixes with whom."""

import subprocess
import sys

import pytest
from scheduler_simulation import Simulation, limits

from openglm.engine.scheduler import Scheduler
from openglm.errors import QueueFullError


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


def test_policy_and_client_load_no_torch():
    code = "import sys, openglm.engine.scheduler, openglm.engine.client; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_urgent_requests_are_admitted_first_and_equal_ones_in_order_of_arrival():
    sim = Simulation(Scheduler(limits(max_num_seqs=1)))
    for priority in (0, 5, -1, 0, -1):
        sim.add([1], max_tokens=1, priority=priority)
    sim.drain()
    assert sim.ended == ["r3", "r5", "r1", "r4", "r2"]


def test_short_of_pages_the_least_urgent_gives_way_however_old():
    sim = Simulation(Scheduler(limits(num_pages=16, max_num_batched_tokens=64, prefix_caching=False)))
    unimportant = sim.add(list(range(28)), max_tokens=30, priority=1)
    urgent = sim.add(list(range(28)), max_tokens=30)
    while not unimportant.num_preempted:
        sim.step()
    assert urgent.num_preempted == 0 and urgent.row >= 0
    sim.drain()
    assert sim.ended == [urgent.id, unimportant.id]


def test_urgent_requests_cannot_preempt_one_request_more_often_than_the_bound():
    sim = Simulation(Scheduler(limits(max_preemptions=2, max_num_batched_tokens=64, prefix_caching=False)))
    unimportant = sim.add(list(range(20)), max_tokens=40, priority=9)
    for _ in range(12):
        sim.add(list(range(28)), max_tokens=30)
    sim.drain()
    assert unimportant.num_preempted <= 2


def test_deadlines_are_told_for_waiting_and_running_requests_alike():
    sim = Simulation(Scheduler(limits(max_num_seqs=1)))
    running, waiting, patient = sim.add([1], 30, deadline=5.0), sim.add([1], 30, deadline=6.0), sim.add([1], 2)
    sim.step()
    assert sim.scheduler.expired(4.9) == []
    assert sim.scheduler.expired(6.0) == [running, waiting]
    sim.now = 6.0
    sim.step()
    assert sim.ended == ["r1", "r2"] and sim.scheduler.expired(100.0) == [] and patient.row >= 0


@pytest.mark.parametrize("differs", [{"cache_salt": "other"}, {"adapter": "other"}])
def test_prefixes_are_shared_only_under_the_same_salt_and_adapter(differs):
    sim = Simulation(Scheduler(limits(max_num_seqs=1)))
    found = [sim.add(list(range(9)), 1, **own) for own in ({}, differs, {}, differs)]
    sim.drain()
    assert [(s.num_cached, s.cache_outcome) for s in found] == [(0, "cold"), (0, "cold"), (8, "full"), (8, "full")]


def test_a_new_version_of_the_weights_finds_nothing_and_the_old_one_everything_again():
    sim = Simulation(Scheduler(limits()))
    outcomes = []
    for version in (0, 1, 1, 0):
        sim.scheduler.set_weight_version(version)
        sequence = sim.add(list(range(9)), 1)
        sim.drain()
        outcomes.append(sequence.cache_outcome)
    assert outcomes == ["cold", "cold", "full", "full"]


def test_a_request_that_waited_for_pages_while_the_weights_changed_does_not_use_old_prefixes():
    sim = Simulation(Scheduler(limits(max_num_batched_tokens=64)))
    sim.add(list(range(9)), 1)
    sim.drain()
    large = sim.add([7] * 50, 4)
    sim.step()
    waiting = sim.add(list(range(9)), 1)
    sim.step()
    assert waiting.row < 0 and waiting.keys, "its prefix was looked up, but there was no room"
    sim.scheduler.set_weight_version(1)
    sim.end(large)
    sim.drain()
    assert (waiting.num_cached, waiting.cache_outcome) == (0, "cold")


@pytest.mark.parametrize("change", ["version", "forget"])
def test_a_request_that_saw_a_change_of_weights_offers_nothing_until_it_is_recomputed(change):
    sim = Simulation(Scheduler(limits()))
    sequence = sim.add(list(range(9)), max_tokens=30)
    sim.step()
    if change == "version":
        sim.scheduler.set_weight_version(1)
    else:
        sim.forget()
    for _ in range(8):
        sim.step()
    assert sequence.num_published == 2, "what it had offered before"
    sim.scheduler.preempt_all()
    for _ in range(4):
        sim.step()  # the simulation checks that nothing of the old weights is read
    assert sequence.num_published > 2
    sim.drain()


def test_every_admission_says_why_its_prefix_ended():
    sim = Simulation(Scheduler(limits(max_num_seqs=1)))
    prompts = {
        "cold": [*range(9)],
        "full": [*range(9)],
        "short": [1, 2, 3, 4],
        "diverged": [0, 1, 2, 3, 9, 9, 9, 9, 9],
        "extended": [*range(8), 1, 1, 1, 1, 1],
    }
    found = {name: sim.add(prompt, 1) for name, prompt in prompts.items()}
    found["bypassed"] = sim.add([*range(9)], 1, skip_reading_prefix_cache=True)
    sim.drain()
    assert {name: s.cache_outcome for name, s in found.items()} == {name: name for name in found}
    assert sim.scheduler.cache_outcomes == dict.fromkeys(found, 1)
    sim.add([7] * 60, 4)
    sim.drain()
    late = sim.add([*range(9)], 1)
    sim.drain()
    assert (late.cache_outcome, late.num_cached) == ("evicted", 0)


def test_with_a_host_tier_what_was_evicted_is_found_again():
    sim = Simulation(Scheduler(limits(max_num_seqs=1, num_host_pages=32)))
    sim.add([*range(40)], 1)
    sim.drain()
    sim.add([7] * 60, 4)
    sim.drain()
    late = sim.add([*range(40)], 1)
    sim.drain()
    assert (late.cache_outcome, late.num_cached) == ("full", 36)
    assert sim.scheduler.pool.num_loaded > 0
