"""RMSNorm on the device, alone or fused with the residual's addition. One program per row, so a row depends on itself only."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from openglm.ops.triton.device import INTERPRETED


@triton.jit
def _rounded(value, dtype: tl.constexpr, EVEN: tl.constexpr):
    if EVEN:  # the interpreter cuts fp32 off where a GPU rounds to the nearest bf16
        bits = value.to(tl.uint32, bitcast=True)
        value = ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).to(tl.float32, bitcast=True)
    return value.to(dtype)


@triton.jit
def _norm_kernel(x, residual, weight, normed, total, width, eps, ADD: tl.constexpr, EVEN: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * width
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    value = tl.load(x + row + columns, mask=inside, other=0.0).to(tl.float32)
    dtype = normed.dtype.element_ty
    if ADD:
        value += tl.load(residual + row + columns, mask=inside, other=0.0).to(tl.float32)
        rounded = _rounded(value, dtype, EVEN)
        tl.store(total + row + columns, rounded, mask=inside)
        value = rounded.to(tl.float32)  # the norm is of the stored sum, as in the reference
    scaled = _rounded(value * (1.0 / tl.sqrt(tl.sum(value * value, 0) / width + eps)), dtype, EVEN).to(tl.float32)
    gain = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(normed + row + columns, _rounded(scaled * gain, dtype, EVEN), mask=inside)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `reference.norm.rms_norm`: x [T, D], weight [D] in the dtype of x -> [T, D]."""
    return _run(x, None, weight, eps)[0]


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x + residual, both [T, D], and its norm -> (normed [T, D], sum [T, D])."""
    return _run(x, residual, weight, eps)


def _run(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    x = x.contiguous()
    other = x if residual is None else residual.contiguous()
    assert x.dim() == 2 and other.shape == x.shape and other.dtype == x.dtype == weight.dtype, (x.shape, other.shape)
    normed = torch.empty_like(x)
    total = normed if residual is None else torch.empty_like(x)
    if x.shape[0]:
        block = triton.next_power_of_2(x.shape[1])
        even = INTERPRETED and x.dtype == torch.bfloat16
        _norm_kernel[(x.shape[0],)](x, other, weight, normed, total, x.shape[1], eps, ADD=residual is not None, EVEN=even, BLOCK=block)
    return normed, total
