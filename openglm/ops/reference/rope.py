"""Partial rotary position embedding in the half-split (NeoX) layout.

Only the first `rotary_dim` dims of a head turn; pair i is (i, i + rotary_dim / 2). Facts: transformers
`modeling_glm4_moe.py`, vLLM and llama.cpp (NEOX) agree.
"""

from __future__ import annotations

import torch
from torch import Tensor


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
