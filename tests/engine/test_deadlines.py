"""Time limits of requests, by a clock that the test moves."""

import pytest
from engine_runs import drain, generate, merged, tiny_model

from openglm.config import variant
from openglm.config.engine import EngineConfig, Machine, resolve
from openglm.engine.core import EngineCore
from openglm.engine.request import GenerationRequest, SamplingParams
from openglm.engine.scheduling import SchedulingParams
from openglm.errors import DeadlineExceededError

LONG = SamplingParams(max_tokens=60, temperature=0, ignore_eos=True)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def core_with(clock, **settings):
    config, _ = resolve(
        EngineConfig(dtype="float32", max_model_len=512, seed=0, deterministic=True, **settings),
        variant("tiny-air"),
        Machine("cpu", 2, 4 << 30),
    )
    return EngineCore(tiny_model(), config, clock=clock)


def limited(name, timeout_s=None):
    return GenerationRequest(name, [1, 2, 3], LONG, scheduling=SchedulingParams(timeout_s=timeout_s))


def test_running_and_waiting_requests_end_with_a_typed_error_when_their_time_is_over():
    clock = Clock()
    core = core_with(clock, max_num_seqs=1)
    for request in (limited("running", 10), limited("waiting", 10), limited("patient")):
        core.add(request)
    core.step()
    clock.now += 9.9
    assert [o.request_id for o in core.step()] == ["running"]
    clock.now += 0.2
    outputs = {o.request_id: o for o in core.step()}
    assert {name: o.finish_reason for name, o in outputs.items()} == {"running": "error", "waiting": "error", "patient": None}
    assert outputs["running"].error.code == outputs["waiting"].error.code == "deadline_exceeded"
    assert isinstance(outputs["running"].error.to_error(), DeadlineExceededError)
    assert core.scheduler.pool.num_held == 1, "the pages went back at once"
    core.abort("patient")
    assert not core.has_work and core.stats().num_finished == {"error": 2, "abort": 1}


def test_the_engines_limit_is_for_requests_that_bring_none():
    clock = Clock()
    core = core_with(clock, request_timeout_s=5)
    for request in (limited("default"), limited("longer", 20), limited("shorter", 1)):
        core.add(request)
    ended = []
    for _ in range(4):
        clock.now += 2
        ended.append([o.request_id for o in core.step() if o.finish_reason == "error"])
    assert ended == [["shorter"], [], ["default"], []]
    assert merged(drain(core)["longer"]).finish_reason == "length"


def test_a_request_that_ran_out_of_time_keeps_its_prefix_for_the_next_try():
    clock = Clock()
    core = core_with(clock)
    prompt = [i % 50 for i in range(200)]
    core.add(GenerationRequest("a", prompt, LONG, scheduling=SchedulingParams(timeout_s=1)))
    core.step()
    clock.now += 2
    assert [o.error.code for o in core.step()] == ["deadline_exceeded"]
    assert core.scheduler.pool.num_held == 0 and not core.has_work
    (again,) = generate(core, [prompt], SamplingParams(max_tokens=2))
    assert (again.num_cached_tokens, again.cache_outcome) == (192, "full")


@pytest.mark.parametrize("timeout_s", [0, -1, float("inf"), float("nan"), 1e9, "1", True])
def test_impossible_limits_are_refused(timeout_s):
    with pytest.raises(Exception, match="timeout_s"):
        SchedulingParams(timeout_s=timeout_s)
