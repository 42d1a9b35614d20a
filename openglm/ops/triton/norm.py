"""RMSNorm on the device, alone or fused with the residual's addition. One program per row, so a row depends on itself only."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from openglm.ops.triton.products import rounded


@triton.jit
def _norm_kernel(x, residual, weight, normed, total, width, eps, ADD: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * width
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    value = tl.load(x + row + columns, mask=inside, other=0.0).to(tl.float32)
    dtype = normed.dtype.element_ty
    if ADD:
        value += tl.load(residual + row + columns, mask=inside, other=0.0).to(tl.float32)
        stored = rounded(value, dtype)
        tl.store(total + row + columns, stored, mask=inside)
        value = stored.to(tl.float32)  # the norm is of the stored sum, as in the reference
    scaled = rounded(value * (1.0 / tl.sqrt(tl.sum(value * value, 0) / width + eps)), dtype).to(tl.float32)
    gain = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(normed + row + columns, rounded(scaled * gain, dtype), mask=inside)


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
        _norm_kernel[(x.shape[0],)](x, other, weight, normed, total, x.shape[1], eps, ADD=residual is not None, BLOCK=block)
    return normed, total
