"""The engine as a whole: stops, faults that hit one request, aborts, counters."""

import logging
import random

import pytest
import torch
from engine_runs import drain, generate, make_core, merged

from openglm.config import variant
from openglm.config.engine import kv_token_bytes
from openglm.engine.request import GenerationRequest, SamplingParams
from openglm.engine.scheduling import SchedulingParams
from openglm.errors import ContextLengthError, QueueFullError, RequestError

GIB_PER_PAGE = 64 * kv_token_bytes(variant("tiny-air"), "float32") / 2**30
GREEDY = SamplingParams(max_tokens=12, temperature=0, logprobs=1)


def some_prompts(count: int, *, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(384) for _ in range(rng.randrange(1, 140))] for _ in range(count)]


def same(a, b) -> bool:
    return (a.token_ids, a.logprobs, a.finish_reason) == (b.token_ids, b.logprobs, b.finish_reason)


def test_stop_ids_end_a_request_and_are_not_shown():
    (plain,) = generate(make_core(), [[1, 2, 3]], GREEDY)
    stop = plain.token_ids[5]
    first = plain.token_ids.index(stop)
    for params in (SamplingParams(max_tokens=12, temperature=0, stop_token_ids=(stop,)), GREEDY):
        (output,) = generate(make_core(stop_ids=() if params.stop_token_ids else (stop,)), [[1, 2, 3]], params)
        assert (output.token_ids, output.finish_reason, output.stop_reason) == (plain.token_ids[:first], "stop", stop)
        assert output.stop_logprobs == (plain.logprobs[first] if params.logprobs is not None else None)
    (output,) = generate(make_core(stop_ids=(stop,)), [[1, 2, 3]], SamplingParams(max_tokens=12, temperature=0, ignore_eos=True))
    assert output.token_ids == plain.token_ids


class Numbers:
    """Token 7 is the text "<7>"."""

    def push(self, ids):
        return "".join(f"<{i}>" for i in ids)


@pytest.mark.parametrize("depth", [0, 3])
def test_stop_strings_end_a_request_with_the_token_that_completes_them(depth):
    (plain,) = generate(make_core(), [[1, 2, 3]], GREEDY)
    a, b = plain.token_ids[4:6]
    core = make_core(detokenizer=Numbers, num_speculative_tokens=depth)
    (output,) = generate(core, [[1, 2, 3]], SamplingParams(max_tokens=12, temperature=0, stop=(f"{a}><{b}", "never")))
    assert output.token_ids == plain.token_ids[:6]
    assert (output.finish_reason, output.stop_reason) == ("stop", f"{a}><{b}")


def test_max_tokens_and_the_context_end_a_request():
    core = make_core(max_model_len=64)
    outputs = generate(core, [[1] * 10, [1] * 60], [SamplingParams(max_tokens=3), SamplingParams(max_tokens=100)])
    assert [len(o.token_ids) for o in outputs] == [3, 4]
    assert [o.finish_reason for o in outputs] == ["length", "length"]


def test_wrong_requests_are_refused_and_leave_nothing_behind():
    core = make_core(max_num_seqs=1, max_queued_requests=1)
    for request, error in [
        (GenerationRequest("a", []), RequestError),
        (GenerationRequest("a", [384]), RequestError),
        (GenerationRequest("a", [1] * 512), ContextLengthError),
        (GenerationRequest("a", [1], SamplingParams(stop=("x",))), RequestError),
    ]:
        with pytest.raises(error):
            core.add(request)
    assert not core.has_work
    core.add(GenerationRequest("a", [1], GREEDY))
    with pytest.raises(RequestError, match="running already"):
        core.add(GenerationRequest("a", [1], GREEDY))
    core.add(GenerationRequest("b", [1], GREEDY))
    with pytest.raises(QueueFullError):
        core.add(GenerationRequest("c", [1], GREEDY))
    assert set(drain(core)) == {"a", "b"}


def test_requests_without_a_seed_follow_the_engines_seed():
    def run(seed):
        return [o.token_ids for o in generate(make_core(seed=seed), [[1, 2]] * 2, SamplingParams(max_tokens=8))]

    assert run(1) == run(1) != run(2)
    first, second = run(1)
    assert first != second


def test_nan_in_one_request_ends_it_alone_and_its_pages_are_wiped():
    prompts = some_prompts(8)
    prompts[3] = [5] * 130
    expected = generate(make_core(), prompts, GREEDY)
    core = make_core(kv_cache_tokens=1600)
    for i, prompt in enumerate(prompts):
        core.add(GenerationRequest(f"r{i}", prompt, GREEDY))
    outputs: dict[str, list] = {}
    poisoned = False
    while core.has_work:
        for output in core.step():
            outputs.setdefault(output.request_id, []).append(output)
        victim = next((s for s in core.scheduler.running if s.id == "r3" and s.num_output == 4), None)
        if victim is not None and not poisoned:
            poisoned = True
            core.runner.kv[0][victim.pages[2]] = float("nan")
    results = [merged(outputs[f"r{i}"]) for i in range(8)]
    assert poisoned
    assert (results[3].finish_reason, results[3].error.code) == ("error", "not_finite")
    assert all(same(results[i], expected[i]) for i in range(8) if i != 3)
    assert all(bool(layer.isfinite().all()) for layer in core.runner.kv)
    assert core.scheduler.check() is None and core.scheduler.pool.num_held == 0
    again = generate(core, prompts, GREEDY)
    assert all(same(a, b) for a, b in zip(again, expected, strict=True))


def test_nan_in_the_mtp_layer_costs_drafts_but_no_output_and_nothing_is_published():
    prompt = [7] * 100
    (expected,) = generate(make_core(num_speculative_tokens=0), [prompt], GREEDY)
    core = make_core(num_speculative_tokens=2)
    propose, layer = core.proposer.propose, core.runner.kv[-1]

    def damaged(settled, hidden):
        layer[settled[0].sequence.pages[0], :, :, 0] = float("nan")
        return propose(settled, hidden)

    core.proposer.propose = damaged
    (output,) = generate(core, [prompt], GREEDY)
    assert same(output, expected) and output.num_drafted == 2, "only the drafts made before the damage were tried"
    assert core.stats().pages_cached == 0
    core.proposer.propose = propose
    (output,) = generate(core, [prompt], GREEDY)
    assert same(output, expected) and output.num_drafted > 0, "the damage did not outlive its request"


@pytest.mark.parametrize("where", ["sampler", "stop"])
def test_an_exception_for_one_request_of_a_batch_leaves_the_others_alone(where, monkeypatch, caplog):
    prompts = some_prompts(16, seed=1)
    params = [SamplingParams(max_tokens=8, temperature=0.9, seed=i, logprobs=2) for i in range(16)]
    expected = generate(make_core(), prompts, params)
    core = make_core()
    if where == "sampler":
        sample = core.sampler.sample

        def failing(logits, rows, adjusted=None):
            if any(row.seed == 5 and row.position == len(prompts[5]) + 3 for row in rows):
                raise FloatingPointError("injected")
            return sample(logits, rows, adjusted)

        monkeypatch.setattr(core.sampler, "sample", failing)
    for i, (prompt, own) in enumerate(zip(prompts, params, strict=True)):
        core.add(GenerationRequest(f"r{i}", prompt, own))
    if where == "stop":
        monkeypatch.setattr(core._live["r5"][1], "check", lambda _: 1 / 0)
    with caplog.at_level(logging.CRITICAL):
        outputs = drain(core)
    results = [merged(outputs[f"r{i}"]) for i in range(16)]
    assert (results[5].finish_reason, results[5].error.code) == ("error", "internal")
    assert all(same(results[i], expected[i]) for i in range(16) if i != 5)
    assert core.stats().num_finished == {"error": 1, "length": 15}
    assert core.stats().pages_held == 0


@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_requests_aborted_at_any_point_leak_no_page_and_end_once(count):
    """Waiting, inside the prompt, while decoding with drafts, preempted, with pages in the host tier: every request is aborted."""
    rng = random.Random(2)
    core = make_core(
        num_speculative_tokens=2,
        num_tokens=4,
        max_model_len=192,
        kv_cache_tokens=512,
        kv_offloading_size=GIB_PER_PAGE * 8,
        max_num_seqs=4,
        max_num_batched_tokens=64,
    )
    live: list[str] = []
    states: dict[str, int] = {}
    for number in range(count):
        prompt = [rng.randrange(2)] * rng.randrange(1, 160)
        params = SamplingParams(max_tokens=100, temperature=0, ignore_eos=True)
        core.add(GenerationRequest(f"r{number}", prompt, params, scheduling=SchedulingParams(priority=rng.randrange(3))))
        live.append(f"r{number}")
        if number % 30 == 0:
            core.scheduler.preempt_all()
        while len(live) > rng.randrange(14):
            for _ in range(rng.randrange(2)):
                finished = [output.request_id for output in core.step() if output.finish_reason is not None]
                live = [name for name in live if name not in finished]
            if not live:
                break
            victim = live.pop(rng.randrange(len(live)))
            sequence = core._live[victim][0]
            if sequence.row < 0:
                state = "preempted" if sequence.num_preempted else "waiting"
            else:
                state = "decoding" if sequence.decoding else "prefilling"
            states[state] = states.get(state, 0) + 1
            output = core.abort(victim)
            assert output is not None and output.finish_reason == "abort"
            assert core.abort(victim) is None
            assert core.scheduler.check() is None
    for victim in live:
        core.abort(victim)
    assert not core.has_work and core.scheduler.check() is None
    stats = core.stats()
    assert sum(stats.num_finished.values()) == count and stats.num_finished["abort"] > 0.9 * count
    assert all(states.get(state, 0) > 0.002 * count for state in ("waiting", "prefilling", "decoding", "preempted")), states
    assert stats.pages_held == 0 and stats.pages_free + stats.pages_cached == stats.pages_total
    assert stats.num_host_pages_stored > 0 and stats.kv_accounting_errors == 0


def test_wrong_page_accounting_is_counted_and_repaired_without_a_crash(caplog):
    prompts = some_prompts(4, seed=3)
    expected = generate(make_core(), prompts, GREEDY)
    core = make_core()
    for i, prompt in enumerate(prompts):
        core.add(GenerationRequest(f"r{i}", prompt, GREEDY))
    outputs = {f"r{i}": [] for i in range(4)}
    for output in core.step():
        outputs[output.request_id].append(output)
    core.scheduler.pool._references[0] += 1
    with caplog.at_level(logging.CRITICAL):
        core.check_pages()
    for request_id, rest in drain(core).items():
        outputs[request_id] += rest
    assert all(same(merged(outputs[f"r{i}"]), expected[i]) for i in range(4))
    assert core.stats().kv_accounting_errors == 1


def test_second_turn_reuses_the_pages_of_the_first():
    core = make_core()
    prompt = some_prompts(1, seed=9)[0] + [1] * 100
    (first,) = generate(core, [prompt], GREEDY)
    (second,) = generate(core, [[*prompt, *first.token_ids, 3, 4, 5]], GREEDY)
    assert first.num_cached_tokens == 0
    assert second.num_cached_tokens == (len(prompt) + 11) // 64 * 64
    core.reset_prefix_cache()
    (third,) = generate(core, [prompt], GREEDY)
    assert third.num_cached_tokens == 0 and same(first, third)


def test_one_token_answers_fill_the_prefix_cache_too():
    core = make_core()
    generate(core, [[1] * 130], SamplingParams(max_tokens=1))
    (again,) = generate(core, [[1] * 130], SamplingParams(max_tokens=1))
    assert again.num_cached_tokens == 128


def test_step_times_and_counters_add_up():
    core = make_core()
    generate(core, [[1, 2, 3]] * 3, SamplingParams(max_tokens=5, temperature=0, ignore_eos=True))
    stats = core.stats()
    assert stats.num_prefill_tokens == 9 and stats.num_generated_tokens == 15
    assert all(getattr(stats.times, name) > 0 for name in stats.times.__struct_fields__)
    assert stats.num_steps == core.num_steps > 0
    assert stats.num_scheduled_sequences == 3 * stats.num_steps and stats.max_waiting == 3
    assert stats.num_scheduled_tokens == 9 + sum(stats.drafted_by_position) + 3 * (stats.num_steps - 1)


def test_a_model_without_mtp_layer_and_fast_mode_work(monkeypatch):
    core = make_core(deterministic=False)
    (output,) = generate(core, [[1, 2, 3]], GREEDY)
    (expected,) = generate(make_core(), [[1, 2, 3]], GREEDY)
    assert output.token_ids == expected.token_ids
    assert torch.allclose(
        torch.tensor([entry.logprob for entry in output.logprobs]), torch.tensor([entry.logprob for entry in expected.logprobs]), atol=1e-5
    )
