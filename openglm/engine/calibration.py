"""The first figures of `draft_costs`: what steps cost at every depth, measured with made-up requests when an engine starts.

Measured in service, a depth that is not in use would have to be tried on somebody's request, and for long enough that the steps before
it do not count. Here each depth runs alone, for 1, 2, 4, ... sequences, until the time for it is used up. What the requests say does not
matter: a step costs the same whether drafts are right or wrong.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from openglm.config.engine import PAGE_SIZE
from openglm.engine.core import EngineCore
from openglm.engine.draft_costs import StepCosts
from openglm.engine.draft_depth import AdaptiveDepth, FixedDepth
from openglm.engine.request import GenerationRequest, SamplingParams

BUDGET_S = 0.5
_SETTLE_STEPS = 4
_MEASURED_STEPS = 6
_PROMPT_TOKENS = 16


def calibrate(core: EngineCore, *, budget_s: float = BUDGET_S, clock: Callable[[], float] = time.perf_counter) -> None:
    """Give the depth policy of an idle engine its first figures. One sequence is always measured, more while `budget_s` lasts."""
    if not isinstance(core.depth_policy, AdaptiveDepth):
        return
    max_depth = core.depth_policy.max_depth
    costs = StepCosts(max_depth)
    began, count = clock(), 1
    while count <= core.config.max_num_seqs and _fits(core, count, max_depth) and (count == 1 or clock() - began < budget_s):
        for depth in range(max_depth + 1):
            core.depth_policy = FixedDepth(depth)
            for seconds in _step_seconds(core, count, clock):
                costs.add(count, 0, depth, seconds)
        count *= 2
    core.depth_policy = AdaptiveDepth(max_depth, costs)


def _fits(core: EngineCore, count: int, max_depth: int) -> bool:
    """Whether so many sequences can run to the end of a measurement without waiting for each other."""
    length = _PROMPT_TOKENS + (_SETTLE_STEPS + _MEASURED_STEPS + 1) * (max_depth + 1)
    return (
        length < core.config.max_model_len
        and -(-length // PAGE_SIZE) * count <= core.config.num_pages
        and count <= core.config.max_queued_requests
    )


def _step_seconds(core: EngineCore, count: int, clock: Callable[[], float]) -> list[float]:
    """Of steps in which `count` sequences decode."""
    prompt = [i % core.num_tokens for i in range(_PROMPT_TOKENS)]
    ids = [f"calibration-{i}" for i in range(count)]
    for name in ids:
        core.add(
            GenerationRequest(
                name, prompt, SamplingParams(max_tokens=core.config.max_model_len - _PROMPT_TOKENS, temperature=0, ignore_eos=True)
            )
        )
    speaking: set[str] = set()
    while len(speaking) < count:
        speaking.update(output.request_id for output in core.step())
    seconds = []
    for number in range(_SETTLE_STEPS + _MEASURED_STEPS):
        began = clock()
        core.step()
        if number >= _SETTLE_STEPS:
            seconds.append(clock() - began)
    for name in ids:
        core.abort(name)
    return seconds
