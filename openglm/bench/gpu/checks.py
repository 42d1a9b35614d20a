"""How far a kernel's result is from what it should be."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

MAX_ERROR = 1e-2


@contextmanager
def poisoned() -> Iterator[None]:
    """New memory is NaN, or the largest integer, so that what a kernel does not write is seen."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    deterministic: Any = torch.utils.deterministic
    filled = deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    deterministic.fill_uninitialized_memory = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of operations that are not deterministic; nothing here needs them to be
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        deterministic.fill_uninitialized_memory = filled


def row_error(found: Tensor, expected: Tensor) -> float:
    """The worst row's distance, over the length of the row it should be: [..., D] each. NaN and another shape are infinitely far."""
    if found.shape != expected.shape:
        return float("inf")
    if not found.numel():
        return 0.0
    distance = (found.double() - expected.double()).norm(dim=-1)
    length = expected.double().norm(dim=-1)
    ratio = torch.where(distance == 0, distance, distance / length)
    return float(ratio.nan_to_num(nan=float("inf"), posinf=float("inf")).max())


def share_unequal(found: Tensor, expected: Tensor) -> float:
    """The share of rows that are not equal, for results that are choices: [N] or [N, K] integers."""
    if found.shape != expected.shape:
        return float("inf")
    unequal = found != expected
    return float((unequal if unequal.dim() == 1 else unequal.any(-1)).double().mean())
