"""Drafts by prompt lookup: what followed the last tokens when they occurred before in the same sequence. Needs no MTP layer.

Code edits, extraction and tool calls repeat their prompt; there a lookup is right for many tokens in a row and costs nothing.

**Index.** Per sequence one dictionary from every run of `shortest` tokens to the last place where it ended, and per position the
place before that: a chain of occurrences, newest first, as in LZ77. Looking up walks the chain of the newest run, at most
`MAX_TRIED` places, and takes the one whose tokens agree furthest to the left (`longest` at most; the newest of equals). A token is
indexed once; per step the work grows with new tokens, not with the context, and a long prompt that came from the prefix cache is
indexed over several steps.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence as Seq

from torch import Tensor

from openglm.engine.speculation import Settled

MAX_TRIED = 16
MAX_INDEXED_PER_STEP = 4096


class NgramProposer:
    """Prompt lookup for every running sequence."""

    def __init__(self, max_num_seqs: int, *, longest: int, shortest: int) -> None:
        """Only matches of `shortest` tokens and more are used."""
        self._longest = longest
        self._shortest = shortest
        # Per row: admission of the sequence in it, and its index.
        self._indices = [(0, NgramIndex(longest=longest, shortest=shortest)) for _ in range(max_num_seqs)]

    def propose(self, settled: Seq[Settled], hidden: Tensor) -> list[list[int] | None]:
        """Look up the newest tokens of every sequence that wants drafts."""
        drafts: list[list[int] | None] = []
        for sequence, _, _, _, depth in settled:
            admission, index = self._indices[sequence.row]
            if admission != sequence.admission:
                index = NgramIndex(longest=self._longest, shortest=self._shortest)
                self._indices[sequence.row] = (sequence.admission, index)
            index.extend(sequence.tokens)
            drafts.append(index.continuation(sequence.tokens, depth) if depth else [])
        return drafts


class NgramIndex:
    """Where each run of tokens occurred in one growing list."""

    def __init__(self, *, longest: int, shortest: int) -> None:
        self._longest = longest
        self._shortest = shortest
        self._num_indexed = 0
        self._newest: dict[tuple[int, ...], int] = {}  # run -> position behind its last occurrence
        self._older = array("l")  # position behind an occurrence -> position behind the one before it, or -1

    def extend(self, tokens: Seq[int]) -> None:
        """Index the runs that have a token behind them, as far as one step's share goes."""
        size, older = self._shortest, self._older
        end = min(len(tokens), self._num_indexed + MAX_INDEXED_PER_STEP)
        for position in range(self._num_indexed, end):  # of the token behind the run
            if position < size:
                older.append(-1)
                continue
            run = tuple(tokens[position - size : position])
            older.append(self._newest.get(run, -1))
            self._newest[run] = position
        self._num_indexed = end

    def continuation(self, tokens: Seq[int], depth: int) -> list[int]:
        """What followed the longest earlier match of the newest tokens; it may run over into itself, as repetitions do."""
        size = len(tokens)
        if size < self._shortest:
            return []
        best, best_length = -1, 0
        place = self._newest.get(tuple(tokens[size - self._shortest :]), -1)
        for _ in range(MAX_TRIED):
            if place < 0:
                break
            length = self._shortest
            while length < min(self._longest, place) and tokens[place - 1 - length] == tokens[size - 1 - length]:
                length += 1
            if length > best_length:
                best, best_length = place, length
                if length == self._longest:
                    break
            place = self._older[place]
        if best < 0:
            return []
        drafts: list[int] = []
        for position in range(best, best + depth):
            drafts.append(tokens[position] if position < size else drafts[position - size])
        return drafts
