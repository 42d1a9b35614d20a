"""When generation ends: stop ids and stop strings, across every token border. No tensors.

A stop string may begin in one token and end in another, so text is scanned as it grows. `StopStrings` is also what a consumer
of the stream needs: it holds back text that could still become a stop string, and cuts before the one that did.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from openglm.engine.request import SamplingParams


class Detokenizer(Protocol):
    """Turns ids into text piece by piece, never handing out half a character."""

    def push(self, ids: Sequence[int]) -> str:
        """Text that became certain with these ids."""
        ...


class StopStrings:
    """Scans a growing text for the first stop string; what `push` returns is safe to show."""

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = tuple(strings)
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str) -> str:
        """Add text; returns what no stop string can claim any more. After a match (`matched`) everything is dropped."""
        if self.matched is not None:
            return ""
        text = self._held + text
        # The match that ends first decides, so that the cut is the same however the text is chopped into pieces.
        found = [(position + len(string), position, string) for string in self._strings if (position := text.find(string)) >= 0]
        if found:
            _, position, self.matched = min(found)
            self._held = ""
            return text[:position]
        keep = max((_overlap(text, string) for string in self._strings), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """The stream is over: what was held back after all."""
        held, self._held = self._held, ""
        return held


class Stop(NamedTuple):
    """The request ends at this token. A stop id is not part of the output; the token that completes a stop string is."""

    reason: str | int
    keep_token: bool


class StopChecker:
    """Decides for one request, token by token, whether it ends."""

    def __init__(self, params: SamplingParams, model_stop_ids: frozenset[int], detokenizer: Detokenizer | None) -> None:
        """`detokenizer` is needed only when the request has stop strings."""
        self.stop_ids = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else model_stop_ids)
        self._strings = StopStrings(params.stop) if params.stop else None
        self._detokenizer = detokenizer
        self._min_tokens = params.min_tokens
        self._num_tokens = 0

    def check(self, token: int) -> Stop | None:
        """The verdict after one more generated token."""
        self._num_tokens += 1
        if token in self.stop_ids:
            return Stop(token, keep_token=False)
        if self._strings is not None and self._detokenizer is not None:
            text = self._detokenizer.push([token])
            if self._num_tokens <= self._min_tokens:  # text of these tokens is no part of a match, as in vLLM
                return None
            self._strings.push(text)
            if self._strings.matched is not None:
                return Stop(self._strings.matched, keep_token=True)
        return None


def _overlap(text: str, string: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `string`."""
    for length in range(min(len(text), len(string) - 1), 0, -1):
        if text.endswith(string[:length]):
            return length
    return 0
