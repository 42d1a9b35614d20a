"""Holds the answers of constrained requests to their grammars, after the sampler and before acceptance.

**Choose, check, choose again.** Every row is sampled as if there were no grammar. A token that the grammar allows stays. Only where it
forbids the token is the mask computed, and the row is sampled once more from what the mask leaves, at another number u of the same seed
and position. With p the row's distribution and F the mass that is forbidden, an allowed token x comes out with probability
p(x) + F * p(x) / (1 - F) = p(x) / (1 - F): exactly p under the mask. (Top-k, top-p and min-p filter each of the two samplings.) So

- a step without a violation costs one look-up per token, no mask, and no copy of logits;
- reasoning is token for token what it would be without a constraint, as long as it does not try to end the turn;
- a row depends on its own logits, seed, position and tokens alone: not on company, chunks or drafts.

**Drafts** are cut where the grammar forbids them, before they cost a verification. A row behind a draft is checked in the state behind that
draft, and states follow the accepted tokens alone: whatever else happened to them is rolled back.

A request whose constraint is still being compiled waits in the queue, unscheduled; a constraint that is refused ends its request.

Shape legend: N rows of the step, R rows that are sampled again, V tokens that may be sampled.
"""

from __future__ import annotations

import time
from collections.abc import Sequence as Seq
from typing import Final

import numpy as np
import torch
from torch import Tensor

from openglm.engine.constrained_answer import ConstrainedAnswer
from openglm.engine.grammar import GrammarError, Mask, Vocabulary
from openglm.engine.grammar_compiler import Compilation, GrammarCompiler
from openglm.engine.request import RequestFailure
from openglm.engine.sampler import Sampled, Sampler, SamplingRow
from openglm.engine.sequence import Sequence
from openglm.errors import RequestError

_SECOND_DRAW: Final = 1 << 62  # added to the position, so that the second u of a position is no other position's first
_NOTHING_LEFT: Final = "the grammar and the request's other bans leave no token to choose"


class _Waiting:
    """A request whose grammar is not there yet."""

    def __init__(self, sequence: Sequence, stop_ids: frozenset[int], compilation: Compilation) -> None:
        self.sequence = sequence
        self.stop_ids = stop_ids
        self.compilation = compilation


class _Walk:
    """One request's rows in a step: row `first + i` follows its tokens and the first `i` drafts."""

    def __init__(self, first: int, sequence: Sequence, answer: ConstrainedAnswer) -> None:
        self.row = first
        self.begun = False
        self.stuck = False
        self.last_drawn = -1
        self.mask: Mask | None = None  # of the row at which it is stuck
        self.drafts = iter(sequence.drafts)
        self.sequence = sequence
        self.answer = answer


class Constrainer:
    """The constraints of all requests that have one; the others are not known here and cost nothing."""

    def __init__(self, vocabulary: Vocabulary | None, sampler: Sampler) -> None:
        """`vocabulary` is None for an engine without tokenizer, which can have no constraints."""
        self._vocabulary = vocabulary
        self._compiler = GrammarCompiler(vocabulary) if vocabulary is not None else None
        self._sampler = sampler
        self._waiting: dict[str, _Waiting] = {}
        self._answers: dict[str, ConstrainedAnswer] = {}
        self.reset_counts()

    def reset_counts(self) -> None:
        """Start counting anew."""
        self.seconds = 0.0
        self.num_checked = 0
        self.num_redrawn = 0

    @property
    def is_compiling(self) -> bool:
        """Whether some request waits for its grammar."""
        return bool(self._waiting)

    def check(self, sequence: Sequence) -> None:
        """Refuse a constraint that this engine cannot have."""
        constraint = sequence.params.constraint
        if constraint is not None and self._compiler is None:
            raise RequestError("a constraint needs a tokenizer, and this engine has none", param=constraint.param)

    def add(self, sequence: Sequence, stop_ids: frozenset[int]) -> None:
        """Take note of a new request; it must not be scheduled while `sequence.awaits_grammar`."""
        constraint = sequence.params.constraint
        if constraint is None or self._compiler is None:
            return
        sequence.awaits_grammar = True
        self._waiting[sequence.id] = _Waiting(sequence, stop_ids, self._compiler.submit(constraint))

    def remove(self, request_id: str) -> None:
        """Forget a request."""
        self._waiting.pop(request_id, None)
        self._answers.pop(request_id, None)

    def wait(self, timeout_s: float) -> None:
        """Wait until a grammar may be ready."""
        if self._compiler is not None:
            self._compiler.wait(timeout_s)

    def settle(self) -> list[tuple[Sequence, RequestFailure]]:
        """Release the requests whose grammars have become ready; returns those whose constraint was refused."""
        refused = []
        for request_id, waiting in list(self._waiting.items()):
            compilation, sequence = waiting.compilation, waiting.sequence
            if not compilation.done:
                continue
            del self._waiting[request_id]
            constraint, vocabulary = sequence.params.constraint, self._vocabulary
            if compilation.grammar is None or constraint is None or vocabulary is None:
                refused.append((sequence, compilation.failure or RequestFailure("internal", "the grammar was lost")))
                continue
            sequence.awaits_grammar = False
            self._answers[request_id] = ConstrainedAnswer(
                constraint, compilation.grammar.copy(), vocabulary, prompt=sequence.tokens, stop_ids=waiting.stop_ids
            )
        return refused

    def leaves(self, sequence: Sequence) -> bool:
        """Whether any token may follow."""
        return sequence.id not in self._answers

    def cut_drafts(self, sequence: Sequence) -> None:
        """Keep the drafts that the grammar allows."""
        answer = self._answers.get(sequence.id)
        if answer is None or not sequence.drafts:
            return
        began = time.perf_counter()
        try:
            answer.follow(sequence.tokens)
            sequence.drafts = sequence.drafts[: answer.num_allowed(sequence.drafts)]
        except RequestError:
            sequence.drafts = []  # the grammar gave up; the next step says so, where an error has its place
        self.seconds += time.perf_counter() - began

    def correct(
        self, logits: Tensor, adjusted: Tensor | None, sequences: Seq[Sequence], rows: Seq[SamplingRow], sampled: list[Sampled]
    ) -> list[Sampled]:
        """Replace what grammars forbid in `sampled`, the tokens of a step's rows [N], of which each sequence has one and one more per
        draft. logits [N, >= V]; `adjusted` [N, V] where logits were adjusted."""
        if not self._answers:
            return sampled
        began = time.perf_counter()
        walks: list[_Walk] = []
        sampled = list(sampled)
        first = 0
        for sequence in sequences:
            answer = self._answers.get(sequence.id)
            if answer is not None:
                walks.append(_Walk(first, sequence, answer))
            first += 1 + len(sequence.drafts)
        stuck = [walk for walk in walks if self._is_stuck(walk, sampled)]
        while stuck:
            self._draw_again(stuck, logits, adjusted, rows, sampled)
            stuck = [walk for walk in stuck if self._is_stuck(walk, sampled)]
        self.seconds += time.perf_counter() - began
        return sampled

    def _is_stuck(self, walk: _Walk, sampled: list[Sampled]) -> bool:
        """Follow the chosen tokens as far as they will be accepted; True at one that the grammar forbids."""
        try:
            if not walk.begun:
                walk.answer.follow(walk.sequence.tokens)
                walk.begun = True
            while self._step(walk, sampled):
                walk.row += 1
        except GrammarError as error:
            sampled[walk.row] = _failed(sampled[walk.row], str(error), walk.answer.param)
            return False
        return walk.stuck

    def _step(self, walk: _Walk, sampled: list[Sampled]) -> bool:
        """Check one row; whether the next one counts."""
        row = sampled[walk.row]
        walk.stuck = False
        if not row.finite or not row.allowed or row.failure is not None:
            return False  # ends the request without our help
        self.num_checked += 1
        if not walk.answer.advance(row.token):
            if walk.last_drawn == walk.row:
                raise RuntimeError(f"the mask of {walk.sequence.id} offered token {row.token}, which the grammar refuses")
            walk.mask = walk.answer.mask()
            walk.stuck = True
            return False
        if walk.answer.complete:
            sampled[walk.row] = row._replace(completes=True)
            return False
        return next(walk.drafts, None) == row.token

    def _draw_again(
        self, walks: Seq[_Walk], logits: Tensor, adjusted: Tensor | None, rows: Seq[SamplingRow], sampled: list[Sampled]
    ) -> None:
        """Sample the rows at which these requests are stuck from what their masks leave."""
        masks = np.stack([walk.mask for walk in walks if walk.mask is not None])
        index = torch.tensor([walk.row for walk in walks], device=logits.device)
        own = logits[index, : self._sampler.num_tokens]  # [R, V]
        forbidden = torch.from_numpy(~masks[:, : own.shape[1]]).to(own.device)
        masked = (own if adjusted is None else adjusted[index]).masked_fill(forbidden, float("-inf"))
        again = [rows[walk.row]._replace(position=rows[walk.row].position + _SECOND_DRAW) for walk in walks]
        for walk, row in zip(walks, self._sampler.sample(own, again, masked), strict=True):
            walk.last_drawn = walk.row
            sampled[walk.row] = row if row.allowed else _failed(row, _NOTHING_LEFT, walk.answer.param)
        self.num_redrawn += len(walks)


def _failed(row: Sampled, message: str, param: str) -> Sampled:
    return row._replace(failure=RequestFailure("invalid_request", f"{param}: {message}", param))
