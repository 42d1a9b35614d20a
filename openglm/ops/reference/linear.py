"""Matrix product with a weight, optionally on fixed row tiles."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, row_tile: int | None = None) -> Tensor:
    """`x @ weight.T + bias`: x [T, K], weight [N, K], bias [N] -> [T, N] in the dtype of x.

    With `row_tile` every product has exactly that many rows, so a row's result does not depend on its company.
    """
    if row_tile is None:
        return F.linear(x, weight, bias)
    num_rows = x.shape[0]
    padded = pad_rows(x, row_tile)
    if padded.shape[0] == row_tile:
        return F.linear(padded, weight, bias)[:num_rows]
    return torch.cat([F.linear(tile, weight, bias) for tile in padded.split(row_tile)])[:num_rows]


def pad_rows(x: Tensor, multiple: int) -> Tensor:
    """Append zero rows until the number of rows is a positive multiple of `multiple`."""
    missing = -x.shape[0] % multiple
    return F.pad(x, (0, 0) * (x.dim() - 1) + (0, missing)) if missing else x
