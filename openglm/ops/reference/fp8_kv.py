"""KV pages in fp8: e4m3 numbers with one fp32 scale per token, head, and key or value.

A vector x [D] is stored as round(x / s) with s = max |x| / 448, so its largest element becomes the largest e4m3 number. Every vector has
its own scale, which depends on nothing but the vector: the content of a page does not depend on what was written before or beside
it, no calibration is needed, and results stay independent of batch company. Rounding to four significant bits moves an
element by at most 1/16 of itself (2^-4), and by 2^-10 s where it is below the smallest normal number.

The scale is fp32, 4 bytes beside D (128 in GLM-4.5: 3 %). In fp16 it would cost half of that, but vanish for vectors below 3e-5
and overflow for very large ones; fp32 covers all that bf16 can hold.

Not-finite input stays not finite when it is read again, so damage is noticed as with any other dtype.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0


class Fp8KV(NamedTuple):
    """One layer's pages: the same layout as plain pages, and a scale for each vector."""

    data: Tensor  # [pages, 2, Hkv, 64, D] float8_e4m3fn
    scales: Tensor  # [pages, 2, Hkv, 64] fp32


def quantize_kv(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """vectors [..., D] -> e4m3 [..., D] and scales [...]; a zero vector gets scale 1."""
    wide = vectors.float()
    scales = wide.abs().amax(-1) / FP8_MAX
    scales = scales.masked_fill(scales == 0, 1.0)
    return (wide / scales.unsqueeze(-1)).clamp(-FP8_MAX, FP8_MAX).to(FP8), scales


def dequantize_kv(data: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """The vectors that e4m3 [..., D] and scales [...] stand for, in `dtype`."""
    return (data.float() * scales.unsqueeze(-1)).to(dtype)
