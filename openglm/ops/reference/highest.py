"""The most likely token of every row."""

from __future__ import annotations

from torch import Tensor


def highest(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [N, V] -> the largest value of each row [N] and its first place [N] int64; a NaN counts as the largest."""
    values, places = x.max(-1)
    return values, places
