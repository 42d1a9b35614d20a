"""Small copies between host and device for which nobody waits, or not yet.

A plain `torch.tensor(..., device=...)` and `tolist` on a GPU wait until everything that was launched before has run. Here both sides lie in
pinned memory and the copies take their turn on the stream of the steps, so the host goes on meanwhile. On a CPU nothing changes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Numbers = Sequence[int] | Sequence[float] | Sequence[Sequence[int]] | Sequence[Sequence[float]]
Readback = Callable[[], list[float]]
"""Waits for one copy to the host and gives its numbers (whole ones of an integer tensor)."""


def to_device(values: Numbers, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of these numbers."""
    if device.type == "cpu":
        return torch.tensor(values, dtype=dtype)
    return torch.tensor(values, dtype=dtype, pin_memory=True).to(device, non_blocking=True)


def read_back(values: Tensor) -> Readback:
    """Ask for a copy of values [N] as they are when all work launched so far is done."""
    if values.device.type == "cpu":
        return values.tolist
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    host.copy_(values, non_blocking=True)
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(values.device))

    def read() -> list[float]:
        event.synchronize()
        numbers: list[float] = host.tolist()
        return numbers

    return read
