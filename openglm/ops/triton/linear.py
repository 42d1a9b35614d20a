"""Linear layers on the device: weights in a float dtype, or in e4m3 with a scale per output.

    up to 16 rows: blocks of outputs x pieces of K -> partial sums, joined in order
    more rows:     blocks of rows x blocks of outputs, K from first to last

Few rows read the weight once and do nothing else, so what counts is bytes in flight: where one program per 64 outputs would leave
multiprocessors idle (o_proj of GLM-4.5-Air has 4,096 outputs), K is cut into pieces until there are two programs for each of them. The
pieces are a function of the weight's shape, and their sums are added in order, without atomics: results repeat, and within a path a row
does not depend on its company. The two paths add in another order.

Shape legend: T rows, K inputs, N outputs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from openglm.ops.reference.fp8_kv import FP8, quantize_kv
from openglm.ops.triton.device import INTERPRETED
from openglm.ops.triton.products import multiplied, rounded

_FEW_ROWS = 16  # the smallest tile of a matrix instruction
_MANY_ROWS = 64
_COLUMNS = 64
_INNER = 128
_PROGRAMS = 264  # two for each multiprocessor of an H100 or H200
_MOST_PIECES = 16


@triton.jit
def _finished(total, scales, row_scales, bias, residual, row, n, inside, N, SCALED: tl.constexpr, ROW_SCALED: tl.constexpr,
              BIASED: tl.constexpr, RESIDUAL: tl.constexpr):  # fmt: skip
    """Scales, bias and residual, where there are any: total [B, BN] of rows [B] and outputs [BN]."""
    if SCALED:
        total *= tl.load(scales + n, mask=n < N, other=0.0)[None, :]
    if ROW_SCALED:
        total *= tl.load(row_scales + row, mask=inside, other=0.0)[:, None]
    if BIASED:
        total += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    if RESIDUAL:
        total += tl.load(residual + row[:, None] * N + n[None, :], mask=inside[:, None] & (n < N)[None, :], other=0.0).to(tl.float32)
    return total


@triton.jit
def _product_kernel(
    x, weight, scales, row_scales, bias, residual, out, rows, N, K, piece, PIECES: tl.constexpr, B: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr, FP8_CODES: tl.constexpr, SCALED: tl.constexpr, ROW_SCALED: tl.constexpr, BIASED: tl.constexpr,
    RESIDUAL: tl.constexpr, UPCAST: tl.constexpr
):  # fmt: skip
    """out [rows, N], or with several pieces of K partial sums [PIECES, rows, N]."""
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    row = tl.program_id(1).to(tl.int64) * B + tl.arange(0, B)
    first = tl.program_id(2) * piece
    last = tl.minimum(first + piece, K)
    inside = row < rows
    k = tl.arange(0, BK)
    columns = weight + n.to(tl.int64)[None, :] * K
    total = tl.zeros((B, BN), tl.float32)
    for start in range(first, last, BK):
        at = start + k
        given = tl.load(x + row[:, None] * K + at[None, :], mask=inside[:, None] & (at < last)[None, :], other=0.0)
        stored = tl.load(columns + at[:, None], mask=(at < last)[:, None] & (n < N)[None, :], other=0)
        total = multiplied(given, stored, total, FP8_CODES, UPCAST)
    if PIECES == 1:
        total = _finished(total, scales, row_scales, bias, residual, row, n, inside, N, SCALED, ROW_SCALED, BIASED, RESIDUAL)
    place = (tl.program_id(2).to(tl.int64) * rows + row)[:, None] * N + n[None, :]
    tl.store(out + place, rounded(total, out.dtype.element_ty), mask=inside[:, None] & (n < N)[None, :])


@triton.jit
def _join_kernel(
    partial, scales, row_scales, bias, residual, out, rows, N, PIECES: tl.constexpr, BN: tl.constexpr, SCALED: tl.constexpr,
    ROW_SCALED: tl.constexpr, BIASED: tl.constexpr, RESIDUAL: tl.constexpr
):  # fmt: skip
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    row = tl.program_id(1).to(tl.int64) + tl.arange(0, 1)
    inside = row < rows
    total = tl.zeros((1, BN), tl.float32)
    for piece in range(PIECES):
        place = (piece * rows.to(tl.int64) + row)[:, None] * N + n[None, :]
        total += tl.load(partial + place, mask=(n < N)[None, :], other=0.0)
    total = _finished(total, scales, row_scales, bias, residual, row, n, inside, N, SCALED, ROW_SCALED, BIASED, RESIDUAL)
    tl.store(out + row[:, None] * N + n[None, :], rounded(total, out.dtype.element_ty), mask=(n < N)[None, :])


class DeviceLinear:
    """A weight [N, K] with an optional bias; `quantize_activations` rounds rows to e4m3 too, a scale for each (dynamic W8A8)."""

    def __init__(
        self, weight: Tensor, *, scales: Tensor | None = None, bias: Tensor | None = None, quantize_activations: bool = False
    ) -> None:
        """weight contiguous; scales [N] fp32 exactly where it is e4m3; bias [N] in any float dtype."""
        outputs, inputs = weight.shape
        fp8 = weight.dtype == FP8
        if fp8 != (scales is not None) or not weight.is_contiguous():
            raise ValueError(f"a weight {tuple(weight.shape)} in {weight.dtype} must be contiguous and have scales exactly if it is e4m3")
        if any(vector is not None and vector.shape != (outputs,) for vector in (scales, bias)):
            raise ValueError(f"scales and bias must have one element for each of {outputs} outputs")
        self.out_features, self.in_features = outputs, inputs
        self._weight = weight.view(torch.uint8) if fp8 else weight
        self._scales, self._bias, self._quantize = scales, bias, quantize_activations
        blocks = triton.cdiv(outputs, _COLUMNS)
        steps = triton.cdiv(inputs, _INNER)
        pieces = max(1, min(_MOST_PIECES, _PROGRAMS // blocks, steps))
        self._piece = triton.cdiv(steps, pieces) * _INNER  # inputs of a piece
        self._pieces = triton.cdiv(inputs, self._piece)

    @classmethod
    def quantized(cls, weight: Tensor, *, bias: Tensor | None = None, quantize_activations: bool = False) -> DeviceLinear:
        """The weight rounded to e4m3, with the scales that make each row's largest element 448."""
        codes, scales = quantize_kv(weight)
        return cls(codes, scales=scales, bias=bias, quantize_activations=quantize_activations)

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x [T, K] -> [T, N] in x's dtype, plus `residual` [T, N] if given."""
        return self._run(x, residual, x.dtype)

    def logits(self, x: Tensor) -> Tensor:
        """x [T, K] -> [T, N] fp32."""
        return self._run(x, None, torch.float32)

    def _run(self, x: Tensor, residual: Tensor | None, dtype: torch.dtype) -> Tensor:
        rows = x.shape[0]
        if x.dim() != 2 or x.shape[1] != self.in_features or (residual is not None and residual.shape != (rows, self.out_features)):
            raise ValueError(f"x {tuple(x.shape)} does not fit a weight ({self.out_features}, {self.in_features}), or its residual x")
        out = torch.empty(rows, self.out_features, dtype=dtype, device=x.device)
        if not rows:
            return out
        row_scales = None
        if self._quantize:
            codes, row_scales = quantize_kv(x)
            x = codes.to(x.dtype)  # exact: what is multiplied are the codes, and the scale comes behind the sum
        x, residual = x.contiguous(), None if residual is None else residual.contiguous()
        few = rows <= _FEW_ROWS
        pieces = self._pieces if few else 1
        ends = {
            "SCALED": self._scales is not None,
            "ROW_SCALED": row_scales is not None,
            "BIASED": self._bias is not None,
            "RESIDUAL": residual is not None,
        }
        beside = (self._scales, row_scales, self._bias, residual)
        target = out if pieces == 1 else torch.empty(pieces, rows, self.out_features, device=x.device)
        height = _FEW_ROWS if few else _MANY_ROWS
        grid = (triton.cdiv(self.out_features, _COLUMNS), triton.cdiv(rows, height), pieces)
        _product_kernel[grid](
            x, self._weight, *beside, target, rows, self.out_features, self.in_features, self._piece if few else self.in_features,
            PIECES=pieces, B=height, BN=_COLUMNS, BK=_INNER, FP8_CODES=self._scales is not None, UPCAST=INTERPRETED, **ends,
        )  # fmt: skip
        if pieces > 1:
            _join_kernel[triton.cdiv(self.out_features, 4 * _COLUMNS), rows](
                target, *beside, out, rows, self.out_features, PIECES=pieces, BN=4 * _COLUMNS, **ends
            )
        return out
