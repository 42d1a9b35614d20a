"""What the kernels of this package share: stored weights as numbers, one step of a tiled product, results as they are stored."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.target_info import cuda_capability_geq

from openglm.ops.triton.device import INTERPRETED

_CUTS_OFF = tl.constexpr(INTERPRETED)
_ON_DEVICE = tl.constexpr(not INTERPRETED)


@triton.jit
def decoded(codes, dtype: tl.constexpr):
    """Codes of e4m3fn as bytes -> the numbers they stand for: two by one instruction from sm_89 on, by hand elsewhere.

    By hand it takes some eight integer instructions an element, more than a Hopper has time for at the rate of its memory.
    """
    if _ON_DEVICE and cuda_capability_geq(8, 9):
        return codes.to(tl.float8e4nv, bitcast=True).to(dtype)
    wide = codes.to(tl.int16)
    bits = ((wide & 0x80) << 8) | ((wide & 0x7F) << 7)
    values = bits.to(tl.float16, bitcast=True).to(tl.float32) * 256.0  # the bias of fp16 is larger by 8
    return tl.where((wide & 0x7F) == 0x7F, float("nan"), values).to(dtype)


@triton.jit
def encoded(x):
    """fp32 -> codes of the OCP format e4m3fn, to the nearest and even, clamped to 448; NaN stays NaN.

    In integers, because hardware before sm_89 and AMD's gfx942 have no such conversion, and the interpreter rounds it wrongly.
    """
    bits = x.to(tl.int32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    absolute = tl.minimum(magnitude.to(tl.float32, bitcast=True), 448.0)
    clamped = absolute.to(tl.int32, bitcast=True)
    normal = ((clamped + 0x7FFFF + ((clamped >> 20) & 1)) >> 20) - (120 << 3)
    # Below 2^-6 codes are multiples of 2^-9, which is the spacing of fp32 at 16384.
    small = (absolute + 16384.0).to(tl.int32, bitcast=True) - 0x46800000
    code = tl.where(clamped < 0x3C800000, small, normal)
    code = tl.where(magnitude > 0x7F800000, 0x7F, code)
    return (code | ((bits >> 24) & 0x80)).to(tl.uint8)


@triton.jit
def numbers(stored, FP8_CODES: tl.constexpr):
    """Weights as fp32; e4m3fn codes come as bytes, because not every device converts them."""
    if FP8_CODES:
        return decoded(stored, tl.float32)
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
