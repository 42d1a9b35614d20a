"""`PagedBatch`: where the tokens of a step stand in their requests and in the KV pages. One object from the engine down to the kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from openglm.ops.reference.attention import KVLayer


@dataclass(frozen=True)
class PagedBatch:
    """R requests with KV in pages of 64 tokens. Lengths and starts are host integers, or (`PagedBatch.static`) lie only on the device."""

    query_starts: Sequence[int]  # R + 1 offsets into the T tokens
    kv_lengths: Sequence[int]  # R lengths, counting this step's tokens
    page_table: Tensor  # [R, max_pages] int64; entries past a request's length are ignored
    slots: Tensor  # [T] int64, page * 64 + offset of each new token; -1 in a row that pads a graph and writes nothing
    kv: Sequence[KVLayer]  # per layer [pages, 2, kv_heads, 64, head_dim], with scales if in fp8; the MTP layer is last
    static_offsets: Tensor | None = None  # what `offsets` returns when the host does not know the lengths
    static_bounds: tuple[int, int] | None = None  # max_query_len and max_kv_len, then

    @classmethod
    def static(
        cls,
        *,
        offsets: Tensor,
        max_query_len: int,
        max_kv_len: int,
        page_table: Tensor,
        slots: Tensor,
        kv: Sequence[KVLayer],
    ) -> PagedBatch:
        """A batch whose lengths are read from `offsets` [R + 1 + R] int64 when the kernels run, as a CUDA graph replays them.

        The two maxima are upper bounds for every later content of `offsets`. Only device kernels run such a batch.
        """
        if offsets.shape != (2 * page_table.shape[0] + 1,) or offsets.device != page_table.device:
            raise ValueError(f"offsets {tuple(offsets.shape)} do not belong to a page table {tuple(page_table.shape)}")
        return cls((), (), page_table, slots, kv, offsets, (max_query_len, max_kv_len))

    @property
    def num_requests(self) -> int:
        """R, requests of length 0 included."""
        return self.page_table.shape[0]

    @cached_property
    def offsets(self) -> Tensor:
        """query_starts and then kv_lengths, as one tensor [R + 1 + R] int64 beside the page table, for kernels that read memory."""
        if self.static_offsets is not None:
            return self.static_offsets
        return torch.tensor((*self.query_starts, *self.kv_lengths), device=self.page_table.device)

    @cached_property
    def query_lengths(self) -> tuple[int, ...] | None:
        """New tokens of each request, or None when the host does not know them."""
        if self.static_bounds is not None:
            return None
        return tuple(last - first for first, last in pairwise(self.query_starts))

    @cached_property
    def max_query_len(self) -> int:
        """No request has more rows in this step."""
        return self.static_bounds[0] if self.static_bounds is not None else max(self.query_lengths or (0,))

    @cached_property
    def max_kv_len(self) -> int:
        """No request is longer after this step."""
        return self.static_bounds[1] if self.static_bounds is not None else max(self.kv_lengths)
