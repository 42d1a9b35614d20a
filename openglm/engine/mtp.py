"""Drafts from GLM-4.5's extra layer (multi-token prediction), and the upkeep of that layer's KV.

Positions are vLLM's (`glm4_moe_mtp`): the entry at position i is computed from the trunk's hidden state h_i and the token t_{i+1},
and predicts t_{i+2}. The last settled position gives the first draft; further drafts chain the layer on its own normed output, one
position on each time.

**Upkeep.** Every settled position gets the entry of its *true* hidden state, which overwrites whatever drafting had left in the slot.
The entry is a function of the layer's input alone, so positions that draft nothing cost two projections: no attention, no
experts, no head. And where a sequence does not draft, its entries can wait: the hidden states of its last, incomplete page are
retained, one row of 64 per running sequence, and written together

    as soon as the page is complete, because complete pages are published and must be complete in every layer, or
    when the sequence drafts again.

So not drafting costs one narrow pass in 64 tokens, memory is bounded by the number of running sequences, and what the pages hold does
not depend on when it was written.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import Protocol

import torch
from torch import Tensor

from openglm import ops
from openglm.config.engine import ResolvedEngineConfig
from openglm.engine.runner import Runner, Span
from openglm.engine.sequence import Sequence
from openglm.engine.speculation import Settled
from openglm.ops import PAGE_SIZE


class PassObserver(Protocol):
    """Who wants to know what drafting costs."""

    def observe_pass(self, depth: int, num_sequences: int, seconds: float) -> None:
        """The pass that made the draft at `depth` (from 0 on) for so many sequences took so long."""
        ...

    def observe_catch_up(self) -> None:
        """This time entries that had waited were written too, so the step's time says nothing."""
        ...


class MTPProposer:
    """Drafts with the model's own multi-token-prediction layer."""

    def __init__(
        self,
        runner: Runner,
        config: ResolvedEngineConfig,
        *,
        num_tokens: int,
        observer: PassObserver | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Ids from `num_tokens` on are padding and never proposed."""
        self._runner = runner
        self._num_tokens = num_tokens
        self._observer = observer
        self._clock = clock
        embedding = runner.model.embed_tokens  # has the dtype of hidden states
        # Hidden states of positions whose entries wait: position p of the sequence in row r at r * 64 + p % 64.
        self._retained = embedding.new_zeros(config.max_num_seqs * PAGE_SIZE, embedding.shape[1])
        self._written = [(0, 0)] * config.max_num_seqs  # per row: admission of the sequence in it, and up to where entries are there

    def propose(self, settled: Seq[Settled], hidden: Tensor) -> list[list[int] | None]:
        """Write or retain what the step settled, and chain as many drafts as each sequence wants."""
        start = self._clock()
        caught_up = self._settle(settled, hidden)
        drafts: list[list[int] | None] = [[] for _ in settled]
        wanting = [i for i, item in enumerate(settled) if item.depth > 0]
        if wanting:
            layer = self._runner.model.mtp
            if layer is not None and layer.packed is not None:
                self._chain_at_once(layer.packed, settled, wanting, hidden, drafts, None if caught_up else start)
            else:
                self._chain(settled, wanting, hidden, drafts, None if caught_up else start)
        return drafts

    def _settle(self, settled: Seq[Settled], hidden: Tensor) -> bool:
        """Entries of all positions but those whose output is wanted as well; returns whether a drafting sequence had some waiting."""
        spans: list[Span] = []
        next_tokens: list[int] = []
        rows: list[int] = []  # of `hidden`
        retained: list[int] = []
        to_retain: list[tuple[int, int]] = []
        waited: list[tuple[Sequence, int, int, int]] = []
        caught_up = False
        for sequence, first_row, num_rows, start, depth in settled:
            base = sequence.row * PAGE_SIZE
            admission, written = self._written[sequence.row]
            if admission != sequence.admission:  # it (re)started with pages from the cache, which have all their entries
                written = start
            end = start + num_rows
            if not depth and end // PAGE_SIZE == written // PAGE_SIZE:
                to_retain += [(base + p % PAGE_SIZE, first_row + p - start) for p in range(start, end)]
                self._written[sequence.row] = (sequence.admission, written)
                continue
            self._written[sequence.row] = (sequence.admission, end)
            if written < start:
                caught_up |= depth > 0
                waited.append((sequence, len(retained), start - written, written))
                retained += [base + p % PAGE_SIZE for p in range(written, start)]
            count = num_rows - (depth > 0)
            if count:
                spans.append(Span(sequence, len(rows), count, start))
                rows += range(first_row, first_row + count)
        if to_retain:
            index = torch.tensor(to_retain, device=hidden.device).unbind(1)
            self._retained.index_copy_(0, index[0], hidden[index[1]])
        if waited or spans:
            states = self._runner.take(hidden, rows) if rows else hidden[:0]
            if waited:
                # Entries do not depend on each other, so their order does not matter.
                states = torch.cat([states, self._retained[torch.tensor(retained, device=hidden.device)]])
                spans += [Span(sequence, len(rows) + first, count, start) for sequence, first, count, start in waited]
            for span in spans:
                next_tokens += span.sequence.tokens[span.start + 1 : span.start + 1 + span.num_rows]
            ids, ctx = self._runner.context(spans, next_tokens)
            self._runner.model.mtp_write_kv(ids, states, ctx)
        return caught_up

    def _chain(
        self, settled: Seq[Settled], wanting: list[int], hidden: Tensor, drafts: list[list[int] | None], started: float | None
    ) -> None:
        """Draft from the last settled position on; `started` is None when the first pass is not to be measured."""
        runner, observer = self._runner, self._observer
        if started is None and observer is not None:
            observer.observe_catch_up()
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
            now = self._clock()
            if started is not None and observer is not None:
                observer.observe_pass(step, len(wanting), now - started)
            started = now

    def _chain_at_once(
        self,
        layer: ops.PackedMTP,
        settled: Seq[Settled],
        wanting: list[int],
        hidden: Tensor,
        drafts: list[list[int] | None],
        started: float | None,
    ) -> None:
        """`_chain` as one call of the native kernels; a pass is taken to cost its share of the whole."""
        runner, observer = self._runner, self._observer
        wanting = sorted(wanting, key=lambda i: -settled[i].depth)
        items = [settled[i] for i in wanting]
        rows = torch.tensor([item.first_row + item.num_rows - 1 for item in items])
        chains, logits = layer.draft(
            tokens=[item.sequence.tokens[-1] for item in items],
            hidden=hidden[rows],
            positions=[item.start + item.num_rows - 1 for item in items],
            depths=[item.depth for item in items],
            page_table=runner.page_table([item.sequence for item in items]),
            kv=runner.kv[-1],
            num_tokens=self._num_tokens,
        )
        for i, item, chain, values in zip(wanting, items, chains, logits, strict=True):
            sound = all(math.isfinite(value) for value in values[: item.depth])
            drafts[i] = chain[: item.depth] if sound else None
        if observer is None:
            return
        if started is None:
            observer.observe_catch_up()
            return
        share = (self._clock() - started) / items[0].depth
        for depth in range(items[0].depth):
            observer.observe_pass(depth, sum(item.depth > depth for item in items), share)
