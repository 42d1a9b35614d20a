"""`DeviceMatrix`: memory of one weight on the device, filled by rows while a checkpoint is read.

It has the `format`, `out_features` and `fill` of `ops.PackedLinear`, so the loader that fills packed weights fills these. No Triton is
needed. e4m3 codes and their scales stay what they are; other rows are rounded on the host, so that no matrix exists twice on the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from openglm.ops.reference.fp8_kv import FP8, quantize_kv


class DeviceMatrix:
    """A weight [N, K] in a float dtype, or in e4m3 with one fp32 scale per row. Rows are uninitialised until filled."""

    __slots__ = ("data", "scales")

    def __init__(self, data: Tensor, scales: Tensor | None = None) -> None:
        """data [N, K] contiguous; scales [N] fp32 exactly where data is e4m3."""
        if (data.dtype == FP8) != (scales is not None) or (scales is not None and scales.shape != data.shape[:1]):
            raise ValueError(f"a weight {tuple(data.shape)} in {data.dtype} needs scales for its rows exactly if it is e4m3")
        self.data, self.scales = data, scales

    @classmethod
    def empty(cls, out_features: int, in_features: int, dtype: torch.dtype, device: torch.device) -> DeviceMatrix:
        """Memory for a weight whose rows are still to come."""
        data = torch.empty(out_features, in_features, dtype=dtype, device=device)
        return cls(data, torch.empty(out_features, device=device) if dtype == FP8 else None)

    @property
    def out_features(self) -> int:
        """N."""
        return self.data.shape[0]

    @property
    def format(self) -> str:
        """ "fp8", or the name of the dtype."""
        return "fp8" if self.scales is not None else str(self.data.dtype).removeprefix("torch.")

    @property
    def num_bytes(self) -> int:
        """Device memory, with scales."""
        return self.data.nbytes + (0 if self.scales is None else self.scales.nbytes)

    def part(self, first: int, last: int) -> DeviceMatrix:
        """Rows [first, last) as a matrix on the same memory."""
        return DeviceMatrix(self.data[first:last], None if self.scales is None else self.scales[first:last])

    @torch.no_grad()
    def fill(self, first: int, rows: Tensor, scale: Tensor | None = None) -> bool:
        """Store rows [count, K] from row `first` on; different rows may come from several threads. Always True: the format is settled.

        `rows` are floats in any dtype, divided by the scales [count] where the weight is e4m3 (default: those that make each row's largest
        element 448), or e4m3 codes with their `scale`, which stay as they are.
        """
        last = first + rows.shape[0]
        fits = rows.dim() == 2 and rows.shape[1] == self.data.shape[1] and first >= 0 and last <= self.out_features
        if not fits or (scale is not None and scale.shape != rows.shape[:1]):
            raise ValueError(f"rows {tuple(rows.shape)} from {first} on do not fit a weight {tuple(self.data.shape)}")
        if rows.dtype == FP8 and (scale is None or self.scales is None):
            raise ValueError(f"e4m3 codes need their scales and a weight in fp8, not {self.format}")
        if self.scales is None:
            if scale is not None:
                raise ValueError(f"a weight in {self.format} has no scales")
        elif rows.dtype != FP8:
            rows, scale = quantize_kv(rows) if scale is None else ((rows.float() / scale.unsqueeze(1)).clamp(-448, 448).to(FP8), scale)
        if self.scales is not None and scale is not None:
            self.scales[first:last].copy_(scale)
        self.data[first:last].copy_(rows)
        return True
