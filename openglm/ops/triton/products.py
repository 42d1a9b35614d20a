"""What the kernels of this package share: stored weights as numbers, one step of a tiled product, results as they are stored."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.target_info import cuda_capability_geq

from openglm.ops.triton.device import INTERPRETED

_CUTS_OFF = tl.constexpr(INTERPRETED)
_ON_DEVICE = tl.constexpr(not INTERPRETED)


@triton.jit
def numbers(stored, FP8_CODES: tl.constexpr):
    """Weights as fp32; e4m3fn codes come as bytes, because not every device converts them.

    By hand it takes some eight integer instructions an element, more than a Hopper has time for at the rate of its memory; from sm_89 on
    one instruction converts two.
    """
    if FP8_CODES:
        if _ON_DEVICE and cuda_capability_geq(8, 9):
            return stored.to(tl.float8e4nv, bitcast=True).to(tl.float32)
        code = stored.to(tl.int32)
        magnitude = code & 0x7F
        normal = ((magnitude << 20) + (120 << 23)).to(tl.float32, bitcast=True)
        value = tl.where(magnitude < 8, magnitude.to(tl.float32) * 0.001953125, normal)
        value = tl.where(magnitude == 0x7F, float("nan"), value)
        return tl.where(code >= 0x80, -value, value)
    return stored.to(tl.float32)


@triton.jit
def multiplied(given, stored, total, FP8_CODES: tl.constexpr, UPCAST: tl.constexpr):
    """total [B, BN] + given [B, BK] times stored [BK, BN]."""
    if UPCAST:
        return tl.dot(given.to(tl.float32), numbers(stored, FP8_CODES), total, input_precision="ieee")
    elif FP8_CODES:  # noqa: RET505 - both branches are constexpr
        return tl.dot(given, numbers(stored, FP8_CODES).to(given.dtype), total, input_precision="ieee")
    else:
        return tl.dot(given, stored.to(given.dtype), total, input_precision="ieee")


@triton.jit
def rounded(value, dtype: tl.constexpr):
    """fp32 in another dtype, to the nearest; the interpreter by itself cuts fp32 off where a GPU rounds to bf16."""
    if _CUTS_OFF and dtype == tl.bfloat16:
        bits = value.to(tl.uint32, bitcast=True)
        value = ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).to(tl.float32, bitcast=True)
    return value.to(dtype)
