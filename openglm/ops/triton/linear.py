"""Linear layers on the device: weights in a float dtype, or in e4m3 with a scale per output.

    up to 16 rows:   blocks of outputs x pieces of K -> partial sums, joined in order
    up to 128 rows:  blocks of rows x blocks of outputs, K from first to last
    more:            the same with larger blocks, or the library's product where it was measured to be faster

Few rows read the weight once and do nothing else, so what counts is bytes in flight: where one program per 64 outputs would leave
multiprocessors idle (o_proj of GLM-4.5-Air has 4,096 outputs), K is cut into pieces until there are two programs for each of them. The
pieces are a function of the weight's shape and the number of multiprocessors, and their sums are added in order, without atomics.

Which tile a path runs with is measured at its first call (`tuning`) and then stays, for all row counts of the path. So results repeat, and
within a path of our own kernels a row does not depend on its company. Paths add in another order than each other, and so may tiles. The
library chooses its kernel by the number of rows: only there, above 128 rows on a GPU, may a row's last bit depend on how many there are.

A checkpoint may ask that rows are rounded to e4m3 too, a scale for each (`quantize_activations`). That is done where it is faster: above
128 rows, by `torch._scaled_mm` on hardware that multiplies e4m3 by rows and columns. With fewer rows time goes into reading weights, whose
codes are multiplied by rows as they are, which costs nothing and rounds nothing. So the number of rows decides, and no measurement.

Shape legend: T rows, K inputs, N outputs.
"""

from __future__ import annotations

from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from openglm.ops.reference.fp8_kv import FP8, quantize_kv
from openglm.ops.triton.device import INTERPRETED, DeviceLimits, limits
from openglm.ops.triton.products import encoded, multiplied, numbers, rounded
from openglm.ops.triton.tuning import LIBRARY, Tile, fitting, tuner

FEW_ROWS = 16
"""Up to here K is cut: the smallest tile of a matrix instruction."""
SOME_ROWS = 128
_PIECE = 256  # a piece of K is a multiple of it, whatever the tile, so that a tile does not decide where K is cut
_MOST_PIECES = 16
_COLUMNS = 64  # of the tile by which pieces are counted
_BAND = 8  # blocks of rows that run beside each other and share what they read of the weight in L2
_JOINED = 256

# Best guesses first, by arithmetic and by what compiles without spills; on a GPU a measurement decides.
TILES = {
    "few": [
        Tile(16, 64, 128, 4, 4),
        Tile(16, 64, 128, 4, 4, swapped=True),
        Tile(16, 32, 256, 4, 3),
        Tile(16, 64, 256, 8, 3),
        Tile(16, 128, 128, 4, 3, swapped=True),
        Tile(16, 32, 128, 4, 2),
    ],
    "some": [Tile(64, 64, 128, 4, 3), Tile(32, 64, 128, 4, 3), Tile(64, 128, 64, 4, 4), Tile(128, 64, 64, 4, 3), Tile(64, 64, 64, 4, 2)],
    "many": [Tile(128, 128, 64, 8, 3), Tile(128, 128, 32, 8, 4), Tile(64, 128, 64, 4, 3), Tile(64, 64, 64, 4, 2)],
}


@triton.jit
def _finished(
    total, scales, bias, residual, row, n, inside, N, SCALED: tl.constexpr, BIASED: tl.constexpr, RESIDUAL: tl.constexpr
):  # fmt: skip
    """Scales, bias and residual, where there are any: total [B, BN] of rows [B] and outputs [BN]."""
    if SCALED:
        total *= tl.load(scales + n, mask=n < N, other=0.0)[None, :]
    if BIASED:
        total += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    if RESIDUAL:
        total += tl.load(residual + row[:, None] * N + n[None, :], mask=inside[:, None] & (n < N)[None, :], other=0.0).to(tl.float32)
    return total


@triton.jit
def _product_kernel(
    x, weight, scales, bias, residual, out, rows, N, K, piece, PIECES: tl.constexpr, B: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr, SWAPPED: tl.constexpr, BAND: tl.constexpr, FP8_CODES: tl.constexpr, SCALED: tl.constexpr,
    BIASED: tl.constexpr, RESIDUAL: tl.constexpr, UPCAST: tl.constexpr
):  # fmt: skip
    """out [rows, N], or with several pieces of K partial sums [PIECES, rows, N]."""
    # Programs go through BAND blocks of rows at one block of outputs, then to the next outputs, then to the next band.
    heights = tl.cdiv(rows, B)
    band = BAND * tl.cdiv(N, BN)
    first_height = tl.program_id(0) // band * BAND
    tall = tl.minimum(heights - first_height, BAND)
    within = tl.program_id(0) % band
    row = (first_height + within % tall).to(tl.int64) * B + tl.arange(0, B)
    n = within // tall * BN + tl.arange(0, BN)
    first = tl.program_id(1) * piece
    last = tl.minimum(first + piece, K)
    inside = row < rows
    k = tl.arange(0, BK)
    if SWAPPED:
        across = weight + n.to(tl.int64)[:, None] * K
        turned = tl.zeros((BN, B), tl.float32)
        for start in range(first, last, BK):
            at = start + k
            given = tl.load(x + row[None, :] * K + at[:, None], mask=inside[None, :] & (at < last)[:, None], other=0.0)
            stored = tl.load(across + at[None, :], mask=(n < N)[:, None] & (at < last)[None, :], other=0)
            if UPCAST:
                turned = tl.dot(numbers(stored, FP8_CODES), given.to(tl.float32), turned, input_precision="ieee")
            else:
                turned = tl.dot(numbers(stored, FP8_CODES).to(given.dtype), given, turned, input_precision="ieee")
        total = tl.trans(turned)
    else:
        columns = weight + n.to(tl.int64)[None, :] * K
        total = tl.zeros((B, BN), tl.float32)
        for start in range(first, last, BK):
            at = start + k
            given = tl.load(x + row[:, None] * K + at[None, :], mask=inside[:, None] & (at < last)[None, :], other=0.0)
            stored = tl.load(columns + at[:, None], mask=(at < last)[:, None] & (n < N)[None, :], other=0)
            total = multiplied(given, stored, total, FP8_CODES, UPCAST)
    if PIECES == 1:
        total = _finished(total, scales, bias, residual, row, n, inside, N, SCALED, BIASED, RESIDUAL)
    place = (tl.program_id(1).to(tl.int64) * rows + row)[:, None] * N + n[None, :]
    tl.store(out + place, rounded(total, out.dtype.element_ty), mask=inside[:, None] & (n < N)[None, :])


@triton.jit
def _round_kernel(x, codes, scales, K, BLOCK: tl.constexpr):
    """One row in e4m3, as `quantize_kv` rounds it."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    values = tl.load(x + row * K + at, mask=at < K, other=0.0).to(tl.float32)
    scale = tl.max(tl.abs(values), 0) / 448.0
    scale = tl.where(scale == 0, 1.0, scale)
    tl.store(codes + row * K + at, encoded(tl.div_rn(values, tl.broadcast_to(scale, values.shape))), mask=at < K)
    tl.store(scales + row, scale)


@triton.jit
def _join_kernel(
    partial, scales, bias, residual, out, rows, N, PIECES: tl.constexpr, BN: tl.constexpr, SCALED: tl.constexpr,
    BIASED: tl.constexpr, RESIDUAL: tl.constexpr
):  # fmt: skip
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    row = tl.program_id(1).to(tl.int64) + tl.arange(0, 1)
    inside = row < rows
    total = tl.zeros((1, BN), tl.float32)
    for piece in range(PIECES):
        place = (piece * rows.to(tl.int64) + row)[:, None] * N + n[None, :]
        total += tl.load(partial + place, mask=(n < N)[None, :], other=0.0)
    total = _finished(total, scales, bias, residual, row, n, inside, N, SCALED, BIASED, RESIDUAL)
    tl.store(out + row[:, None] * N + n[None, :], rounded(total, out.dtype.element_ty), mask=(n < N)[None, :])


def path_of(rows: int) -> str:
    """The path that so many rows take: a key of `TILES`."""
    return "few" if rows <= FEW_ROWS else "some" if rows <= SOME_ROWS else "many"


def piece_of(outputs: int, inputs: int, device: DeviceLimits) -> int:
    """Inputs of a piece of K on the path of few rows."""
    steps = triton.cdiv(inputs, _PIECE)
    pieces = max(1, min(_MOST_PIECES, 2 * device.num_sms // triton.cdiv(outputs, _COLUMNS), steps))
    return int(triton.cdiv(steps, pieces) * _PIECE)


class DeviceLinear:
    """A weight [N, K] with an optional bias; `quantize_activations` rounds many rows to e4m3 too, a scale for each (dynamic W8A8)."""

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
        self._limits, self._on_gpu = limits(weight.device), weight.is_cuda
        self._piece = piece_of(outputs, inputs, self._limits)
        self._chosen: dict[tuple[str, torch.dtype, torch.dtype, bool], Tile] = {}

    @classmethod
    def quantized(
        cls, weight: Tensor, scheme: str = "fp8", *, bias: Tensor | None = None, quantize_activations: bool = False
    ) -> DeviceLinear:
        """The weight rounded to e4m3, the only `scheme` so far, with the scales that make each row's largest element 448."""
        if scheme != "fp8":
            raise ValueError(f"weights on the device are rounded to fp8 or not at all, not to {scheme!r:.40}")
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
        x, residual = x.contiguous(), None if residual is None else residual.contiguous()
        if self.rounds(rows, x.dtype) and dtype == x.dtype:
            self._multiply_rounded(x, residual, out)
            return out
        path = path_of(rows)
        run = partial(self._launch, x, residual, out, path)
        kind = (path, x.dtype, dtype, residual is not None)
        if kind not in self._chosen:
            self._chosen[kind] = self._choose(kind, run)
        run(self._chosen[kind])
        return out

    def rounds(self, rows: int, dtype: torch.dtype) -> bool:
        """Whether so many rows of this dtype are rounded to e4m3 first. Their residual is added by itself then, so a norm may as well."""
        whole = self.out_features % 16 == 0 and self.in_features % 16 == 0 and (self._bias is None or self._bias.dtype == dtype)
        asked = self._quantize and path_of(rows) == "many" and dtype == torch.bfloat16 and whole
        return asked and _multiplies_codes(self._weight.device, self._limits)

    def _multiply_rounded(self, x: Tensor, residual: Tensor | None, out: Tensor) -> None:
        assert self._scales is not None
        codes, row_scales = rounded_rows(x)
        torch._scaled_mm(
            codes,
            self._weight.view(FP8).t(),
            scale_a=row_scales.view(-1, 1),
            scale_b=self._scales.view(1, -1),
            bias=self._bias,
            out_dtype=out.dtype,
            out=out,
        )
        if residual is not None:
            out.add_(residual)

    def _choose(self, kind: tuple[str, torch.dtype, torch.dtype, bool], run: partial[None]) -> Tile:
        path, given, result, residual = kind
        tiles = fitting(TILES[path], self._limits, given.itemsize, self._weight.element_size())
        if path == "many" and self._library_fits(given, result, residual=residual):
            tiles.insert(0, LIBRARY)
        stored = "fp8" if self._scales is not None else self._weight.dtype
        scheme = f"{given} x {stored} + {'residual' if residual else 'nothing'} -> {result}"
        return tuner(self._weight.device).choose(f"linear {path}", (self.out_features, self.in_features, scheme), tiles, run)

    def _library_fits(self, given: torch.dtype, result: torch.dtype, *, residual: bool) -> bool:
        """Whether torch has the product in one call, rounded once (but for sums of pieces of K, which cuBLAS may keep in bf16)."""
        if not self._on_gpu or result != given or (residual and self._bias is not None):
            return False
        if self._bias is not None and self._bias.dtype != given:
            return False
        return self._scales is None and given == self._weight.dtype and given in (torch.bfloat16, torch.float16)

    def _launch(
        self,
        x: Tensor,
        residual: Tensor | None,
        out: Tensor,
        path: str,
        tile: Tile,
    ) -> None:
        if tile == LIBRARY:
            self._call_library(x, residual, out)
            return
        rows, outputs, inputs = x.shape[0], self.out_features, self.in_features
        piece = self._piece if path == "few" else inputs
        pieces = triton.cdiv(inputs, piece)
        ends = {
            "SCALED": self._scales is not None,
            "BIASED": self._bias is not None,
            "RESIDUAL": residual is not None,
        }
        beside = (self._scales, self._bias, residual)
        target = out if pieces == 1 else torch.empty(pieces, rows, outputs, device=x.device)
        _product_kernel[(triton.cdiv(outputs, tile.columns) * triton.cdiv(rows, tile.rows), pieces)](
            x, self._weight, *beside, target, rows, outputs, inputs, piece, PIECES=pieces, B=tile.rows, BN=tile.columns, BK=tile.inner,
            SWAPPED=tile.swapped, BAND=_BAND, FP8_CODES=self._scales is not None, UPCAST=INTERPRETED, **ends,
            **tile.options(self._limits),
        )  # fmt: skip
        if pieces > 1:
            _join_kernel[triton.cdiv(outputs, _JOINED), rows](target, *beside, out, rows, outputs, PIECES=pieces, BN=_JOINED, **ends)

    def _call_library(self, x: Tensor, residual: Tensor | None, out: Tensor) -> None:
        """The product by torch: cuBLAS on NVIDIA, hipBLASLt on AMD. Only where `_library_fits`."""
        added = self._bias if residual is None else residual
        if added is None:
            torch.mm(x, self._weight.t(), out=out)
        else:
            torch.addmm(added, x, self._weight.t(), out=out)


def rounded_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [T, K] contiguous -> e4m3 codes [T, K] and scales [T] fp32, those of `quantize_kv`."""
    codes, scales = torch.empty(x.shape, dtype=torch.uint8, device=x.device), torch.empty(x.shape[0], device=x.device)
    block = triton.next_power_of_2(x.shape[1])
    _round_kernel[(x.shape[0],)](x, codes, scales, x.shape[1], BLOCK=block, num_warps=8 if block > 4096 else 4)
    return codes.view(FP8), scales


def _multiplies_codes(device: torch.device, found: DeviceLimits) -> bool:
    """Whether `torch._scaled_mm` takes a scale for each row and column there."""
    return device.type == "cuda" and found.fp8_dot and (found.is_hip or found.capability >= (9, 0))
