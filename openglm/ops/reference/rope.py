"""Partial rotary position embedding in the half-split (NeoX) layout.

Only the first `rotary_dim` dims of a head turn; pair i is (i, i + rotary_dim / 2). Facts: transformers
`modeling_glm4_moe.py`, vLLM and llama.cpp (NEOX) agree.
"""

from __future__ import annotations

import torch
from torch import Tensor

from openglm.ops.reference.attention import KVLayer, kv_tensors, write_kv
from openglm.ops.reference.norm import rms_norm


def rope_table(max_positions: int, rotary_dim: int, theta: float, device: torch.device | str | None = None) -> Tensor:
    """Cosines and sines for every position: [max_positions, 2, rotary_dim // 2] fp32, angles taken in fp32."""
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.int64, device=device).float() / rotary_dim
    angles = torch.outer(torch.arange(max_positions, device=device).float(), 1.0 / theta**exponents)
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def apply_rope(x: Tensor, table: Tensor) -> Tensor:
    """Turn x [T, heads, D] by the rows table [T, 2, rotary_dim // 2] of its positions; returns the dtype of x."""
    half = table.shape[-1]
    cos, sin = table.to(x.dtype).unsqueeze(2).unbind(1)  # [T, 1, half] each
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)


def rope_heads(
    qkv: Tensor, *, num_heads: int, num_kv_heads: int, q_norm: Tensor | None, k_norm: Tensor | None, eps: float, rope: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """qkv [T, (Hq + 2 Hkv) D], rope [T, 2, rotary_dim // 2] -> queries [T, Hq, D], keys and values [T, Hkv, D].

    Queries and keys are normed per head where a norm weight [D] is given, then turned.
    """
    heads = qkv.unflatten(-1, (num_heads + 2 * num_kv_heads, -1))
    q, k, v = heads.split([num_heads, num_kv_heads, num_kv_heads], dim=1)
    q = q if q_norm is None else rms_norm(q, q_norm, eps)
    k = k if k_norm is None else rms_norm(k, k_norm, eps)
    return apply_rope(q, rope), apply_rope(k, rope), v


def rope_and_write(
    qkv: Tensor,
    *,
    num_heads: int,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
    rope: Tensor,
    slots: Tensor,
    kv: KVLayer,
) -> Tensor:
    """`rope_heads`, with keys and values written to their slots [T] of kv [pages, 2, Hkv, 64, D]; returns the queries [T, Hq, D]."""
    q, k, v = rope_heads(
        qkv, num_heads=num_heads, num_kv_heads=kv_tensors(kv)[0].shape[2], q_norm=q_norm, k_norm=k_norm, eps=eps, rope=rope
    )
    write_kv(kv, slots, k, v)
    return q
