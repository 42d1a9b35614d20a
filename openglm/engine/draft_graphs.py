"""Chains of drafts as recorded graphs: one launch for all drafts of a step instead of some fifteen for each drafted token.

As for steps (`graphs`), a graph is recorded for a shape: R sequences with at most Q settled states each, chains of D drafts, no sequence
longer than L tokens with them. What a call holds comes from one buffer of integers and one of hidden states:

    tokens [T] | positions [T] | owners [T] | rows of the step's hidden states [T] | tips [R] | depths [R] | table rows [R]     T = R * Q

A sequence that wants fewer than D drafts, or none because it pads, keeps its place in the chain, and from then on writes no KV and sees
none. What it computes there is thrown away, at the price of the experts that it hits; depths of one step seldom differ.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from openglm.engine.graphs import MAX_GRAPHS, InputBuffer, StepGraphs, first_of
from openglm.ops import PAGE_SIZE
from openglm.ops.draft_chains import Chains, longest_of, rows_of

if TYPE_CHECKING:
    from openglm.ops.triton.layer import DeviceMTP

logger = logging.getLogger(__name__)


class DraftShape(NamedTuple):
    """What a graph is recorded for: at most so many sequences, settled states of each, drafts of each, and tokens of context."""

    num_requests: int
    rows_each: int
    depth: int
    max_kv_len: int


@dataclass(frozen=True)
class DraftInputs:
    """What sequences settled and how deep each wants to draft, in host integers; as in `ops.PackedMTP.draft`, depths fall."""

    tokens: Seq[int]  # [T]
    first_rows: Seq[int]  # [R]
    counts: Seq[int]
    positions: Seq[int]
    depths: Seq[int]
    table_rows: Seq[int]  # [R]: each sequence's row of the page table, which has pages for all drafts

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence with its drafts."""
        return longest_of(self.counts, self.positions, self.depths)


class DraftGraphs:
    """Graphs of one MTP layer, recorded when a shape first occurs."""

    def __init__(self, layer: DeviceMTP, steps: StepGraphs, *, num_tokens: int) -> None:
        """Sequences, pages, context lengths and the device are those of `steps`; ids from `num_tokens` on are never drafted."""
        self._layer, self._steps, self._num_tokens = layer, steps, num_tokens
        self._rows = sorted({1, steps.rows[-1]})
        self._depths = range(1, steps.rows[-1])
        rows, device = steps.requests[-1] * steps.rows[-1], steps.table.device
        self._states = torch.zeros(rows, layer.hidden_size, dtype=layer.dtype, device=device)
        self._graphs: dict[DraftShape, _DraftGraph] = {}
        self._refused: set[DraftShape] = set()

    @property
    def num_replays(self) -> dict[DraftShape, int]:
        """How often each graph recorded so far has run."""
        return {shape: graph.num_replays for shape, graph in self._graphs.items()}

    def shape_of(self, inputs: DraftInputs) -> DraftShape | None:
        """The smallest shape that holds such a call; None when none does."""
        steps, num, rows, longest = self._steps, len(inputs.counts), max(inputs.counts), inputs.longest
        if num > steps.requests[-1] or rows > self._rows[-1] or inputs.depths[0] not in self._depths or longest > steps.contexts[-1]:
            return None
        return DraftShape(first_of(steps.requests, num), first_of(self._rows, rows), inputs.depths[0], first_of(steps.contexts, longest))

    def draft(self, hidden: Tensor, inputs: DraftInputs) -> tuple[Tensor, Tensor] | None:
        """Drafts [R, depth] int64 and their logits [R, depth] fp32, until the next call; None where it has to be done without a graph.

        hidden [N, H] are the states of the step.
        """
        shape = self.shape_of(inputs)
        graph = None if shape is None else self._graphs.get(shape) or self._record(shape)
        return None if graph is None else graph.run(hidden, inputs)

    def record_all(self) -> None:
        """Record every depth at the shortest context for every number of sequences; the rest follows when it occurs."""
        for num_requests in reversed(self._steps.requests):
            for rows_each in reversed(self._rows):
                for depth in reversed(self._depths):
                    shape = DraftShape(num_requests, rows_each, depth, self._steps.contexts[0])
                    if shape not in self._graphs:
                        self._record(shape)

    @torch.inference_mode()
    def _record(self, shape: DraftShape) -> _DraftGraph | None:
        if shape in self._refused or len(self._graphs) >= MAX_GRAPHS:
            return None
        before = self._steps.device.used_bytes()
        try:
            graph = _DraftGraph(self._layer, self._steps, shape, self._states, self._num_tokens)
        except RuntimeError as error:  # as in `StepGraphs`
            self._refused.add(shape)
            logger.warning("no graph of %d chains of %d drafts: %s; they run without one", shape.num_requests, shape.depth, error)
            return None
        self._steps.memory_bytes += max(0, self._steps.device.used_bytes() - before)
        self._graphs[shape] = graph
        return graph


class _DraftGraph:
    """A recorded chain and its inputs."""

    def __init__(self, layer: DeviceMTP, steps: StepGraphs, shape: DraftShape, states: Tensor, num_tokens: int) -> None:
        """`states` is memory for the hidden states of the largest graph."""
        requests, rows_each, depth, max_kv_len = shape
        rows, table = requests * rows_each, steps.table
        self._rows, self._requests, self._no_row = rows, requests, table.shape[0] - 1
        self._inputs = InputBuffer(steps.device, [rows] * 4 + [requests] * 3, table.device)
        self._states = states[:rows]
        tokens, positions, owners, self._sources, tips, depths, table_rows = self._inputs.parts
        drafted = torch.zeros(requests, depth, dtype=torch.int64, device=table.device)
        logits = torch.zeros(requests, depth, device=table.device)
        self._outputs = drafted, logits
        self.num_replays = 0
        self._fill(DraftInputs((), (), (), (), (), ()))  # nothing but padding: recording writes no KV
        pages, kv = -(-max_kv_len // PAGE_SIZE), steps.kv[-1]

        def run() -> None:
            chains = Chains(tokens, positions, owners, tips, depths, table[:, :pages].index_select(0, table_rows))
            found = layer.chain(self._states, chains, kept=[requests] * depth, max_kv_len=max_kv_len, kv=kv, num_tokens=num_tokens)
            drafted.copy_(found[0])
            logits.copy_(found[1])

        self._replay: Callable[[], None] = steps.device.capture(run)

    def run(self, hidden: Tensor, inputs: DraftInputs) -> tuple[Tensor, Tensor]:
        """As `DraftGraphs.draft`."""
        self._fill(inputs)
        self._states.copy_(hidden.index_select(0, self._sources))
        self._replay()
        self.num_replays += 1
        drafted, logits = self._outputs
        return drafted[: len(inputs.counts)], logits[: len(inputs.counts)]

    def _fill(self, inputs: DraftInputs) -> None:
        used, present = len(inputs.tokens), len(inputs.counts)
        spare, absent = self._rows - used, self._requests - present
        places, owners, sources = rows_of(inputs.first_rows, inputs.counts, inputs.positions)
        self._inputs.fill([
            *inputs.tokens, *(0,) * spare,
            *places, *(0,) * spare,
            *owners, *(-1,) * spare,
            *sources, *(0,) * spare,
            *(end - 1 for end in accumulate(inputs.counts)), *(0,) * absent,
            *inputs.depths, *(0,) * absent,
            *inputs.table_rows, *(self._no_row,) * absent,
        ])  # fmt: skip
