"""From the fused QKV product to queries and KV pages in one kernel: bias, QK norm, partial RoPE, write.

A program owns one token and a few heads that are all queries, all keys or all values. It reads them once more shifted by half of the
rotated dims, which comes from the cache and spares an exchange between threads. At batch 1 there is one head per program, so that
112 heads spread over as many multiprocessors; in prefill four, because then there are more programs than the device can hold anyway.

Every step rounds to the dtype of `qkv` where `ops.reference.rope` does, so the two differ only where the mean of squares is summed in
another order or the compiler contracts a multiplication and an addition.

Shape legend: T tokens, Hq query heads, Hkv key/value heads, D head dim, pages of 64 slots.
"""

from __future__ import annotations

from math import gcd

import torch
import triton
import triton.language as tl
from torch import Tensor

from openglm.ops.reference.attention import PAGE_SIZE, KVLayer, kv_tensors
from openglm.ops.reference.fp8_kv import Fp8KV
from openglm.ops.triton.products import encoded, rounded

_FEW_TOKENS = 64  # up to here every head gets a program of its own
_MAX_HEADS = 4


@triton.jit
def _read(row, bias, heads, dims, in_head, D: tl.constexpr, BIAS: tl.constexpr):
    """Heads [BH] of one token at `dims`, with their bias: [BH, dims] fp32, rounded to the dtype they are stored in."""
    offsets = heads[:, None] * D + dims[None, :]
    stored = tl.load(row + offsets, mask=in_head[None, :], other=0.0)
    values = stored.to(tl.float32)
    if BIAS:
        values += tl.load(bias + offsets, mask=in_head[None, :], other=0.0).to(tl.float32)
        values = rounded(values, stored.dtype).to(tl.float32)
    return values


@triton.jit
def _norm(values, rstd, weight, dims, in_head, dtype: tl.constexpr):
    """RMS norm of [BH, dims] whose mean of squares is known, rounded before and after the weight as the reference does."""
    weights = tl.load(weight + dims, mask=in_head, other=0.0).to(tl.float32)
    scaled = rounded(values * rstd, dtype).to(tl.float32)
    return rounded(scaled * weights[None, :], dtype).to(tl.float32)


@triton.jit
def _rope_kernel(
    x,
    bias,
    q_norm,
    k_norm,
    table,
    positions,
    slots,
    queries,
    kv,
    scales,
    x_stride,
    kv_stride,
    scale_stride,
    eps,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    HALF: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BIAS: tl.constexpr,
    Q_NORM: tl.constexpr,
    K_NORM: tl.constexpr,
    FP8: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * BLOCK_HEADS
    is_query = first < NUM_HEADS
    is_value = first >= NUM_HEADS + NUM_KV_HEADS
    slot = tl.load(slots + token).to(tl.int64)
    if not is_query and slot < 0:
        return
    heads = first + tl.arange(0, BLOCK_HEADS)
    dims = tl.arange(0, BLOCK_D)
    in_head = dims < D
    row = x + token * x_stride
    values = _read(row, bias, heads, dims, in_head, D, BIAS)  # [BH, D]
    dtype: tl.constexpr = x.dtype.element_ty
    if not is_value:
        turned = dims < 2 * HALF
        partner_dims = tl.where(dims < HALF, dims + HALF, tl.where(turned, dims - HALF, dims))
        partners = _read(row, bias, heads, partner_dims, in_head, D, BIAS)
        rstd = tl.rsqrt(tl.sum(values * values, 1) / D + eps)[:, None]
        if is_query:
            if Q_NORM:
                values = _norm(values, rstd, q_norm, dims, in_head, dtype)
                partners = _norm(partners, rstd, q_norm, partner_dims, in_head, dtype)
        elif K_NORM:
            values = _norm(values, rstd, k_norm, dims, in_head, dtype)
            partners = _norm(partners, rstd, k_norm, partner_dims, in_head, dtype)
        angle = table + tl.load(positions + token).to(tl.int64) * (2 * HALF) + dims % HALF
        cos = rounded(tl.load(angle, mask=turned, other=1.0), dtype).to(tl.float32)[None, :]
        sin = rounded(tl.load(angle + HALF, mask=turned, other=0.0), dtype).to(tl.float32)[None, :]
        straight = rounded(values * cos, dtype).to(tl.float32)
        crossed = rounded(partners * sin, dtype).to(tl.float32)
        rotated = straight + tl.where(dims < HALF, -1.0, 1.0)[None, :] * crossed
        values = tl.where(turned[None, :], rotated, values)
    if is_query:
        out = queries + (token * NUM_HEADS + heads[:, None]) * D + dims[None, :]
        tl.store(out, rounded(values, dtype), mask=in_head[None, :])
    else:
        kind = is_value.to(tl.int64)
        own = heads - NUM_HEADS - kind * NUM_KV_HEADS
        places = (kind * NUM_KV_HEADS + own) * PAGE + slot % PAGE  # [BH], of the page's vectors
        target = kv + slot // PAGE * kv_stride + places[:, None] * D + dims[None, :]
        values = rounded(values, dtype).to(tl.float32)
        if FP8:
            scale = tl.max(tl.abs(values), 1) / 448.0
            scale = tl.where(scale == 0, 1.0, scale)
            numbers = tl.div_rn(values, tl.broadcast_to(scale[:, None], values.shape))
            tl.store(target, encoded(numbers), mask=in_head[None, :])
            tl.store(scales + slot // PAGE * scale_stride + places, scale)
        else:
            tl.store(target, rounded(values, kv.dtype.element_ty), mask=in_head[None, :])


def rope_and_write(
    qkv: Tensor,
    *,
    num_heads: int,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
    rope_table: Tensor,
    positions: Tensor,
    slots: Tensor,
    kv: KVLayer,
    bias: Tensor | None = None,
) -> Tensor:
    """qkv [T, (Hq + 2 Hkv) D] -> queries [T, Hq, D]; keys and values go to `slots` [T] (page * 64 + offset) of kv [pages, 2, Hkv, 64, D].

    Computes `ops.reference.rope.rope_and_write` after adding bias [(Hq + 2 Hkv) D]. rope_table [P, 2, rotary_dim / 2] fp32 is the whole
    table, of which row positions[t] turns token t. A slot below 0 writes nothing: those are the padding rows of a CUDA graph, whose
    position must still be one of the table. Nothing is read back by the host.
    """
    data = kv_tensors(kv)[0]
    num_kv_heads, head_dim = data.shape[2], data.shape[4]
    num_tokens, half = qkv.shape[0], rope_table.shape[-1]
    total = num_heads + 2 * num_kv_heads
    if qkv.dim() != 2 or qkv.shape[1] != total * head_dim or qkv.stride(1) != 1:
        raise ValueError(f"qkv {tuple(qkv.shape)} is not [T, {total} * {head_dim}] with contiguous rows")
    if 2 * half > head_dim or not rope_table.is_contiguous() or data.shape[3] != PAGE_SIZE or not data[0].is_contiguous():
        raise ValueError("the RoPE table or the pages do not fit the heads, or are not contiguous")
    if positions.shape != (num_tokens,) or slots.shape != (num_tokens,) or not (positions.is_contiguous() and slots.is_contiguous()):
        raise ValueError(f"positions {tuple(positions.shape)} and slots {tuple(slots.shape)} are not {num_tokens} in a row")
    queries = torch.empty(num_tokens, num_heads, head_dim, dtype=qkv.dtype, device=qkv.device)
    if not num_tokens:
        return queries
    block = 1 if num_tokens <= _FEW_TOKENS else gcd(num_heads, num_kv_heads, _MAX_HEADS)
    fp8 = isinstance(kv, Fp8KV)
    scales = kv.scales if isinstance(kv, Fp8KV) else data
    _rope_kernel[(num_tokens, total // block)](
        qkv,
        bias,
        q_norm,
        k_norm,
        rope_table,
        positions,
        slots,
        queries,
        data.view(torch.uint8) if fp8 else data,
        scales,
        qkv.stride(0),
        data.stride(0),
        scales.stride(0),
        eps,
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        D=head_dim,
        HALF=half,
        PAGE=PAGE_SIZE,
        BLOCK_HEADS=block,
        BLOCK_D=triton.next_power_of_2(head_dim),
        BIAS=bias is not None,
        Q_NORM=q_norm is not None,
        K_NORM=k_norm is not None,
        FP8=fp8,
        num_warps=1 if block == 1 else 2,
    )
    return queries
