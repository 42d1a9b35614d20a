"""Experts on the device: up to 16 tokens by two output-centric kernels, more by a grouped GEMM over pairs sorted by expert.

    few:   (token, slot) x slices of M: gate | up, SiLU        token x slices of H: down, summed over slots, residual
    many:  sort pairs by expert, pad to blocks -> gate | up, SiLU -> down -> per token: sum in the order of slots, residual

A pair is a token and one of its slots. No atomics, so that results repeat; no shapes from data, so that a CUDA graph can hold it: the
grid of the grouped GEMM is the most blocks that any routing can fill, and programs beyond those filled return at once. A pair whose id is
not of this stack is skipped: it adds nothing, not even zero times a NaN. The two paths add in another order, and only `many` rounds each
expert's output to the dtype of x as the reference does; within a path a row does not depend on its company.

The more tokens, the more of them meet in an expert, and the taller are the blocks of the grouped GEMM (`_PATHS`): 16 rows, of which some
are padding, while reading weights is all that counts, 128 in a prompt. Widths are measured at the first call of a path (`tuning`), one
for gate | up and one for down, and then stay.

Shape legend: T tokens, H hidden, K chosen experts per token and S shared ones, M expert width, N experts in the stack.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from openglm.ops.reference.fp8_kv import FP8
from openglm.ops.triton.device import INTERPRETED, limits
from openglm.ops.triton.products import multiplied, numbers, rounded
from openglm.ops.triton.router import route, tickets
from openglm.ops.triton.tuning import Tile, fitting, tuner

Choice = Callable[[Tensor], tuple[Tensor, Tensor]]
"""x [T, H] -> ids [T, K + S] int32, shared ones last, and weights fp32."""

FEW_TOKENS = 16
_PATHS = ((128, "some"), (1024, "many"), (1 << 62, "prompt"))
"""Up to so many tokens the grouped GEMM has the tiles of this name, whose height all share because pairs are sorted into it."""
_SUMMED = 256

# Best guesses first, as in `linear`. Of few tokens a program has one pair or token, so `rows` is 1.
TILES = {
    "few gate_up": [Tile(1, 16, 256, 4, 3), Tile(1, 8, 512, 4, 3), Tile(1, 16, 512, 8, 2), Tile(1, 32, 128, 4, 3), Tile(1, 16, 256, 4, 1)],
    "few down": [Tile(1, 16, 256, 4, 3), Tile(1, 8, 512, 4, 3), Tile(1, 8, 256, 2, 3), Tile(1, 32, 128, 4, 3), Tile(1, 16, 256, 4, 1)],
    "some gate_up": [Tile(16, 64, 128, 4, 3), Tile(16, 32, 128, 4, 4), Tile(16, 64, 64, 4, 4)],
    "some down": [Tile(16, 64, 128, 4, 4), Tile(16, 128, 64, 4, 4), Tile(16, 32, 128, 4, 4)],
    "many gate_up": [Tile(64, 64, 64, 4, 3), Tile(64, 32, 128, 4, 3), Tile(64, 64, 32, 4, 4)],
    "many down": [Tile(64, 128, 64, 4, 3), Tile(64, 64, 64, 4, 4), Tile(64, 64, 128, 4, 2)],
    "prompt gate_up": [Tile(128, 64, 64, 8, 3), Tile(128, 128, 32, 8, 3), Tile(128, 64, 32, 8, 4)],
    "prompt down": [Tile(128, 128, 64, 8, 3), Tile(128, 128, 32, 8, 4), Tile(128, 64, 64, 8, 3)],
}


@triton.jit
def _few_gate_up_kernel(
    x,
    ids,
    gate_up,
    scales,
    hidden,
    experts,
    SLOTS: tl.constexpr,
    H: tl.constexpr,
    M: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    STAGES: tl.constexpr,
    FP8_CODES: tl.constexpr,
):
    pair = tl.program_id(0).to(tl.int64)
    expert = tl.load(ids + pair).to(tl.int64)
    if expert < 0 or expert >= experts:
        return
    m = tl.program_id(1) * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    rows = gate_up + (expert * 2 * M + m[:, None]) * H
    gate = tl.zeros((BN,), tl.float32)
    up = tl.zeros((BN,), tl.float32)
    for start in tl.range(0, H, BK, num_stages=STAGES):
        at = start + k
        inside = (m < M)[:, None] & (at < H)[None, :]
        token = tl.load(x + pair // SLOTS * H + at, mask=at < H, other=0.0).to(tl.float32)[None, :]
        gate += tl.sum(numbers(tl.load(rows + at[None, :], mask=inside, other=0), FP8_CODES) * token, 1)
        up += tl.sum(numbers(tl.load(rows + M * H + at[None, :], mask=inside, other=0), FP8_CODES) * token, 1)
    if FP8_CODES:
        gate *= tl.load(scales + expert * 2 * M + m, mask=m < M, other=0.0)
        up *= tl.load(scales + expert * 2 * M + M + m, mask=m < M, other=0.0)
    tl.store(hidden + pair * M + m, rounded(gate / (1.0 + tl.exp(-gate)) * up, hidden.dtype.element_ty), mask=m < M)


@triton.jit
def _few_down_kernel(
    hidden, ids, weights, down, scales, residual, out, experts, SLOTS: tl.constexpr, H: tl.constexpr, M: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr, FP8_CODES: tl.constexpr, RESIDUAL: tl.constexpr
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1) * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    total = tl.zeros((BN,), tl.float32)
    for slot in range(SLOTS):
        pair = token * SLOTS + slot
        expert = tl.load(ids + pair).to(tl.int64)
        if expert >= 0 and expert < experts:
            product = tl.zeros((BN,), tl.float32)
            for start in tl.range(0, M, BK, num_stages=STAGES):
                at = start + k
                inside = (h < H)[:, None] & (at < M)[None, :]
                stored = tl.load(down + (expert * H + h[:, None]) * M + at[None, :], mask=inside, other=0)
                given = tl.load(hidden + pair * M + at, mask=at < M, other=0.0).to(tl.float32)
                product += tl.sum(numbers(stored, FP8_CODES) * given[None, :], 1)
            if FP8_CODES:
                product *= tl.load(scales + expert * H + h, mask=h < H, other=0.0)
            total += product * tl.load(weights + pair)
    if RESIDUAL:
        total += tl.load(residual + token * H + h, mask=h < H, other=0.0).to(tl.float32)
    tl.store(out + token * H + h, rounded(total, out.dtype.element_ty), mask=h < H)


@triton.jit
def _many_kernel(
    given, pairs, block_experts, weight, scales, out, experts, SHARE: tl.constexpr, N: tl.constexpr, K: tl.constexpr, GATED: tl.constexpr,
    B: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, FP8_CODES: tl.constexpr, UPCAST: tl.constexpr
):  # fmt: skip
    """out [pairs, N] = given[pair // SHARE] times the rows of each block's expert; GATED: of N gate and then N up rows, through SiLU."""
    block = tl.program_id(1).to(tl.int64)
    expert = tl.load(block_experts + block).to(tl.int64)
    if expert >= experts:
        return
    pair = tl.load(pairs + block * B + tl.arange(0, B)).to(tl.int64)
    filled = pair >= 0
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    height: tl.constexpr = 2 * N if GATED else N
    rows = weight + (expert * height + n[None, :]) * K
    first = tl.zeros((B, BN), tl.float32)
    second = tl.zeros((B, BN), tl.float32)
    for start in range(0, K, BK):
        at = start + k
        here = tl.load(given + (pair // SHARE * K)[:, None] + at[None, :], mask=filled[:, None] & (at < K)[None, :], other=0.0)
        inside = (at < K)[:, None] & (n < N)[None, :]
        first = multiplied(here, tl.load(rows + at[:, None], mask=inside, other=0), first, FP8_CODES, UPCAST)
        if GATED:
            second = multiplied(here, tl.load(rows + N * K + at[:, None], mask=inside, other=0), second, FP8_CODES, UPCAST)
    if FP8_CODES:
        first *= tl.load(scales + expert * height + n, mask=n < N, other=0.0)[None, :]
        if GATED:
            second *= tl.load(scales + expert * height + N + n, mask=n < N, other=0.0)[None, :]
    if GATED:
        first = first / (1.0 + tl.exp(-first)) * second
    tl.store(out + pair[:, None] * N + n[None, :], rounded(first, out.dtype.element_ty), mask=filled[:, None] & (n < N)[None, :])


@triton.jit
def _sum_kernel(
    products, ids, weights, residual, out, experts, SLOTS: tl.constexpr, H: tl.constexpr, BN: tl.constexpr, RESIDUAL: tl.constexpr
):
    token = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1) * BN + tl.arange(0, BN)
    total = tl.zeros((BN,), tl.float32)
    for slot in range(SLOTS):
        pair = token * SLOTS + slot
        expert = tl.load(ids + pair)
        here = (h < H) & (expert >= 0) & (expert < experts)
        total += tl.where(here, tl.load(products + pair * H + h, mask=here, other=0.0).to(tl.float32) * tl.load(weights + pair), 0.0)
    if RESIDUAL:
        total += tl.load(residual + token * H + h, mask=h < H, other=0.0).to(tl.float32)
    tl.store(out + token * H + h, rounded(total, out.dtype.element_ty), mask=h < H)


def _blocks(ids: Tensor, experts: int, height: int) -> tuple[Tensor, Tensor]:
    """ids [T, slots] -> pairs [blocks * height] int32 by expert, -1 for padding; each block's expert [blocks], or `experts`."""
    flat = ids.flatten().long()
    flat = torch.where((flat < 0) | (flat >= experts), experts, flat)
    count = flat.numel()
    order = flat.argsort(stable=True)
    counts = torch.zeros(experts + 1, dtype=torch.int64, device=ids.device).scatter_add_(0, flat, torch.ones_like(flat))
    blocks = (counts + height - 1) // height
    ends = blocks.cumsum(0)
    shift = (ends - blocks) * height - (counts.cumsum(0) - counts)  # from the place among pairs to that among padded ones
    bound = count // height + min(experts, count)
    pairs = torch.full(((bound + count // height + 1) * height,), -1, dtype=torch.int32, device=ids.device)
    places = torch.arange(count, device=ids.device) + shift[flat[order]]
    pairs.scatter_(0, places, order.int())
    return pairs, torch.searchsorted(ends, torch.arange(bound, device=ids.device), right=True)


class DeviceExperts:
    """The experts of one layer with their router; the S shared ones are the last of the stack."""

    def __init__(
        self,
        gate_up: Tensor,
        down: Tensor,
        gate_up_scales: Tensor | None = None,
        down_scales: Tensor | None = None,
        *,
        router: Tensor,
        router_bias: Tensor,
        num_experts_per_tok: int,
        norm_topk_prob: bool,
        scaling: float,
        num_shared: int,
    ) -> None:
        """gate_up [N, 2M, H], gate rows first, down [N, H, M]; scales [N, 2M] and [N, H] fp32 exactly where they are e4m3; N = E + S."""
        total, double, width = gate_up.shape
        fp8 = gate_up.dtype == FP8
        fits = (
            down.shape == (total, width, double // 2) and gate_up.dtype == down.dtype and gate_up.is_contiguous() and down.is_contiguous()
        )
        if not fits or router.shape[0] + num_shared != total or fp8 != (gate_up_scales is not None) or fp8 != (down_scales is not None):
            raise ValueError(f"experts {tuple(gate_up.shape)} and {tuple(down.shape)} do not fit each other, their router or their scales")
        self._experts, self._hidden_size, self._width, self._fp8 = total, width, double // 2, fp8
        self._gate_up, self._down = (w.view(torch.uint8) if fp8 else w for w in (gate_up, down))
        self._gate_up_scales, self._down_scales = gate_up_scales, down_scales
        self._limits = limits(gate_up.device)
        self._chosen: dict[tuple[str, torch.dtype, bool], Tile] = {}
        self.choose: Choice = partial(
            route,
            weight=router,
            bias=router_bias,
            num_experts_per_tok=num_experts_per_tok,
            norm_topk_prob=norm_topk_prob,
            scaling=scaling,
            num_shared=num_shared,
            counters=tickets(router.device),
        )
        """The router. Whoever measures may put another choice in its place."""

    def __call__(self, x: Tensor, residual: Tensor) -> Tensor:
        """x [T, H] normed, residual [T, H] -> residual + experts(x), in x's dtype."""
        ids, weights = self.choose(x)
        return self._run(x, weights, ids, residual)

    def routed(self, x: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
        """The weighted sum over those ids [T, slots] that are in this stack: x [T, H], weights [T, slots] fp32 -> [T, H] fp32."""
        return self._run(x, weights, ids, None)

    def _run(self, x: Tensor, weights: Tensor, ids: Tensor, residual: Tensor | None) -> Tensor:
        tokens, slots = ids.shape
        height, width = self._hidden_size, self._width
        if x.shape != (tokens, height) or weights.shape != ids.shape or (residual is not None and residual.shape != x.shape):
            raise ValueError(f"x {tuple(x.shape)} and ids {tuple(ids.shape)} do not fit experts of hidden size {height}")
        x, weights, ids = x.contiguous(), weights.contiguous(), ids.contiguous()
        residual = None if residual is None else residual.contiguous()
        out = torch.empty(tokens, height, dtype=torch.float32 if residual is None else x.dtype, device=x.device)
        if not tokens:
            return out
        hidden = torch.empty(tokens * slots, width, dtype=x.dtype, device=x.device)
        if tokens <= FEW_TOKENS:
            self._tuned("few gate_up", x, False, partial(self._few_gate_up, x, ids, hidden))
            self._tuned("few down", x, residual is not None, partial(self._few_down, hidden, ids, weights, residual, out))
            return out
        path = path_of(tokens)
        pairs, blocks = _blocks(ids, self._experts, TILES[f"{path} gate_up"][0].rows)
        products = torch.empty(tokens * slots, height, dtype=x.dtype, device=x.device)
        self._tuned(f"{path} gate_up", x, False, partial(self._many, x, pairs, blocks, hidden, slots, gated=True))
        self._tuned(f"{path} down", x, False, partial(self._many, hidden, pairs, blocks, products, 1, gated=False))
        settings = {"SLOTS": slots, "H": height, "BN": _SUMMED, "RESIDUAL": residual is not None}
        _sum_kernel[(tokens, triton.cdiv(height, _SUMMED))](products, ids, weights, residual, out, self._experts, **settings)
        return out

    def _tuned(self, kernel: str, x: Tensor, residual: bool, run: Callable[[Tile], None]) -> None:
        """Launch with the tile that is the fastest for all calls of this kind."""
        kind = (kernel, x.dtype, residual)
        tile = self._chosen.get(kind)
        if tile is None:
            given = 0 if kernel.startswith("few") else x.element_size()  # of few tokens only weights go through shared memory
            stored = self._gate_up.element_size() * (2 if kernel.endswith("gate_up") else 1)
            tiles = fitting(TILES[kernel], self._limits, given, stored)
            scheme = f"{x.dtype} x {'fp8' if self._fp8 else x.dtype} + {'residual' if residual else 'nothing'}"
            shape = (self._experts, self._hidden_size, self._width, scheme)
            tile = self._chosen[kind] = tuner(x.device).choose(f"experts {kernel}", shape, tiles, run)
        run(tile)

    def _few_gate_up(self, x: Tensor, ids: Tensor, hidden: Tensor, tile: Tile) -> None:
        grid = (ids.numel(), triton.cdiv(self._width, tile.columns))
        _few_gate_up_kernel[grid](
            x,
            ids,
            self._gate_up,
            self._gate_up_scales,
            hidden,
            self._experts,
            **self._few_settings(ids, tile),
            **tile.options(self._limits),
        )

    def _few_down(self, hidden: Tensor, ids: Tensor, weights: Tensor, residual: Tensor | None, out: Tensor, tile: Tile) -> None:
        grid = (ids.shape[0], triton.cdiv(self._hidden_size, tile.columns))
        _few_down_kernel[grid](
            hidden, ids, weights, self._down, self._down_scales, residual, out, self._experts, RESIDUAL=residual is not None,
            **self._few_settings(ids, tile), **tile.options(self._limits)
        )  # fmt: skip

    def _few_settings(self, ids: Tensor, tile: Tile) -> dict[str, int]:
        stages = tile.options(self._limits)["num_stages"]
        meta = {"BN": tile.columns, "BK": tile.inner, "STAGES": stages, "FP8_CODES": self._fp8}
        return {"SLOTS": ids.shape[1], "H": self._hidden_size, "M": self._width, **meta}

    def _many(self, given: Tensor, pairs: Tensor, blocks: Tensor, out: Tensor, share: int, tile: Tile, *, gated: bool) -> None:
        weight, scales = (self._gate_up, self._gate_up_scales) if gated else (self._down, self._down_scales)
        n, k = (self._width, self._hidden_size) if gated else (self._hidden_size, self._width)
        meta = {"B": tile.rows, "BN": tile.columns, "BK": tile.inner, "FP8_CODES": self._fp8, "UPCAST": INTERPRETED}
        _many_kernel[(triton.cdiv(n, tile.columns), blocks.numel())](
            given, pairs, blocks, weight, scales, out, self._experts, SHARE=share, N=n, K=k, GATED=gated, **meta,
            **tile.options(self._limits)
        )  # fmt: skip


def path_of(tokens: int) -> str:
    """The first word of the names in `TILES` that so many tokens go by."""
    return "few" if tokens <= FEW_TOKENS else next(path for most, path in _PATHS if tokens <= most)
