"""What every kernel that chains drafts is asked, checked before an address or an index is made of it, and as a device reads it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from openglm.config.engine import PAGE_SIZE


class Chains(NamedTuple):
    """R sequences with T settled states in all, on the device; a CUDA graph reads what the tensors hold when it runs."""

    tokens: Tensor  # [T] int64: what follows each state
    positions: Tensor  # [T] int64
    owners: Tensor  # [T] int64: the sequence of each state; -1 in a row that pads
    tips: Tensor  # [R] int64: each sequence's last row, where its chain begins
    depths: Tensor  # [R] int64: drafts of each sequence; 0 pads
    page_table: Tensor  # [R, P] int64


def rows_of(first_rows: Sequence[int], counts: Sequence[int], positions: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
    """Positions, owners and rows of the hidden states of all settled states, sequence after sequence."""
    places: list[int] = []
    owners: list[int] = []
    rows: list[int] = []
    for r, (first, count, start) in enumerate(zip(first_rows, counts, positions, strict=True)):
        places += range(start, start + count)
        owners += [r] * count
        rows += range(first, first + count)
    return places, owners, rows


def longest_of(counts: Sequence[int], positions: Sequence[int], depths: Sequence[int]) -> int:
    """Tokens of the longest sequence with its drafts."""
    return max(position + count + depth - 1 for position, count, depth in zip(positions, counts, depths, strict=True))


def check_chains(
    hidden: Tensor,
    *,
    tokens: Sequence[int],
    first_rows: Sequence[int],
    counts: Sequence[int],
    positions: Sequence[int],
    depths: Sequence[int],
    page_table: Tensor,
    embedding: Tensor,
    num_positions: int,
) -> int:
    """The longest sequence with its drafts, of chains as `ops.PackedMTP.draft` takes them; `ValueError` where they do not fit.

    embedding [V, H] tells ids and width, `num_positions` how far the RoPE table goes.
    """
    rows = len(counts)
    vocabulary, width = embedding.shape
    last = longest_of(counts, positions, depths)
    end = max(first + count for first, count in zip(first_rows, counts, strict=True))
    if hidden.shape[1] != width or end > hidden.shape[0] or page_table.shape[0] != rows or page_table.stride(1) != 1:
        raise ValueError(f"hidden states {tuple(hidden.shape)} and page table {tuple(page_table.shape)} are not of {rows} sequences")
    if list(depths) != sorted(depths, reverse=True) or depths[-1] < 1:
        raise ValueError(f"depths {list(depths)} must fall and be at least 1")
    if min(counts) < 1 or len(tokens) != sum(counts) or min(first_rows) < 0 or min(positions) < 0:
        raise ValueError(f"{len(tokens)} tokens do not fit {list(counts)} states")
    if last > min(num_positions, PAGE_SIZE * page_table.shape[1]) or min(tokens) < 0 or max(tokens) >= vocabulary:
        raise ValueError(f"positions up to {last} or the tokens lie outside pages or vocabulary")
    return last
