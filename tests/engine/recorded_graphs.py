"""Graphs without a GPU: recorded calls that run again on the same static buffers, and a model that reads lengths from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from openglm.model import ForwardContext, GlmModel, PagedBatch


class RecordedGraphs:
    """Stands for the device. What a graph replays, it calls again."""

    def __init__(self, *, bytes_per_graph: int = 1000, out_of_memory_after: int | None = None) -> None:
        self.num_captured = 0
        self.waits = 0
        self.events: list[str] = []
        """In order: "launch" of a recorded step, "ask" for a copy to the host, "read" of it."""
        self.running = False  # inside a recorded step
        self._bytes, self._limit = bytes_per_graph, out_of_memory_after

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        if self.num_captured == self._limit:
            raise torch.OutOfMemoryError("no room for another graph")
        self.num_captured += 1
        run()

        def replay() -> None:
            self.events.append("launch")
            self.running = True
            run()
            self.running = False

        return replay

    def staging(self, size: int) -> Tensor:
        return torch.full((size,), -(2**40), dtype=torch.int64)

    def copied(self) -> Callable[[], None]:
        def wait() -> None:
            self.waits += 1

        return wait

    def read_back(self, values: Tensor) -> Callable[[], list]:
        self.events.append("ask")
        copied = values.clone()

        def read() -> list:
            self.events.append("read")
            return copied.tolist()

        return read

    def used_bytes(self) -> int:
        return self.num_captured * self._bytes


class ReadsLengths(torch.nn.Module):
    """A model on the CPU that takes batches whose lengths lie in a tensor: it reads them, and answers NaN for rows of padding."""

    def __init__(self, model: GlmModel) -> None:
        super().__init__()
        self.inner = model
        self.config, self.is_packed = model.config, model.is_packed

    def forward(self, tokens: Tensor, ctx: ForwardContext) -> Tensor:
        batch = ctx.attention
        if not isinstance(batch, PagedBatch) or batch.static_offsets is None:
            return self.inner(tokens, ctx)
        num = batch.num_requests
        starts, lengths = batch.offsets[: num + 1].tolist(), batch.offsets[num + 1 :].tolist()
        present = sum(length > 0 for length in lengths)
        rows = starts[-1]
        assert lengths[present:] == [0] * (num - present), "padding comes last"
        assert starts[present:] == [rows] * (num + 1 - present), "padding has no rows"
        assert all(b - a <= batch.max_query_len for a, b in pairwise(starts))
        assert max(lengths) <= batch.max_kv_len
        assert batch.slots[rows:].eq(-1).all() and batch.slots[:rows].ge(0).all()
        hidden = torch.full((tokens.shape[0], self.config.hidden_size), float("nan"), dtype=self.inner.norm.weight.dtype)
        if rows:
            known = PagedBatch(
                query_starts=starts[: present + 1],
                kv_lengths=lengths[:present],
                page_table=batch.page_table[:present],
                slots=batch.slots[:rows],
                kv=batch.kv,
            )
            hidden[:rows] = self.inner(tokens[:rows], replace(ctx, positions=ctx.positions[:rows], attention=known))
        return hidden

    def logits(self, hidden: Tensor, *, row_tile: int | None = None) -> Tensor:
        return self.inner.logits(hidden, row_tile=row_tile)

    @property
    def norm(self):
        return self.inner.norm

    @property
    def mtp(self):
        return self.inner.mtp

    @property
    def mtp_forward(self):
        return self.inner.mtp_forward

    @property
    def mtp_write_kv(self):
        return self.inner.mtp_write_kv
