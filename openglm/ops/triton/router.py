"""Routing on the device: fp32 logits, then sigmoid, biased choice and weights of a token in one program, without a host sync.

Up to 16 tokens are routed by one kernel: slices of experts are spread over the multiprocessors, each row is summed alone, and the program
that finishes a row last, which it knows from a counter, chooses. The counter decides who does it, not what comes out. More tokens get their
logits from torch's fp32 product, whose sums have another order.
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
def _write_logits(x, router, logits, experts, H: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
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
def _choose(logits, bias, ids, weights, experts, scaling, K: tl.constexpr, S: tl.constexpr, NORM: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    e = tl.arange(0, BLOCK)
    inside = e < experts
    own = tl.load(logits + row * experts + e, mask=inside, other=0.0, cache_modifier=".cg")  # others may have written them just now
    score = 1.0 / (1.0 + tl.exp(-own))
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


@triton.jit
def _route_kernel(logits, bias, ids, weights, experts, scaling, K: tl.constexpr, S: tl.constexpr, NORM: tl.constexpr, BLOCK: tl.constexpr):
    _choose(logits, bias, ids, weights, experts, scaling, K, S, NORM, BLOCK)


@triton.jit
def _few_kernel(
    x, router, bias, logits, tickets, ids, weights, experts, scaling, H: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    K: tl.constexpr, S: tl.constexpr, NORM: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Every program writes the logits of BN experts for one row; the last one of a row chooses."""
    _write_logits(x, router, logits, experts, H, BN, BK)
    tl.debug_barrier()  # all threads have written before one of them says so
    row = tl.program_id(0)
    before = tl.atomic_add(tickets + row, 1, sem="acq_rel")
    if before == tl.num_programs(1) - 1:
        tl.store(tickets + row, 0)  # for the next launch
        _choose(logits, bias, ids, weights, experts, scaling, K, S, NORM, BLOCK)


def tickets(device: torch.device) -> Tensor:
    """Counters for `route`, one set for each layer: launches that share them must follow one another."""
    return torch.zeros(_FEW_TOKENS, dtype=torch.int32, device=device)


def route(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    num_experts_per_tok: int,
    norm_topk_prob: bool,
    scaling: float,
    num_shared: int,
    counters: Tensor,
) -> tuple[Tensor, Tensor]:
    """x [T, H], weight [E, H], bias [E] fp32 -> ids [T, K + S] int32 by rising id, then shared ones of weight 1, and weights fp32.

    The choice is that of `reference.experts.route` with one group; of equal choices the lowest id wins. `counters` are `tickets`.
    """
    rows, experts, slots = x.shape[0], weight.shape[0], num_experts_per_tok + num_shared
    ids = torch.empty(rows, slots, dtype=torch.int32, device=x.device)
    weights = torch.empty(rows, slots, device=x.device)
    if not rows:
        return ids, weights
    choice = {"K": num_experts_per_tok, "S": num_shared, "NORM": norm_topk_prob, "BLOCK": triton.next_power_of_2(experts)}
    if rows <= _FEW_TOKENS:
        logits = torch.empty(rows, experts, device=x.device)
        _few_kernel[(rows, triton.cdiv(experts, _FEW_EXPERTS))](
            x.contiguous(), weight.contiguous(), bias, logits, counters, ids, weights, experts, scaling,
            H=x.shape[1], BN=_FEW_EXPERTS, BK=_FEW_INNER, **choice,
        )  # fmt: skip
    else:
        logits = F.linear(x.float(), weight.float())
        _route_kernel[(rows,)](logits, bias, ids, weights, experts, scaling, **choice)
    return ids, weights
