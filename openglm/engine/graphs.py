"""Decode and verify steps as recorded graphs: one launch per step instead of one per kernel.

A graph is recorded for a shape, not for a batch: R requests of at most Q rows each, none longer than L tokens. What a batch holds comes
from one buffer of integers on the device, which a step fills with a single copy from pinned memory:

    tokens [T] | positions [T] | slots [T] | query_starts, kv_lengths [2R+1] | table rows [R] | new pages: cell, page [R, 2]     T = R * Q

Where the host does not know the tokens yet (`pipeline`), they are taken on the device from what the step before chose, and the buffer
holds their places among those. Smaller batches are padded: rows behind the last carry slot -1, which writes nothing, requests behind the
last have length 0 and the table row that nobody owns. So a graph replays for every batch that fits, and what it computes for real rows does
not depend on padding. Hidden states are copied out, because the engine keeps some of them; logits are not, being used before the next step.

Everything that needs a GPU sits behind `GraphDevice`; without one, an object that calls the recorded function again takes its place.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from openglm.model import ForwardContext, GlmModel, PagedBatch
from openglm.ops import PAGE_SIZE, KVLayer
from openglm.ops.copies import Readback, read_back

logger = logging.getLogger(__name__)

SHORTEST_CONTEXT = 2048  # tokens; the bounds of context lengths are this, four times this, and so on
MAX_GRAPHS = 96

Outputs = tuple[Tensor, Tensor]
"""Hidden states [T, H] and logits [T, vocab]."""


class GraphDevice(Protocol):
    """What graphs need of a device."""

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        """Record what `run` does, which leaves its results in memory of its own; returns what replays it."""
        ...

    def staging(self, size: int) -> Tensor:
        """Host memory for `size` int64 from which copies to the device need not wait."""
        ...

    def copied(self) -> Callable[[], None]:
        """Called after a copy from staging memory was asked for; returns what waits until it is done."""
        ...

    def read_back(self, values: Tensor) -> Readback:
        """Ask for a copy of values [N] to the host, in its turn behind all that was launched; returns what waits for it."""
        ...

    def used_bytes(self) -> int:
        """Memory of the device that is taken, by whomever."""
        ...


class CudaGraphs:
    """The real device. All graphs share one pool of memory, as only one runs at a time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        """Run twice beside the current stream, so that kernels are compiled and tuned, then record."""
        beside = torch.cuda.Stream(self._device)
        beside.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(beside):
            run()
            run()
        torch.cuda.current_stream(self._device).wait_stream(beside)
        torch.cuda.synchronize(self._device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            run()
        return graph.replay

    def staging(self, size: int) -> Tensor:
        """Pinned memory."""
        return torch.zeros(size, dtype=torch.int64, pin_memory=True)

    def copied(self) -> Callable[[], None]:
        """An event behind the copy."""
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self._device))
        return event.synchronize

    def read_back(self, values: Tensor) -> Readback:
        """Through pinned memory, with an event behind the copy."""
        return read_back(values)

    def used_bytes(self) -> int:
        """As the driver counts."""
        free, total = torch.cuda.mem_get_info(self._device)
        return total - free


class InputBuffer:
    """The integers that a graph reads, in parts; one copy from pinned memory, for which nobody waits, fills them all."""

    def __init__(self, device: GraphDevice, sizes: Seq[int], place: torch.device) -> None:
        self._device = device
        self._stages = [device.staging(sum(sizes)), device.staging(sum(sizes))]  # one may still be read while the other is written
        self._waits: list[Callable[[], None] | None] = [None, None]
        self._turn = 0
        self._memory = torch.zeros(sum(sizes), dtype=torch.int64, device=place)
        self.parts = self._memory.split(list(sizes))

    def fill(self, values: Seq[int]) -> None:
        """All parts, one behind the other."""
        turn = self._turn
        self._turn = 1 - turn
        wait = self._waits[turn]
        if wait is not None:
            wait()
        self._stages[turn].copy_(torch.tensor(values))
        self._memory.copy_(self._stages[turn], non_blocking=True)
        self._waits[turn] = self._device.copied()


class Shape(NamedTuple):
    """What a graph is recorded for: at most so many requests, rows of each, and tokens of context."""

    num_requests: int
    rows_each: int
    max_kv_len: int


@dataclass(frozen=True)
class StepInputs:
    """One decode or verify step, in host integers."""

    tokens: Seq[int]  # [T]; with `chosen` their places in it
    positions: Seq[int]
    slots: Seq[int]
    query_starts: Seq[int]  # [R + 1]
    kv_lengths: Seq[int]  # [R]
    table_rows: Seq[int]  # [R]: each request's row of the page table
    new_pages: Seq[tuple[int, int]]  # cell of the page table, counted through all rows, and the page that belongs there
    chosen: Tensor | None = None  # [N] int64 on the device: tokens that the host does not know yet


class StepGraphs:
    """Graphs of one model, recorded when a shape first occurs."""

    def __init__(
        self,
        model: GlmModel,
        device: GraphDevice,
        *,
        table: Tensor,
        kv: Seq[KVLayer],
        max_num_seqs: int,
        max_rows_each: int,
        max_model_len: int,
        row_tile: int | None,
    ) -> None:
        """`table` [max_num_seqs + 1, pages]: the page table; padding uses its last row. `max_rows_each` counts the drafts of a request."""
        self._model, self.device, self._row_tile = model, device, row_tile
        self.table, self.kv = table, kv
        self.requests = doubling(1, max_num_seqs)
        self.rows = list(range(1, max_rows_each + 1))
        self.contexts = doubling(min(SHORTEST_CONTEXT, max_model_len), max_model_len, factor=4)
        rows = max_num_seqs * max_rows_each
        dtype, config = model.norm.weight.dtype, model.config
        self._hidden = torch.zeros(rows, config.hidden_size, dtype=dtype, device=table.device)  # of whichever graph ran last
        self._logits = torch.zeros(rows, config.vocab_size, device=table.device)
        self._graphs: dict[Shape, StepGraph] = {}
        self._refused: set[Shape] = set()
        self.memory_bytes = 0
        """What the graphs recorded so far have taken from the device."""

    @property
    def num_replays(self) -> dict[Shape, int]:
        """How often each graph recorded so far has run."""
        return {shape: graph.num_replays for shape, graph in self._graphs.items()}

    def shape_of(self, num_requests: int, rows_each: int, longest: int) -> Shape | None:
        """The smallest shape that holds such a batch; None when none does."""
        if not num_requests or num_requests > self.requests[-1] or rows_each > self.rows[-1] or longest > self.contexts[-1]:
            return None
        return Shape(first_of(self.requests, num_requests), rows_each, first_of(self.contexts, longest))

    def find(self, num_requests: int, rows_each: int, longest: int) -> StepGraph | None:
        """The graph for a batch, recorded now if it is the first of its shape; None when it has to run without one."""
        shape = self.shape_of(num_requests, rows_each, longest)
        return None if shape is None else self._graphs.get(shape) or self._record(shape)

    def record_all(self) -> None:
        """Record what decoding needs at the shortest context for every number of requests and rows; the rest follows when it occurs."""
        for num_requests in reversed(self.requests):  # the largest first: later ones reuse its memory
            for rows_each in reversed(self.rows):
                shape = Shape(num_requests, rows_each, self.contexts[0])
                if shape not in self._graphs:
                    self._record(shape)

    @torch.inference_mode()
    def _record(self, shape: Shape) -> StepGraph | None:
        if shape in self._refused or len(self._graphs) >= MAX_GRAPHS:
            return None
        before = self.device.used_bytes()
        try:
            outputs = (self._hidden, self._logits)
            graph = StepGraph(self._model, self.device, shape, outputs, table=self.table, kv=self.kv, row_tile=self._row_tile)
        except RuntimeError as error:  # no memory, or an operation that cannot be captured; what broke the device breaks the step as well
            self._refused.add(shape)
            logger.warning("no graph of %d requests with %d rows: %s; such steps run without one", *shape[:2], error)
            return None
        self.memory_bytes += max(0, self.device.used_bytes() - before)
        self._graphs[shape] = graph
        return graph


class StepGraph:
    """A recorded step and its inputs. `max_new_pages` may be entered into the page table with a step."""

    def __init__(
        self,
        model: GlmModel,
        device: GraphDevice,
        shape: Shape,
        outputs: Outputs,
        *,
        table: Tensor,
        kv: Seq[KVLayer],
        row_tile: int | None,
    ) -> None:
        """`outputs` is memory for the results of the largest graph, which all of them write."""
        requests, rows_each, max_kv_len = shape
        rows = requests * rows_each
        width = -(-max_kv_len // PAGE_SIZE)
        self._sizes = [rows, rows, rows, 2 * requests + 1, requests, requests, requests]
        self._no_row, self._no_cell = table.shape[0] - 1, table.numel() - 1
        self._rows, self._requests = rows, requests
        self.max_new_pages = requests
        self.num_replays = 0
        self._inputs = InputBuffer(device, self._sizes, table.device)
        tokens, positions, slots, offsets, table_rows, cells, pages = self._inputs.parts
        self._fill(StepInputs((), (), (), (0,), (), (), ()))  # nothing but padding: recording writes no KV

        self._outputs = hidden_out, logits_out = outputs[0][:rows], outputs[1][:rows]

        def run() -> None:
            table.view(-1).scatter_(0, cells, pages)
            attention = PagedBatch.static(
                offsets=offsets,
                max_query_len=rows_each,
                max_kv_len=max_kv_len,
                page_table=table[:, :width].index_select(0, table_rows),
                slots=slots,
                kv=kv,
            )
            hidden = model(tokens, ForwardContext(positions, attention, row_tile=row_tile, native=model.is_packed))
            hidden_out.copy_(hidden)
            logits_out.copy_(model.logits(hidden, row_tile=row_tile))

        self._replay = device.capture(run)

    def run(self, inputs: StepInputs) -> Outputs:
        """Hidden states [T, H], which stay, and logits [T, vocab], which the next run of any graph overwrites."""
        self._fill(inputs)
        self._replay()
        self.num_replays += 1
        hidden, logits = self._outputs
        rows = len(inputs.tokens)
        return hidden[:rows].clone(), logits[:rows]

    def replay(self) -> None:
        """Run again on the inputs of the last run, for whoever measures the graph alone."""
        self._replay()

    def _fill(self, inputs: StepInputs) -> None:
        """Bring a step's integers to where the graph reads them."""
        rows, requests = self._rows, self._requests
        used, present = len(inputs.tokens), len(inputs.kv_lengths)
        spare, absent = rows - used, requests - present
        unchanged = requests - len(inputs.new_pages)
        values = [
            *inputs.tokens, *(0,) * spare,
            *inputs.positions, *(0,) * spare,
            *inputs.slots, *(-1,) * spare,
            *inputs.query_starts, *(used,) * absent,
            *inputs.kv_lengths, *(0,) * absent,
            *inputs.table_rows, *(self._no_row,) * absent,
            *(cell for cell, _ in inputs.new_pages), *(self._no_cell,) * unchanged,
            *(page for _, page in inputs.new_pages), *(0,) * unchanged,
        ]  # fmt: skip
        self._inputs.fill(values)
        if inputs.chosen is not None:
            tokens = self._inputs.parts[0][:used]
            tokens.copy_(inputs.chosen.index_select(0, tokens))


def doubling(first: int, last: int, *, factor: int = 2) -> list[int]:
    """first, first * factor, ... and last."""
    steps = [first]
    while steps[-1] < last:
        steps.append(min(last, steps[-1] * factor))
    return steps


def first_of(steps: Seq[int], least: int) -> int:
    """The first of the rising steps that is at least so much."""
    return next(step for step in steps if step >= least)
