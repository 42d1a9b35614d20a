"""Tiny random models, engines over them, and what they generate."""

from collections.abc import Sequence
from functools import cache
from itertools import count

import torch

from openglm.config import variant
from openglm.config.engine import EngineConfig, Machine, resolve
from openglm.engine.core import EngineCore
from openglm.engine.request import EngineOutput, GenerationRequest, SamplingParams
from openglm.model import GlmModel
from openglm.ops import cpu

MACHINE = Machine("cpu", cores=2, memory_bytes=4 << 30, native_kernels=cpu.available())


@cache
def tiny_model(name: str = "tiny-air", dtype: str = "float32", *, native: bool = False) -> GlmModel:
    model = GlmModel(variant(name), dtype=getattr(torch, dtype)).init_weights(7)
    return model.pack(only_drafts=True) if native else model


def make_core(
    name: str = "tiny-air",
    *,
    dtype: str = "float32",
    num_tokens: int | None = None,
    stop_ids: Sequence[int] = (),
    detokenizer=None,
    thinking=None,
    native=False,
    **settings,
) -> EngineCore:
    settings = {"max_model_len": 512, "seed": 0, "deterministic": True, "native_kernels": native, **settings}
    config, _ = resolve(EngineConfig(dtype=dtype, **settings), variant(name), MACHINE)
    model = tiny_model(name, dtype, native=native)
    return EngineCore(model, config, num_tokens=num_tokens, stop_ids=stop_ids, detokenizer=detokenizer, thinking=thinking)


def preempt_often(core: EngineCore, *, every: int) -> None:
    """Send every running request back to the queue before each `every`-th step."""
    step, numbers = core.step, count(1)

    def step_with_forced_preemption() -> list[EngineOutput]:
        if next(numbers) % every == 0:
            core.scheduler.preempt_all()
        return step()

    core.step = step_with_forced_preemption  # type: ignore[method-assign]


def drain(core: EngineCore) -> dict[str, list[EngineOutput]]:
    """Step until nothing is left; every output by request."""
    outputs: dict[str, list[EngineOutput]] = {}
    while core.has_work:
        for output in core.step():
            outputs.setdefault(output.request_id, []).append(output)
    return outputs


def generate(core: EngineCore, prompts: Sequence[Sequence[int]], params: SamplingParams | Sequence[SamplingParams]) -> list[EngineOutput]:
    """One merged output per prompt."""
    each = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
    for i, (prompt, own) in enumerate(zip(prompts, each, strict=True)):
        core.add(GenerationRequest(f"r{i}", list(prompt), own))
    outputs = drain(core)
    return [merged(outputs[f"r{i}"]) for i in range(len(prompts))]


def merged(outputs: Sequence[EngineOutput]) -> EngineOutput:
    """All tokens of a request, with the facts of its terminal output."""
    assert [o.finish_reason is not None for o in outputs] == [False] * (len(outputs) - 1) + [True]
    assert sum(o.prompt_logprobs is not None for o in outputs) <= 1
    last = outputs[-1]
    logprobs = [entry for o in outputs for entry in o.logprobs or []] if last.logprobs is not None else None
    return EngineOutput(
        last.request_id,
        [token for o in outputs for token in o.token_ids],
        logprobs,
        last.finish_reason,
        last.stop_reason,
        last.num_prompt_tokens,
        last.num_cached_tokens,
        last.num_drafted,
        last.num_accepted,
        last.error,
        prompt_logprobs=next((o.prompt_logprobs for o in outputs if o.prompt_logprobs is not None), None),
        cache_outcome=last.cache_outcome,
        stop_logprobs=last.stop_logprobs,
    )
