"""A bound on the reasoning of one request, and "stop thinking now". No tensors.

When the tokens after `<think>` have used up the budget, a newline (unless one was just written) and `</think>` are forced, as
SGLang's thinking-budget processor does; the model then goes on to its answer. Tokens of the prompt behind an open `<think>` count,
and a block that is opened again goes on spending what the first one left.

A call ends the reasoning too: models write calls without closing their reasoning, and a tag forced into the middle would break
the arguments.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import NamedTuple


class ThinkingTokens(NamedTuple):
    """The ids that delimit reasoning."""

    think: int
    end_think: int
    newline: int | None = None
    """None when the tokenizer has no single token for it: then `</think>` is forced at once."""
    tool_call: int | None = None


class _Progress(NamedTuple):
    """Where a request stands after some token."""

    is_open: bool
    num_spent: int


class ThinkingBudget:
    """Follows one request's tokens and says which ones must be forced."""

    def __init__(self, ids: ThinkingTokens, budget: int | None) -> None:
        """A `budget` of None is no bound, until `stop_now`."""
        self._ids = ids
        self._budget = budget
        self._progress = _Progress(is_open=False, num_spent=0)
        self._num_seen = 0

    def stop_now(self) -> None:
        """From now on every open block is closed, and blocks that open later are closed at once."""
        self._budget = 0

    def forced(self, tokens: Seq[int], drafts: Seq[int]) -> list[int | None]:
        """The token forced after `tokens`, and after each draft that follows them; None where the model is free."""
        for token in tokens[self._num_seen :]:
            self._progress = self._after(self._progress, token)
        self._num_seen = len(tokens)
        progress = self._progress
        decided = [self._decide(progress, tokens[-1])]
        for draft in drafts:
            progress = self._after(progress, draft)
            decided.append(self._decide(progress, draft))
        return decided

    def _after(self, progress: _Progress, token: int) -> _Progress:
        if token == self._ids.think:
            return _Progress(True, progress.num_spent)
        if not progress.is_open:
            return progress
        if token in (self._ids.end_think, self._ids.tool_call):
            return _Progress(False, progress.num_spent)
        return _Progress(True, progress.num_spent + 1)

    def _decide(self, progress: _Progress, last: int) -> int | None:
        if self._budget is None or not progress.is_open or progress.num_spent < self._budget:
            return None
        newline = self._ids.newline
        return self._ids.end_think if newline is None or last == newline else newline
