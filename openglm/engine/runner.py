"""Turns a plan into one flat batch and runs the model on it. Owns the KV tensors and the device's copy of the page tables.

A batch is the scheduled sequences' next tokens, concatenated. Per step the work in Python grows with the number of tokens and
sequences, never with context length: page tables live in one preallocated tensor, a row per running sequence, to
which only newly taken pages are added.

Shape legend: T tokens of the step, R sequences, H hidden.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from openglm.config.engine import KVCacheDType, ResolvedEngineConfig
from openglm.engine.host_pages import HostPages
from openglm.engine.host_tier import Transfer
from openglm.engine.scheduler import Scheduled
from openglm.engine.sequence import Sequence
from openglm.model import ForwardContext, GlmModel, PagedBatch, allocate_kv
from openglm.ops import PAGE_SIZE, kv_tensors

KV_DTYPES: dict[KVCacheDType, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "fp8_e4m3": torch.float8_e4m3fn,
}


class Span(NamedTuple):
    """One sequence's part of a batch: rows `first_row` to `first_row + num_rows`, positions from `start` on.

    The last `num_logits` rows (the newest token and its drafts) decide what comes next; 0 inside a prompt.
    """

    sequence: Sequence
    first_row: int
    num_rows: int
    start: int
    num_logits: int = 0


@dataclass(frozen=True)
class Batch:
    """One step, ready for the model."""

    spans: tuple[Span, ...]
    logit_rows: tuple[int, ...]
    tokens: Tensor  # [T] int64
    ctx: ForwardContext


class Runner:
    """The model, its KV pages, and the page tables. One step at a time."""

    def __init__(self, model: GlmModel, config: ResolvedEngineConfig) -> None:
        self.model = model
        self.row_tile = config.row_tile
        self.native = model.is_packed
        parameter = next(model.parameters())
        self.device = parameter.device
        kv_dtype = KV_DTYPES[config.kv_cache_dtype]
        self.kv = allocate_kv(model.config, config.num_pages, kv_dtype, self.device)
        self._host = HostPages(self.kv, config.num_host_pages)
        max_pages = -(-config.max_model_len // PAGE_SIZE)
        self._table = torch.zeros(config.max_num_seqs, max_pages, dtype=torch.int64, device=self.device)
        self._filled = [(0, 0)] * config.max_num_seqs  # per row: admission of the sequence in it, pages copied

    def prepare(self, plan: Seq[Scheduled]) -> Batch:
        """One flat batch of the planned tokens."""
        spans: list[Span] = []
        tokens: list[int] = []
        logit_rows: list[int] = []
        end = 0
        for scheduled in plan:
            sequence, num_tokens = scheduled
            num_logits = 1 + len(sequence.drafts) if scheduled.samples else 0
            spans.append(Span(sequence, end, num_tokens, sequence.computed, num_logits))
            end += num_tokens
            if num_tokens == num_logits == 1:
                tokens.append(sequence.tokens[-1])
                logit_rows.append(end - 1)
            else:
                tokens += sequence.window(num_tokens)
                logit_rows += range(end - num_logits, end)
        ids, ctx = self.context(spans, tokens)
        return Batch(tuple(spans), tuple(logit_rows), ids, ctx)

    def context(self, spans: Seq[Span], tokens: Seq[int]) -> tuple[Tensor, ForwardContext]:
        """Token tensor [T] and context of spans that follow one another."""
        positions: list[int] = []
        slots: list[int] = []
        ends: list[int] = []
        lengths: list[int] = []
        for sequence, first_row, num_rows, start, _ in spans:  # in Python for every sequence of every step, so it is written to be short
            pages = sequence.pages
            ends.append(first_row + num_rows)
            lengths.append(start + num_rows)
            if num_rows == 1:
                positions.append(start)
                slots.append(pages[start // PAGE_SIZE] * PAGE_SIZE + start % PAGE_SIZE)
            else:
                here = range(start, start + num_rows)
                positions += here
                slots += [pages[p // PAGE_SIZE] * PAGE_SIZE + p % PAGE_SIZE for p in here]
        packed = torch.tensor([tokens, positions, slots], device=self.device)  # one copy to the device
        attention = PagedBatch(
            query_starts=(0, *ends),
            kv_lengths=tuple(lengths),
            page_table=self.page_table([span.sequence for span in spans]),
            slots=packed[2],
            kv=self.kv,
        )
        return packed[0], ForwardContext(positions=packed[1], attention=attention, row_tile=self.row_tile, native=self.native)

    def forward(self, batch: Batch) -> Tensor:
        """Hidden states [T, H] after the final norm; the KV of the batch's tokens is written."""
        hidden: Tensor = self.model(batch.tokens, batch.ctx)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [N, H] -> [N, vocab] fp32."""
        return self.model.logits(hidden, row_tile=self.row_tile)

    def take(self, hidden: Tensor, rows: Seq[int]) -> Tensor:
        """The given rows of hidden [T, H], ascending; no copy when all are meant."""
        if len(rows) == hidden.shape[0]:
            return hidden
        return hidden[torch.tensor(rows, device=self.device)]

    def zero_pages(self, pages: Seq[int], *, only_mtp: bool = False) -> None:
        """Wipe pages that may hold NaN: attention multiplies masked slots by zero, which would keep NaN alive."""
        index = torch.tensor(pages, dtype=torch.int64, device=self.device)
        for layer in self.kv[-1:] if only_mtp else self.kv:
            for tensor in kv_tensors(layer):
                tensor[index] = 0

    def transfer(self, transfers: Seq[Transfer]) -> None:
        """Copy pages between device and host tier, in order; to be called before the step that follows the decision."""
        if transfers:
            self._host.apply(transfers)

    def page_table(self, sequences: Seq[Sequence]) -> Tensor:
        """Rows [R, pages] of the sequences, up to date and as wide as the longest needs."""
        width = 0
        for sequence in sequences:
            row, pages = sequence.row, sequence.pages
            admission, filled = self._filled[row]
            if admission != sequence.admission:
                filled = 0
            if filled < len(pages):
                self._table[row, filled : len(pages)] = torch.tensor(pages[filled:], device=self.device)
                self._filled[row] = (sequence.admission, len(pages))
            width = max(width, len(pages))
        rows = [sequence.row for sequence in sequences]
        first, last = rows[0], rows[0] + len(rows)
        if rows == list(range(first, last)):  # usually: a view instead of a copy
            return self._table[first:last, :width]
        return self._table[torch.tensor(rows, device=self.device), :width]
