"""The prefix cache through the whole engine: host tier, salts, weights, outcomes. Reused KV changes no bit."""

import random

import pytest
import torch
from engine_runs import drain, generate, make_core, merged

from openglm.config import variant
from openglm.config.engine import kv_token_bytes
from openglm.engine.llm import LLM
from openglm.engine.request import GenerationRequest, SamplingParams
from openglm.engine.scheduling import SchedulingParams
from openglm.errors import RequestError

GREEDY = SamplingParams(max_tokens=5, temperature=0, logprobs=2)
GIB_OF_40_PAGES = 40 * 64 * kv_token_bytes(variant("tiny-air"), "float32") / 2**30


def some_prompts(count, *, seed=0):
    rng = random.Random(seed)
    return [[rng.randrange(24) for _ in range(rng.randrange(130, 260))] for _ in range(count)]


def answers(outputs):
    return [(o.token_ids, o.logprobs) for o in outputs]


@pytest.mark.parametrize(("depth", "kv_cache_dtype"), [(0, "auto"), (2, "auto"), (1, "fp8")])
def test_pages_from_the_host_tier_give_the_same_tokens_and_logprobs(depth, kv_cache_dtype):
    """The device holds two of the ten prompts, so every second round comes from the host tier."""
    prompts = some_prompts(10)
    settings = {"num_speculative_tokens": depth, "num_tokens": 24, "kv_cache_dtype": kv_cache_dtype}
    expected = answers(generate(make_core(enable_prefix_caching=False, **settings), prompts, GREEDY))
    core = make_core(kv_cache_tokens=512, kv_offloading_size=GIB_OF_40_PAGES, **settings)
    assert core.config.num_host_pages >= 40
    assert answers(generate(core, prompts, GREEDY)) == expected
    again = generate(core, prompts, GREEDY)
    assert answers(again) == expected
    stats = core.stats()
    assert stats.num_host_pages_loaded > 20 and stats.num_host_pages_stored > 20
    assert all(o.num_cached_tokens == (len(p) - 1) // 64 * 64 for o, p in zip(again, prompts, strict=True))
    assert stats.cache_outcomes["full"] == 10 and stats.kv_accounting_errors == 0


def test_without_a_host_tier_the_same_prompts_are_evicted():
    prompts = some_prompts(10)
    core = make_core(kv_cache_tokens=512, num_tokens=24)
    generate(core, prompts, GREEDY)
    again = generate(core, prompts, GREEDY)
    assert {o.cache_outcome for o in again} == {"evicted"}
    assert core.stats().cache_outcomes == {"cold": 10, "evicted": 10}


def test_a_host_tier_of_few_pages_stays_within_them():
    prompts = some_prompts(6, seed=1)
    expected = answers(generate(make_core(num_tokens=24), prompts, GREEDY))
    core = make_core(kv_cache_tokens=512, kv_offloading_size=GIB_OF_40_PAGES / 13, num_tokens=24)
    for _ in range(3):
        assert answers(generate(core, prompts, GREEDY)) == expected
    stats = core.stats()
    assert 0 < stats.host_pages_used <= stats.host_pages_total <= 3
    assert core.scheduler.check() is None


def test_requests_with_different_salts_do_not_share():
    core = make_core()
    prompt = [5] * 130
    for name, salt, cached in (("a", "x", 0), ("b", "y", 0), ("c", "x", 128), ("d", "", 0)):
        core.add(GenerationRequest(name, prompt, GREEDY, scheduling=SchedulingParams(cache_salt=salt)))
        output = merged(drain(core)[name])
        assert (output.num_cached_tokens, output.cache_outcome) == (cached, "full" if cached else "cold")


def test_after_new_weights_under_a_new_version_no_old_kv_is_used():
    core = make_core()
    prompt = [5] * 130
    generate(core, [prompt], GREEDY)
    weight = core.runner.model.layers[0].self_attn.qkv_proj.weight
    before = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.mul_(1.5)
        core.set_weight_version(1)
        (changed,) = generate(core, [prompt], GREEDY)
        (expected,) = generate(make_core(), [prompt], GREEDY)
    finally:
        with torch.no_grad():
            weight.copy_(before)
    assert changed.num_cached_tokens == 0 and answers([changed]) == answers([expected])
    core.set_weight_version(0)
    (back,) = generate(core, [prompt], GREEDY)
    assert back.num_cached_tokens == 128 and answers([back]) == answers(generate(make_core(), [prompt], GREEDY))


def test_offline_results_tell_the_outcome_and_take_scheduling_per_prompt():
    llm = LLM.from_core(make_core(max_num_seqs=1))
    prompts = [[1] * 70, [1] * 70, [1] * 70]
    each = [SchedulingParams(priority=1), SchedulingParams(), SchedulingParams(skip_reading_prefix_cache=True, priority=2)]
    results = llm.generate(prompts, SamplingParams(max_tokens=1), scheduling=each)
    assert [r.cache_outcome for r in results] == ["full", "cold", "bypassed"]
    with pytest.raises(ValueError, match="scheduling params"):
        llm.generate(prompts, scheduling=each[:2])


@pytest.mark.parametrize(
    "wrong",
    [{"priority": 2**31}, {"priority": 1.5}, {"priority": True}, {"cache_salt": "x" * 257}, {"cache_salt": "\ud800"}, {"cache_salt": 1}],
)
def test_wrong_scheduling_params_name_their_field(wrong):
    with pytest.raises(RequestError, match=next(iter(wrong))) as caught:
        SchedulingParams(**wrong)
    assert caught.value.param == next(iter(wrong))
