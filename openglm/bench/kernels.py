"""The native CPU kernels one by one, at the widths of real models, against what this machine can do.

For every op: time, bytes it must read, floating-point operations, and the share of two ceilings that are measured in the same run - reading
memory, and multiply-adds that touch nothing but registers. Weights are random. They rotate through more copies than
the last cache holds where that fits `max_weight_bytes`, because in a model each layer's weights come from memory; smaller ops say so.

Of a mixture of experts only as many experts are made as fit the same limit, and the router spreads tokens evenly over them; the bytes
are those of the experts that were hit.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
import torch
from torch import Tensor

from openglm.bench.machine import Machine, this_machine
from openglm.config import ModelConfig, variant
from openglm.errors import ConfigError
from openglm.model.transformer import packed_format
from openglm.ops import PAGE_SIZE, PackedExperts, PackedLinear, PackedMLP, WeightFormat, cpu

VARIANTS = ("glm-nano", "glm-4.5-air", "glm-4.5")
ROWS = (1, 4, 16, 256)
CONTEXTS = (512, 8192)
_READ_BYTES = 1 << 30
_COLD_BYTES = 256 << 20  # more than a last-level cache
_SECONDS = 0.25  # of measurement per figure
_BYTES: dict[WeightFormat, float] = {"float32": 4, "bfloat16": 2, "fp8": 1, "int8": 1, "int4": 17 / 32, "w8a8": 1}


class KernelFigure(msgspec.Struct, frozen=True):
    """One op at one number of rows."""

    variant: str
    op: str
    rows: int
    seconds: float
    num_bytes: int
    """What must be read: weights, or keys and values."""
    flops: int
    cold: bool
    """Whether the bytes came from memory and not from a cache."""
    peak_flops: float
    """The ceiling of products of this kind."""


class KernelFigures(msgspec.Struct, frozen=True):
    """The report; ceilings are of all threads together."""

    machine: Machine
    instruction_set: str
    weights: WeightFormat
    threads: int
    read_bytes_per_second: float
    figures: tuple[KernelFigure, ...]


class _Op(NamedTuple):
    """Something to time: `run(copy, rows)`."""

    name: str
    copies: Sequence[Any]
    run: Callable[[Any, Tensor], object]
    width: int
    num_bytes: Callable[[int], int]
    flops: Callable[[int], int]
    format: WeightFormat = "bfloat16"


def measure_kernels(
    variants: Sequence[str] = VARIANTS,
    *,
    rows: Sequence[int] = ROWS,
    contexts: Sequence[int] = CONTEXTS,
    threads: int = 1,
    weights: WeightFormat = "bfloat16",
    max_weight_bytes: int = 2 << 30,
    seconds: float = _SECONDS,
    progress: Callable[[str], None],
) -> KernelFigures:
    """Pack random weights of each variant's widths, one op after another, and time it at every number of rows."""
    name = cpu.available()
    if name is None:
        raise ConfigError(
            "there are no native kernels here: the module was not built (is there a C++ compiler?), or the processor has no AVX2"
        )
    cpu.set_num_threads(threads)
    progress("measuring the ceilings")
    reading = cpu.read_bandwidth(_READ_BYTES)
    peaks = {kind: cpu.peak_flops(kind, torch.bfloat16) for kind in dict.fromkeys((weights, "int8", "bfloat16"))}
    figures = []
    for chosen in variants:
        config = variant(chosen)
        for op in _ops(config, weights, max_weight_bytes):
            progress(f"{chosen}: {op.name}")
            for count in rows:
                spent = _time(op, count, seconds)
                cold = op.num_bytes(count) * len(op.copies) >= _COLD_BYTES
                figures.append(KernelFigure(chosen, op.name, count, spent, op.num_bytes(count), op.flops(count), cold, peaks[op.format]))
        for context in contexts:
            progress(f"{chosen}: attention over {context} tokens")
            few = [count for count in rows if count <= min(16, context)]
            figures += [_attention(chosen, config, context, count, seconds, peaks["bfloat16"]) for count in few]
    return KernelFigures(this_machine(), name, weights, threads, reading, tuple(figures))


def _ops(config: ModelConfig, to: WeightFormat, max_bytes: int) -> Iterator[_Op]:
    """The weights of a model, one kind at a time so that only one is in memory."""
    hidden, query, qkv = config.hidden_size, config.query_dim, config.query_dim + 2 * config.kv_dim
    yield _linear("qkv", qkv, hidden, to, max_bytes)
    yield _linear("o", hidden, query, to, max_bytes)
    yield _linear("head", config.vocab_size, hidden, packed_format("lm_head.weight", to) or "bfloat16", max_bytes)
    width = config.intermediate_size
    size = 3 * width * hidden
    num_bytes = round(size * _BYTES[to])
    mlps = [PackedMLP.of(_random(2 * width, hidden), _random(hidden, width), to=to) for _ in range(_copies(num_bytes, max_bytes))]
    yield _Op("mlp", mlps, lambda mlp, x: mlp(x, x), hidden, lambda rows: num_bytes, lambda rows: 2 * rows * size, to)
    yield _experts(config, to, max_bytes)


def _linear(name: str, n: int, k: int, to: WeightFormat, max_bytes: int) -> _Op:
    num_bytes = round(n * k * _BYTES[to])
    weights = [PackedLinear(_random(n, k), to=to) for _ in range(_copies(num_bytes, max_bytes))]

    def run(weight: PackedLinear, x: Tensor) -> Tensor:
        return weight.logits(x) if name == "head" else weight(x)

    return _Op(name, weights, run, k, lambda rows: num_bytes, lambda rows: 2 * rows * n * k, to)


def _experts(config: ModelConfig, to: WeightFormat, max_bytes: int) -> _Op:
    """Routed experts and the shared one; as many as fit, at least those that one token takes."""
    hidden, width, top_k = config.hidden_size, config.moe_intermediate_size, config.num_experts_per_tok
    size = 3 * width * hidden
    made = max(top_k, min(config.n_routed_experts, max_bytes // (2 * size)))
    shared = config.n_shared_experts
    layer = PackedExperts(
        [PackedMLP.of(_random(2 * width, hidden), _random(hidden, width), to=to) for _ in range(made)],
        router=torch.randn(made, hidden),
        router_bias=torch.zeros(made),
        shared=PackedMLP.of(_random(2 * width * shared, hidden), _random(hidden, width * shared), to=to) if shared else None,
        num_experts_per_tok=top_k,
        norm_topk_prob=True,
        scaling=1.0,
    )

    def num_bytes(rows: int) -> int:
        """Of the experts that `rows` tokens hit, if each takes `top_k` of them at random."""
        return round(size * _BYTES[to] * (made * (1 - (1 - top_k / made) ** rows) + shared))

    name = "experts" if made == config.n_routed_experts else f"experts ({made} of {config.n_routed_experts})"
    return _Op(name, [layer], lambda moe, x: moe(x, x), hidden, num_bytes, lambda rows: 2 * rows * size * (top_k + shared), to)


def _attention(name: str, config: ModelConfig, context: int, rows: int, seconds: float, peak: float) -> KernelFigure:
    """One new token in each of `rows` sequences of this length."""
    heads, kv_heads, dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    pages = -(-context // PAGE_SIZE)
    kv = torch.zeros(rows * pages, 2, kv_heads, PAGE_SIZE, dim, dtype=torch.bfloat16).normal_()
    table = torch.arange(rows * pages).view(rows, pages)
    offsets = torch.tensor([*range(rows + 1), *([context] * rows)])

    def run(pages: Tensor, queries: Tensor) -> Tensor:
        return cpu.paged_attention(
            queries.view(rows, heads, dim), pages, offsets=offsets, num_requests=rows, page_table=table, scale=dim**-0.5
        )

    size = rows * context * 2 * kv_heads * dim * 2
    flops = rows * context * 4 * heads * dim
    spent = _time(_Op("attention", [kv], run, heads * dim, lambda _: size, lambda _: flops), rows, seconds)
    return KernelFigure(name, f"attention, {context} tokens", rows, spent, size, flops, size >= _COLD_BYTES, peak)


def _time(op: _Op, rows: int, seconds: float) -> float:
    """Median seconds of one run, over the copies in turn. Every run has new inputs, so experts are hit as tokens come."""
    inputs = [torch.randn(rows, op.width).bfloat16() for _ in range(8)]
    times: list[float] = []
    number, end = 0, time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        copy, x = op.copies[number % len(op.copies)], inputs[number % len(inputs)]
        started = time.perf_counter()
        op.run(copy, x)
        times.append(time.perf_counter() - started)
        number += 1
    return statistics.median(times[1:])


def _copies(size: int, max_bytes: int) -> int:
    """So many that they do not fit a cache, if they may take that much memory."""
    return max(1, min(-(-_COLD_BYTES // size), max_bytes // size, 64))


def _random(n: int, k: int) -> Tensor:
    return torch.empty(n, k, dtype=torch.bfloat16).normal_(0.0, k**-0.5)
