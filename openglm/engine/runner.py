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
from openglm.engine.graphs import CudaGraphs, GraphDevice, StepGraph, StepGraphs, StepInputs
from openglm.engine.host_pages import HostPages
from openglm.engine.host_tier import Transfer
from openglm.engine.scheduler import Scheduled
from openglm.engine.sequence import Sequence
from openglm.model import ForwardContext, GlmModel, PagedBatch, allocate_kv
from openglm.ops import PAGE_SIZE, kv_tensors
from openglm.ops.copies import read_back, to_device

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
    """One step, ready for the model, or for a graph of it."""

    spans: tuple[Span, ...]
    logit_rows: tuple[int, ...]
    prepared: tuple[Tensor, ForwardContext] | tuple[StepGraph, StepInputs]  # with tokens [T] int64


class Runner:
    """The model, its KV pages, and the page tables. Steps run in the order in which they are given."""

    def __init__(self, model: GlmModel, config: ResolvedEngineConfig, *, graph_device: GraphDevice | None = None) -> None:
        """`graph_device` takes the place of the GPU's own graphs."""
        self.model = model
        self.row_tile = config.row_tile
        self.native = model.is_packed
        parameter = next(model.parameters())
        self.device = parameter.device
        kv_dtype = KV_DTYPES[config.kv_cache_dtype]
        self.kv = allocate_kv(model.config, config.num_pages, kv_dtype, self.device)
        self._host = HostPages(self.kv, config.num_host_pages)
        max_pages = -(-config.max_model_len // PAGE_SIZE)
        self._table = torch.zeros(config.max_num_seqs + 1, max_pages, dtype=torch.int64, device=self.device)  # the last row is nobody's
        self._filled = [(0, 0)] * config.max_num_seqs  # per row: admission of the sequence in it, pages copied
        if graph_device is None and self.device.type == "cuda" and model.capturable and not config.enforce_eager:
            graph_device = CudaGraphs(self.device)
        self.read_back = read_back if graph_device is None else graph_device.read_back
        self.graphs: StepGraphs | None = None
        if graph_device is not None:
            self.graphs = StepGraphs(
                model,
                graph_device,
                table=self._table,
                kv=self.kv,
                max_num_seqs=config.max_num_seqs,
                max_rows_each=1 + config.num_speculative_tokens,
                max_model_len=config.max_model_len,
                row_tile=config.row_tile,
            )

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
        if self.graphs is not None and len(logit_rows) == end:  # nothing but decoding and verifying
            graph = self.graphs.find(len(spans), max(span.num_rows for span in spans), max(span.start + span.num_rows for span in spans))
            if graph is not None:
                return Batch(tuple(spans), tuple(logit_rows), (graph, self._graph_inputs(graph, spans, tokens)))
        return Batch(tuple(spans), tuple(logit_rows), self.context(spans, tokens))

    def prepare_behind(self, sequences: Seq[Sequence], places: Seq[int], chosen: Tensor) -> Batch | None:
        """One row for each sequence's next token but one, behind a step whose tokens chosen [N] int64 only the device knows.

        `places` says where each sequence's next token is among them. None where no graph takes such a step.
        """
        longest = max(len(sequence.tokens) for sequence in sequences) + 1
        graph = None if self.graphs is None else self.graphs.find(len(sequences), 1, longest)
        if graph is None:
            return None
        spans = [Span(sequence, row, 1, len(sequence.tokens), 1) for row, sequence in enumerate(sequences)]
        return Batch(tuple(spans), tuple(range(len(spans))), (graph, self._graph_inputs(graph, spans, places, chosen)))

    def context(self, spans: Seq[Span], tokens: Seq[int]) -> tuple[Tensor, ForwardContext]:
        """Token tensor [T] and context of spans that follow one another."""
        positions, slots, ends, lengths = _places(spans)
        packed = to_device([tokens, positions, slots], torch.int64, self.device)  # one copy
        attention = PagedBatch(
            query_starts=(0, *ends),
            kv_lengths=tuple(lengths),
            page_table=self.page_table([span.sequence for span in spans]),
            slots=packed[2],
            kv=self.kv,
        )
        return packed[0], ForwardContext(positions=packed[1], attention=attention, row_tile=self.row_tile, native=self.native)

    def _graph_inputs(self, graph: StepGraph, spans: Seq[Span], tokens: Seq[int], chosen: Tensor | None = None) -> StepInputs:
        positions, slots, ends, lengths = _places(spans)
        new_pages: list[tuple[int, int]] = []
        width = self._table.shape[1]
        for span in spans:
            row, pages = span.sequence.row, span.sequence.pages
            new_pages += [(row * width + place, pages[place]) for place in self._missing_pages(span.sequence)]
        if len(new_pages) > graph.max_new_pages:  # after a step that no batch saw, such as another sequence in the row
            self.page_table([span.sequence for span in spans])
            new_pages = []
        for span in spans:
            self._filled[span.sequence.row] = (span.sequence.admission, len(span.sequence.pages))
        return StepInputs(tokens, positions, slots, (0, *ends), lengths, [span.sequence.row for span in spans], new_pages, chosen)

    def run(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Hidden states [T, H] after the final norm and logits [N, vocab] fp32 of the batch's `logit_rows`, None without any.

        The KV of the batch's tokens is written. The logits last until the next call.
        """
        what, how = batch.prepared
        if isinstance(what, StepGraph):
            assert isinstance(how, StepInputs)
            return what.run(how)
        hidden: Tensor = self.model(what, how)
        return hidden, self.logits(self.take(hidden, batch.logit_rows)) if batch.logit_rows else None

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [N, H] -> [N, vocab] fp32."""
        return self.model.logits(hidden, row_tile=self.row_tile)

    def take(self, hidden: Tensor, rows: Seq[int]) -> Tensor:
        """The given rows of hidden [T, H], ascending; no copy when all are meant."""
        if len(rows) == hidden.shape[0]:
            return hidden
        return hidden[to_device(rows, torch.int64, self.device)]

    def zero_pages(self, pages: Seq[int], *, only_mtp: bool = False) -> None:
        """Wipe pages that may hold NaN: attention multiplies masked slots by zero, which would keep NaN alive."""
        if not pages:
            return
        index = to_device(pages, torch.int64, self.device)
        for layer in self.kv[-1:] if only_mtp else self.kv:
            for tensor in kv_tensors(layer):
                tensor[index] = 0

    def transfer(self, transfers: Seq[Transfer]) -> None:
        """Copy pages between device and host tier, in order; to be called before the step that follows the decision."""
        if transfers:
            self._host.apply(transfers)

    def page_table(self, sequences: Seq[Sequence]) -> Tensor:
        """Rows [R, pages] of the sequences, up to date and as wide as the longest needs."""
        width = self.enter_pages(sequences)
        rows = [sequence.row for sequence in sequences]
        first, last = rows[0], rows[0] + len(rows)
        if rows == list(range(first, last)):  # usually: a view instead of a copy
            return self._table[first:last, :width]
        return self._table[to_device(rows, torch.int64, self.device), :width]

    def enter_pages(self, sequences: Seq[Sequence]) -> int:
        """Bring the page table up to date; returns how many pages the longest of the sequences has."""
        width = 0
        for sequence in sequences:
            row, pages = sequence.row, sequence.pages
            now = (sequence.admission, len(pages))
            if self._filled[row] != now:
                missing = self._missing_pages(sequence)
                self._table[row, missing.start : missing.stop] = to_device(pages[missing.start :], torch.int64, self.device)
                self._filled[row] = now
            width = max(width, len(pages))
        return width

    def _missing_pages(self, sequence: Sequence) -> range:
        """Which of the sequence's pages are not in the page table yet."""
        admission, filled = self._filled[sequence.row]
        return range(filled if admission == sequence.admission else 0, len(sequence.pages))


def _places(spans: Seq[Span]) -> tuple[list[int], list[int], list[int], list[int]]:
    """Positions and slots of every row, and of every span the row behind it and its length after the step."""
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
    return positions, slots, ends, lengths
