"""Routing on the device: fp32 logits, then sigmoid, biased choice and weights of a token in one program, without a host sync.

Up to 16 tokens get logits from a kernel that spreads slices of experts over the multiprocessors and sums each row alone; more of them from
torch's fp32 product, whose sums have another order. One kernel for all would leave the router's weights to one multiprocessor at batch 1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

_FEW_TOKENS = 16
_FEW_EXPERTS = 4
_FEW_INNER = 512


@triton.jit
def _logits_kernel(x, router, logits, experts, H: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    e = tl.program_id(1) * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    partial = tl.zeros((BN, BK), tl.float32)
    for start in range(0, H, BK):
        at = start + k
        token = tl.load(x + row * H + at, mask=at < H, other=0.0).to(tl.float32)
        inside = (e < experts)[:, None] & (at < H)[None, :]
        partial += tl.load(router + e[:, None] * H + at[None, :], mask=inside, other=0.0).to(tl.float32) * token[None, :]
    tl.store(logits + row * experts + e, tl.sum(partial, 1), mask=e < experts)


@triton.jit
def _route_kernel(logits, bias, ids, weights, experts, scaling, K: tl.constexpr, S: tl.constexpr, NORM: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    e = tl.arange(0, BLOCK)
    inside = e < experts
    score = 1.0 / (1.0 + tl.exp(-tl.load(logits + row * experts + e, mask=inside, other=0.0)))
    choice = tl.where(inside, score + tl.load(bias + e, mask=inside, other=0.0), float("-inf"))
    choice = tl.where(choice == choice, choice, float("-inf"))  # a NaN still chooses K experts; its weights carry it on  # noqa: PLR0124
    chosen = e < 0
    for _ in tl.static_range(K):
        open_choice = tl.where(chosen | (e >= experts), float("-inf"), choice)
        best = tl.min(tl.where((open_choice == tl.max(open_choice, 0)) & inside & (chosen == 0), e, BLOCK), 0)
        chosen = chosen | (e == best)
    picked = tl.where(chosen, score, 0.0)
    if NORM:
        picked = picked / (tl.sum(picked, 0) + 1e-20)
    place = tl.cumsum(chosen.to(tl.int32), 0) - 1
    out = row * (K + S)
    tl.store(ids + out + place, e, mask=chosen)
    tl.store(weights + out + place, picked * scaling, mask=chosen)
    for s in tl.static_range(S):
        tl.store(ids + out + K + s, experts + s)
        tl.store(weights + out + K + s, 1.0)


def route(
    x: Tensor, weight: Tensor, bias: Tensor, *, num_experts_per_tok: int, norm_topk_prob: bool, scaling: float, num_shared: int
) -> tuple[Tensor, Tensor]:
    """x [T, H], weight [E, H], bias [E] fp32 -> ids [T, K + S] int32 by rising id, then shared ones of weight 1, and weights fp32.

    The choice is that of `reference.experts.route` with one group; of equal choices the lowest id wins.
    """
    rows, experts, slots = x.shape[0], weight.shape[0], num_experts_per_tok + num_shared
    ids = torch.empty(rows, slots, dtype=torch.int32, device=x.device)
    weights = torch.empty(rows, slots, device=x.device)
    if rows:
        if rows <= _FEW_TOKENS:
            logits = torch.empty(rows, experts, device=x.device)
            grid = (rows, triton.cdiv(experts, _FEW_EXPERTS))
            _logits_kernel[grid](x.contiguous(), weight.contiguous(), logits, experts, H=x.shape[1], BN=_FEW_EXPERTS, BK=_FEW_INNER)
        else:
            logits = F.linear(x.float(), weight.float())
        block = triton.next_power_of_2(experts)
        _route_kernel[(rows,)](
            logits, bias, ids, weights, experts, scaling, K=num_experts_per_tok, S=num_shared, NORM=norm_topk_prob, BLOCK=block
        )
    return ids, weights
