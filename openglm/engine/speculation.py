"""Draft tokens: who proposes them, and why checking them leaves every distribution exactly as it was.

**Acceptance.** A step processes the newest token and k drafts, so it yields k + 1 rows of logits. From every row the sampler
chooses the token it would choose anyway: the arg max for greedy requests, else the inverse of the row's distribution at a number
u that depends only on seed and position. Drafts are kept as long as they equal the chosen token; the first row that
disagrees supplies its own token instead, and rows behind it are thrown away.

The output is therefore token for token what decoding without drafts gives, for greedy *and* for sampled requests. It is also
rejection sampling (Leviathan et al. 2023) for a draft d that puts all its mass on one token: d survives exactly when u falls into
d's part of the unit interval, which has length p(d); given that it does not, the chosen token x has probability
p(x) / (1 - p(d)), the target with d removed. No other rule accepts a fixed draft more often.

**The MTP proposer** (GLM-4.5's extra layer; positions as in vLLM `glm4_moe_mtp`): the entry at position i is computed from
the trunk's hidden state h_i and the token t_{i+1}, and predicts t_{i+2}. After each step it runs over exactly the positions
the step settled, whose next tokens are all known by then (in a prefill chunk from the prompt, at the end from the sampler).
That overwrites whatever drafting had left in those slots, so the MTP layer's KV is always that of true hidden states. The
last row's arg max is the first draft; further drafts chain the layer on its own normed output, one position on each time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Seq
from typing import NamedTuple, Protocol

from torch import Tensor

from openglm import ops
from openglm.engine.runner import Runner, Span
from openglm.engine.sequence import Sequence


class Settled(NamedTuple):
    """A sequence after a step: `num_rows` of its rows, from `first_row` on, hold true tokens up to position `computed`."""

    sequence: Sequence
    first_row: int
    num_rows: int
    start: int
    depth: int
    """Drafts wanted for the next step; 0 when the sequence is still in its prompt or about to end."""


class Proposer(Protocol):
    """A source of drafts. Wrong drafts cost time, never correctness."""

    def propose(self, settled: Seq[Settled], hidden: Tensor) -> list[list[int] | None]:
        """At most `depth` drafts per sequence, in order; hidden [T, H] are the step's trunk states.

        None reports that the proposer's own state for a sequence is damaged (not finite).
        """
        ...


def longest_match(drafts: Seq[int], chosen: Seq[int]) -> int:
    """How many leading drafts equal the tokens chosen at their positions."""
    count = 0
    for draft, token in zip(drafts, chosen, strict=False):
        if draft != token:
            break
        count += 1
    return count


class MTPProposer:
    """Drafts with the model's own multi-token-prediction layer."""

    def __init__(self, runner: Runner, *, num_tokens: int) -> None:
        """Ids from `num_tokens` on are padding and never proposed."""
        self._runner = runner
        self._num_tokens = num_tokens

    def propose(self, settled: Seq[Settled], hidden: Tensor) -> list[list[int] | None]:
        """Bring the MTP layer's KV up to date and chain as many drafts as each sequence wants."""
        runner, model = self._runner, self._runner.model
        spans: list[Span] = []
        rows: list[int] = []
        next_tokens: list[int] = []
        for sequence, first_row, num_rows, start, _ in settled:
            spans.append(Span(sequence, len(rows), num_rows, start))
            rows += range(first_row, first_row + num_rows)
            next_tokens += sequence.tokens[start + 1 : start + 1 + num_rows]
        ids, ctx = runner.context(spans, next_tokens)
        states = model.mtp_forward(ids, runner.take(hidden, rows), ctx)
        drafts: list[list[int] | None] = [[] for _ in settled]
        wanting = [i for i, item in enumerate(settled) if item.depth > 0]
        if not wanting:
            return drafts
        states = runner.take(states, [spans[i].first_row + spans[i].num_rows - 1 for i in wanting])
        for step in range(max(settled[i].depth for i in wanting)):
            if step:
                kept = [place for place, i in enumerate(wanting) if settled[i].depth > step and drafts[i] is not None]
                if not kept:
                    break
                wanting, states = [wanting[place] for place in kept], runner.take(states, kept)
                behind = [
                    Span(settled[i].sequence, row, 1, settled[i].start + settled[i].num_rows + step - 1) for row, i in enumerate(wanting)
                ]
                ids, ctx = runner.context(behind, [(drafts[i] or [])[-1] for i in wanting])
                states = model.mtp_forward(ids, states, ctx)
            best, tokens = ops.highest(runner.logits(states)[:, : self._num_tokens])
            for i, token, value in zip(wanting, tokens.tolist(), best.tolist(), strict=True):
                chain = drafts[i]
                if math.isfinite(value) and chain is not None:
                    chain.append(token)
                else:
                    drafts[i] = None
        return drafts
