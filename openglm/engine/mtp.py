"""Drafts from GLM-4.5's extra layer (multi-token prediction), and the upkeep of that layer's KV.

Positions are vLLM's (`glm4_moe_mtp`): the entry at position i is computed from the trunk's hidden state h_i and the token t_{i+1},
and predicts t_{i+2}. The last settled position gives the first draft; further drafts chain the layer on its own normed output, one
position on each time.

**Upkeep.** Every settled position gets the entry of its *true* hidden state, which overwrites whatever drafting had left in the slot.
The entry is a function of the layer's input alone, so positions that draft nothing cost two projections: no attention, no
experts, no head. And where a sequence does not draft, its entries can wait: the hidden states of its last, incomplete page are
retained, at most 64 rows per running sequence, and written together

    as soon as the page is complete, because complete pages are published and must be complete in every layer, or
    when the sequence drafts again.

So not drafting costs one narrow pass in 64 tokens, memory is bounded by the number of running sequences, and what the pages hold does
not depend on when it was written.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from openglm import ops
from openglm.config.engine import ResolvedEngineConfig
from openglm.engine.draft_graphs import DraftGraphs, DraftInputs
from openglm.engine.runner import Runner, Span
from openglm.engine.sequence import Sequence
from openglm.engine.speculation import Drafts, Settled
from openglm.ops import PAGE_SIZE

if TYPE_CHECKING:
    from openglm.ops.triton.layer import DeviceMTP


class MTPProposer:
    """Drafts with the model's own multi-token-prediction layer."""

    def __init__(
        self,
        runner: Runner,
        config: ResolvedEngineConfig,
        *,
        num_tokens: int,
    ) -> None:
        """Ids from `num_tokens` on are padding and never proposed."""
        self._runner = runner
        self._num_tokens = num_tokens
        self._waiting = [_Waiting() for _ in range(config.max_num_seqs)]  # by the sequences' rows
        self._widest_kept = 2 * config.max_num_seqs  # steps with more rows are copied from, so that no large one outlives its step
        layer = None if runner.model.mtp is None else runner.model.mtp.packed
        self.graphs: DraftGraphs | None = None
        """Recorded chains, where steps are recorded too."""
        if layer is not None and not isinstance(layer, ops.PackedMTP) and layer.capturable and runner.graphs is not None:
            self.graphs = DraftGraphs(layer, runner.graphs, num_tokens=num_tokens)

    def propose(self, settled: Seq[Settled], hidden: Tensor) -> Drafts | Callable[[], Drafts]:
        """Write or retain what the step settled, and chain as many drafts as each sequence wants."""
        layer = self._runner.model.mtp
        packed = None if layer is None else layer.packed
        self._settle(settled, hidden, chain_writes=packed is not None)
        wanting = [i for i, item in enumerate(settled) if item.depth > 0]
        if wanting and packed is not None:
            return self._chain_at_once(packed, settled, wanting, hidden)
        drafts: Drafts = [[] for _ in settled]
        if wanting:
            self._chain(settled, wanting, hidden, drafts)
        return drafts

    def _settle(self, settled: Seq[Settled], hidden: Tensor, *, chain_writes: bool) -> None:
        """Entries of all positions but those that drafting writes: the last of each sequence that drafts, or with `chain_writes` all that
        it settled."""
        spans: list[Span] = []
        rows: list[int] = []  # of `hidden`
        waited: list[tuple[Sequence, int, int]] = []  # with first position and number of entries
        states: list[Tensor] = []
        for sequence, first_row, num_rows, start, depth in settled:
            waiting = self._waiting[sequence.row]
            if waiting.admission != sequence.admission:  # it (re)started with pages from the cache, which have all their entries
                waiting.restart(sequence.admission)
            if not depth and (start + num_rows) // PAGE_SIZE == (start - waiting.count) // PAGE_SIZE:
                waiting.add(hidden, first_row, num_rows, self._widest_kept)
                continue
            if waiting.count:
                waited.append((sequence, start - waiting.count, waiting.count))
                states += waiting.take()
            count = num_rows if not depth else 0 if chain_writes else num_rows - 1
            if count:
                spans.append(Span(sequence, len(rows), count, start))
                rows += range(first_row, first_row + count)
        if waited or spans:
            for sequence, start, count in waited:  # entries do not depend on each other, so their order does not matter
                first = spans[-1].first_row + spans[-1].num_rows if spans else 0
                spans.append(Span(sequence, first, count, start))
            if rows:
                states.insert(0, self._runner.take(hidden, rows))
            next_tokens: list[int] = []
            for span in spans:
                next_tokens += span.sequence.tokens[span.start + 1 : span.start + 1 + span.num_rows]
            ids, ctx = self._runner.context(spans, next_tokens)
            self._runner.model.mtp_write_kv(ids, torch.cat(states) if len(states) > 1 else states[0], ctx)

    def _chain(self, settled: Seq[Settled], wanting: list[int], hidden: Tensor, drafts: Drafts) -> None:
        """Draft from the last settled position on."""
        runner = self._runner
        states = runner.take(hidden, [settled[i].first_row + settled[i].num_rows - 1 for i in wanting])
        for step in range(max(settled[i].depth for i in wanting)):
            if step:
                kept = [place for place, i in enumerate(wanting) if settled[i].depth > step and drafts[i] is not None]
                if not kept:
                    return
                wanting, states = [wanting[place] for place in kept], runner.take(states, kept)
            spans = [Span(settled[i].sequence, row, 1, settled[i].start + settled[i].num_rows - 1 + step) for row, i in enumerate(wanting)]
            ids, ctx = runner.context(spans, [(drafts[i] or settled[i].sequence.tokens)[-1] for i in wanting])
            states = runner.model.mtp_forward(ids, states, ctx)
            best, tokens = ops.highest(runner.logits(states)[:, : self._num_tokens])
            for i, token, value in zip(wanting, tokens.tolist(), best.tolist(), strict=True):
                chain = drafts[i]
                if math.isfinite(value) and chain is not None:
                    chain.append(token)
                else:
                    drafts[i] = None

    def _chain_at_once(
        self,
        layer: ops.PackedMTP | DeviceMTP,
        settled: Seq[Settled],
        wanting: list[int],
        hidden: Tensor,
    ) -> Drafts | Callable[[], Drafts]:
        """`_chain`, and the entries before it, as one call of the kernels, whose end a device may reach later."""
        runner = self._runner
        if len(wanting) > 1:
            wanting = sorted(wanting, key=lambda i: -settled[i].depth)
        items = [settled[i] for i in wanting]
        tokens: list[int] = []
        for sequence, _, num_rows, start, _ in items:
            tokens += sequence.tokens[start + 1 : start + 1 + num_rows]
        asked: dict[str, list[int]] = {
            "first_rows": [item.first_row for item in items],
            "counts": [item.num_rows for item in items],
            "positions": [item.start for item in items],
            "depths": [item.depth for item in items],
        }
        sequences = [item.sequence for item in items]
        found = None
        if self.graphs is not None:
            runner.enter_pages(sequences)
            found = self.graphs.draft(hidden, DraftInputs(tokens, **asked, table_rows=[sequence.row for sequence in sequences]))
        chains, logits = found or layer.draft(
            hidden, tokens=tokens, **asked, page_table=runner.page_table(sequences), kv=runner.kv[-1], num_tokens=self._num_tokens
        )
        if not isinstance(chains, Tensor) or not isinstance(logits, Tensor):
            assert not isinstance(chains, Tensor) and not isinstance(logits, Tensor)
            return _sound_chains(settled, wanting, chains, logits)
        count, depth = chains.shape
        read = runner.read_back(torch.cat([chains.double(), logits.double()]).flatten())  # fp64 holds both exactly

        def drafts() -> Drafts:
            values = read()
            rows = [values[row * depth : (row + 1) * depth] for row in range(2 * count)]
            return _sound_chains(settled, wanting, [[int(token) for token in row] for row in rows[:count]], rows[count:])

        return drafts


def _sound_chains(settled: Seq[Settled], wanting: Seq[int], chains: Seq[list[int]], logits: Seq[Seq[float]]) -> Drafts:
    """The drafts of all, from the chains and their highest logits of those that wanted some."""
    drafts: Drafts = [[] for _ in settled]
    for i, chain, values in zip(wanting, chains, logits, strict=True):
        depth = settled[i].depth
        drafts[i] = chain[:depth] if all(map(math.isfinite, values[:depth])) else None
    return drafts


class _Waiting:
    """Hidden states of a sequence's last positions, whose entries are not written yet."""

    __slots__ = ("_pieces", "admission", "count")

    def __init__(self) -> None:
        self.admission = 0
        self.count = 0
        self._pieces: list[tuple[Tensor, int, int]] = []  # tensor, first row, number of rows

    def restart(self, admission: int) -> None:
        """Another sequence, or the same with other pages."""
        self.admission, self.count = admission, 0
        self._pieces.clear()

    def add(self, hidden: Tensor, first_row: int, num_rows: int, widest_kept: int) -> None:
        """Retain rows of `hidden` [T, H]: a reference while T is small, which costs nothing in most steps, else a copy."""
        if hidden.shape[0] > widest_kept:
            hidden, first_row = hidden[first_row : first_row + num_rows].clone(), 0
        self._pieces.append((hidden, first_row, num_rows))
        self.count += num_rows

    def take(self) -> list[Tensor]:
        """All of them, in order; none wait any more."""
        states = [hidden[first : first + count] for hidden, first, count in self._pieces]
        self._pieces.clear()
        self.count = 0
        return states
