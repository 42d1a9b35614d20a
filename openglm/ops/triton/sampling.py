"""From logits to tokens without the host: `engine.sampler`'s filters and its draw, in one kernel that never sorts the vocabulary.

One program per row. After the maximum, (logit - maximum) / temperature is at most 0, so the bits of its magnitude order tokens from
likely to unlikely as integers. The threshold of top-k is the smallest such integer up to which at least k tokens lie, that of top-p the
smallest up to which at least top_p of the mass left by top-k lies; both are found by bisection in 31 passes over a row that stays in
cache, and both keep tokens that tie with the last one kept, as the sampler does. Then one pass sums what is left in token order, in fp64,
and finds where the sum exceeds u times the total.

A token can differ from the sampler's where a rounding decides: exp and sums round otherwise, the sampler compares probabilities (fp32)
and this kernel the scaled logits, so two neighbours whose probabilities round to one number tie there and not here.

Shape legend: N rows, V tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor


class DeviceSample(NamedTuple):
    """Per row, on the device: the token, whether the row was finite, and the token's log probability in the unfiltered row."""

    tokens: Tensor  # [N] int64
    finite: Tensor  # [N] bool; where False the token means nothing
    logprobs: Tensor  # [N] fp32


@triton.jit
def _scaled(row, at, V, highest, temperature):
    """Scaled logits at `at`, minus infinity behind the row, and the integers that order them."""
    scaled = (tl.load(row + at, mask=at < V, other=float("-inf")) - highest) / temperature
    return scaled, scaled.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def _sample_kernel(logits, temperatures, top_ks, top_ps, min_ps, uniforms, tokens, finite, logprobs, stride, V, BLOCK: tl.constexpr):
    n = tl.program_id(0)
    row = logits + n.to(tl.int64) * stride
    lanes = tl.arange(0, BLOCK)
    highest = tl.load(row)
    damaged = tl.zeros([BLOCK], tl.int32)
    best = V
    for first in range(0, V, BLOCK):
        at = first + lanes
        values = tl.load(row + at, mask=at < V, other=float("-inf"))
        damaged |= tl.where(values < float("inf"), 0, 1)  # NaN compares with nothing
        highest = tl.maximum(highest, tl.max(values, 0))
    good = (tl.max(damaged, 0) == 0) & (highest != float("-inf"))
    tl.store(finite + n, good)
    if not good:
        tl.store(tokens + n, 0)
        tl.store(logprobs + n, float("nan"))
        return
    total = tl.zeros([BLOCK], tl.float32)
    for first in range(0, V, BLOCK):
        at = first + lanes
        values = tl.load(row + at, mask=at < V, other=float("-inf"))
        total += tl.exp(values - highest)
        best = tl.minimum(best, tl.min(tl.where(values == highest, at, V), 0))
    log_total = tl.log(tl.sum(total, 0))
    temperature = tl.load(temperatures + n)
    token = best
    if temperature > 0.0:
        limit = 0x7F800000  # of the integers; up to it everything is kept
        top_k = tl.load(top_ks + n)
        if top_k > 0 and top_k < V:
            low = 0
            while low < limit:
                middle = low + (limit - low) // 2
                count = tl.zeros([BLOCK], tl.int32)
                for first in range(0, V, BLOCK):
                    _, order = _scaled(row, first + lanes, V, highest, temperature)
                    count += ((order <= middle) & (first + lanes < V)).to(tl.int32)
                if tl.sum(count, 0) >= top_k:
                    limit = middle
                else:
                    low = middle + 1
        top_p = tl.load(top_ps + n)
        if top_p < 1.0:
            mass = tl.zeros([BLOCK], tl.float64)
            for first in range(0, V, BLOCK):
                scaled, order = _scaled(row, first + lanes, V, highest, temperature)
                mass += tl.where(order <= limit, tl.exp(scaled), 0.0).to(tl.float64)
            wanted = tl.sum(mass, 0) * top_p
            low = 0
            while low < limit:
                middle = low + (limit - low) // 2
                mass = tl.zeros([BLOCK], tl.float64)
                for first in range(0, V, BLOCK):
                    scaled, order = _scaled(row, first + lanes, V, highest, temperature)
                    mass += tl.where(order <= middle, tl.exp(scaled), 0.0).to(tl.float64)
                if tl.sum(mass, 0) >= wanted:
                    limit = middle
                else:
                    low = middle + 1
        min_p = tl.load(min_ps + n)
        kept = tl.zeros([BLOCK], tl.float64)
        for first in range(0, V, BLOCK):
            scaled, order = _scaled(row, first + lanes, V, highest, temperature)
            weight = tl.exp(scaled)
            kept += tl.where((order <= limit) & (weight >= min_p), weight, 0.0).to(tl.float64)
        aim = tl.sum(kept, 0) * tl.load(uniforms + n)
        before = tl.sum(kept, 0) * 0.0
        token = V
        last = best
        for first in range(0, V, BLOCK):
            at = first + lanes
            scaled, order = _scaled(row, at, V, highest, temperature)
            weight = tl.exp(scaled)
            weight = tl.where((order <= limit) & (weight >= min_p), weight, 0.0).to(tl.float64)
            reached = before + tl.cumsum(weight, 0)
            hit = (reached > aim) & (weight > 0.0)
            token = tl.minimum(token, tl.min(tl.where(hit, at, V), 0))
            last = tl.maximum(last, tl.max(tl.where(weight > 0.0, at, 0), 0))
            before += tl.sum(weight, 0)
        token = tl.where(token == V, last, token)  # the sum rounded down to the aim
    tl.store(tokens + n, token.to(tl.int64))
    tl.store(logprobs + n, tl.load(row + token) - highest - log_total)


def sample(logits: Tensor, *, temperatures: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, uniforms: Tensor) -> DeviceSample:
    """logits [N, V] fp32 -> one token per row; all settings lie on the device, one per row, and nothing is read back.

    temperatures [N] fp32 (0 is greedy, the first of equals), top_k [N] int32 (0 is off), top_p [N] fp64 (1 is off), min_p [N] fp32 (0 is
    off), uniforms [N] fp64 in [0, 1). A row with NaN or +infinity, or with minus infinity alone, is not finite; single minus infinities
    are bans.
    """
    if logits.dim() != 2 or logits.dtype != torch.float32 or logits.stride(1) != 1 or not logits.shape[1]:
        raise ValueError(f"logits {tuple(logits.shape)} in {logits.dtype} are not rows of fp32")
    num_rows, width = logits.shape
    for setting, dtype in (
        (temperatures, torch.float32),
        (top_k, torch.int32),
        (top_p, torch.float64),
        (min_p, torch.float32),
        (uniforms, torch.float64),
    ):
        if setting.shape != (num_rows,) or setting.dtype != dtype:
            raise ValueError(f"a setting {tuple(setting.shape)} in {setting.dtype} for {num_rows} rows, expected {dtype}")
    result = DeviceSample(
        torch.empty(num_rows, dtype=torch.int64, device=logits.device),
        torch.empty(num_rows, dtype=torch.bool, device=logits.device),
        torch.empty(num_rows, dtype=torch.float32, device=logits.device),
    )
    if num_rows:
        block = min(4096, triton.next_power_of_2(width))
        _sample_kernel[(num_rows,)](
            logits, temperatures, top_k, top_p, min_p, uniforms, *result, logits.stride(0), width, BLOCK=block, num_warps=8
        )
    return result
