"""Prompts of GLM-4.5-Air in FP8, in chunks, without an engine; by the host's clock, so launches count as they do in service."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from openglm.bench.gpu.byte_model import prefill_flops
from openglm.bench.gpu.ceilings import reading
from openglm.bench.gpu.decode import FullSize, air
from openglm.bench.gpu.figures import Values
from openglm.bench.gpu.place import Place, wall_seconds
from openglm.bench.gpu.plan import mixed_case, prefill_case
from openglm.bench.gpu.run import Case
from openglm.ops import FP8

_WHOLE = ((8192, 8192), (1024, 1024), (4096, 4096), (32768, 8192), (131072, 8192))
_PROMPTS = (*_WHOLE, (8192, 4096), (8192, 2048), (8192, 1024), (16384, 16384))
_MIXED = (2048, 8, 1024)  # a chunk, beside so many decoding sequences of so many tokens


def cases(place: Place, known: dict[str, Values]) -> Iterator[Case]:
    """In the order of their worth."""
    yield reading(place)
    prompts = ((20, 20), (20, 12)) if place.rehearsal else _PROMPTS
    chunk, beside, context = (17, 2, 20) if place.rehearsal else _MIXED
    longest = max(tokens for tokens, _ in prompts)
    full = FullSize(place, air(place, drafts=False), tokens=max(longest + 64, (beside + 1) * -(-max(chunk, context) // 64) * 64))
    for tokens, size in prompts:
        name = full.name(prefill_case(tokens, size))
        yield Case(name, partial(_prompt, full, tokens, size))
    yield Case(full.name(mixed_case(chunk, beside)), partial(_mixed, full, chunk, beside, context))


@torch.inference_mode()
def _prompt(full: FullSize, tokens: int, chunk: int) -> Values:
    """From the first token to the logits of the last."""
    steps = full.steps(FP8)
    table = steps.table(1, tokens)
    ids = torch.randint(full.config.vocab_size, (tokens,), device=full.place.device)

    def run() -> torch.Tensor:
        logits = torch.empty(0)
        for first in range(0, tokens, chunk):
            part = ids[first : first + chunk]
            logits = steps.chunk(table, first, len(part), part)
        return logits

    if not bool(run().isfinite().all()):  # which also compiles
        raise ValueError("the prompt's logits are not finite")
    seconds = wall_seconds(full.place, run, rounds=1 if full.place.rehearsal or tokens > 32768 else 3)
    flops = sum(prefill_flops(full.config, tokens)) + 2.0 * full.config.vocab_size * full.config.hidden_size
    return {"s": seconds, "tokens_per_s": tokens / seconds, "tflops": flops / seconds / 1e12}


@torch.inference_mode()
def _mixed(full: FullSize, chunk: int, beside: int, context: int) -> Values:
    """A chunk of a prompt in one step with sequences that decode."""
    steps = full.steps(FP8)
    table = steps.table(beside + 1, max(chunk, context))
    ids = torch.randint(full.config.vocab_size, (chunk + beside,), device=full.place.device)

    def run() -> torch.Tensor:
        return steps.chunk(table, 0, chunk, ids, beside=beside)

    if not bool(run().isfinite().all()):
        raise ValueError("the step's logits are not finite")
    seconds = wall_seconds(full.place, run, rounds=1 if full.place.rehearsal else 5)
    return {"s": seconds, "tokens_per_s": (chunk + beside) / seconds}
