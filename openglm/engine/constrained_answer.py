"""`ConstrainedAnswer`: where one request with a constraint stands, and which tokens may come next. No tensors.

A constraint at "answer" begins where the reasoning ends:

    UNDECIDED ──<think>──> REASONING ──</think>──> ANSWER     (the grammar runs; when nothing can follow, the request is complete)
        └── </think>, or any text of the answer ──────┘

The prompt says where a request starts, by the last of `<|assistant|>`, `<think>`, `</think>` in it; UNDECIDED is behind a bare
`<|assistant|>`, where the model itself opens its reasoning. White space there belongs to the answer if one follows, and to the layout if
`<think>` does, so it reaches the grammar only when that is known. With calls expected, `<tool_call>` ends reasoning, as it does for
the turn parser.

A constraint at "call" leaves everything free until `<tool_call>`:   FREE ──<tool_call>──> CALL ──</tool_call>──> FREE

Outside the grammar's reach very little is forbidden: an end of the turn before there is an answer, and the spelling of a tag in ordinary
text. The answer's reader works on text; for it a spelled `</think>` or `</arg_value>` is the tag.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from enum import Enum, auto
from typing import Final, NamedTuple

import numpy as np

from openglm.engine.constraint import Constraint
from openglm.engine.grammar import Grammar, Mask, Vocabulary

_THINK: Final = b"<think>"
_END_THINK: Final = b"</think>"
_TOOL_CALL: Final = b"<tool_call>"
_END_ARG_VALUE: Final = b"</arg_value>"
_LONGEST_TAIL: Final = len(_END_ARG_VALUE) - 1
_KEPT_POINTS: Final = 32  # how far back a rollback may go; far more than drafts per step


class _Phase(Enum):
    UNDECIDED = auto()
    REASONING = auto()
    ANSWER = auto()
    FREE = auto()
    CALL = auto()


class _Point(NamedTuple):
    """The state after some token, except for the grammar's, which counts its tokens."""

    phase: _Phase
    num_grammar: int = 0
    space: tuple[int, ...] = ()  # white space before anything was decided
    in_call: bool = False
    in_value: bool = False
    tail: bytes = b""  # the end of the text as far as it may begin a tag
    think_tags_count: bool = False  # the reader still takes think tags for tags


class ConstrainedAnswer:
    """Follows one request's tokens."""

    def __init__(
        self, constraint: Constraint, grammar: Grammar, vocabulary: Vocabulary, *, prompt: Seq[int], stop_ids: frozenset[int]
    ) -> None:
        """`stop_ids` are all that would end this request; they may not come before the answer is complete."""
        self._constraint = constraint
        self._grammar = grammar
        self._vocabulary = vocabulary
        self._stop_ids = frozenset(i for i in stop_ids if i < len(vocabulary.tokens))
        self._stop_list = sorted(self._stop_ids)
        self._not_ends = [i for i in vocabulary.end_ids if i not in stop_ids]
        self._newlines = frozenset(vocabulary.encode("\n")) if constraint.at == "answer" else frozenset()
        self._num_seen = len(prompt)
        self._points = [self._start(prompt)]

    @property
    def param(self) -> str:
        """The request's own name for the constraint."""
        return self._constraint.param

    @property
    def complete(self) -> bool:
        """Whether the answer is whole and nothing can follow it, not even more of it."""
        return self._now.phase not in (_Phase.UNDECIDED, _Phase.REASONING) and self._now.num_grammar > 0 and self._grammar.exhausted

    def follow(self, tokens: Seq[int]) -> None:
        """Be in the state behind `tokens`, the prompt included: take back what is no longer there, take in what is new."""
        if self._num_seen > len(tokens):
            self.rollback(self._num_seen - len(tokens))
        for token in tokens[self._num_seen :]:
            if not self.advance(token):
                raise AssertionError(f"token {token} was chosen against the grammar")

    def advance(self, token: int) -> bool:
        """Take one more token; False, and no change, when it may not come next."""
        now = self._now
        if token in self._stop_ids:
            after = now if self._may_end() else None
        elif self._spells_tag(now, token):
            after = None
        else:
            after = self._after(now, token)
        if after is None:
            return False
        self._points.append(after._replace(tail=self._tail_after(after, token)))
        del self._points[:-_KEPT_POINTS]
        self._num_seen += 1
        return True

    def rollback(self, count: int) -> None:
        """Take back the last `count` tokens."""
        if not count:
            return
        undone = self._now
        del self._points[-count:]
        self._num_seen -= count
        self._grammar.rollback(undone.num_grammar - self._now.num_grammar)

    def num_allowed(self, drafts: Seq[int]) -> int:
        """How many of these drafts, from the first on, may come next."""
        count = 0
        for draft in drafts:
            if not self.advance(draft):
                break
            count += 1
            if self.complete or draft in self._stop_ids:
                break
        self.rollback(count)
        return count

    def mask(self) -> Mask:
        """Which tokens [V] `advance` would take."""
        now, marks = self._now, self._vocabulary.marks
        match now.phase:
            case _Phase.UNDECIDED:
                allowed = self._undecided_mask(now)
            case _Phase.REASONING | _Phase.FREE:
                allowed = np.ones(len(self._vocabulary.tokens), dtype=np.bool_)
                if (now.phase is _Phase.FREE or self._constraint.reads_calls) and not self._grammar.num_accepted([marks.tool_call]):
                    allowed[marks.tool_call] = False
            case _:
                allowed = self._grammar.mask().copy()
                allowed[self._not_ends] = False
        for text in self._tags(now):
            allowed[self._vocabulary.ids_completing(_overlap(now.tail, text), text)] = False
        allowed[self._stop_list] = self._may_end()
        return allowed

    @property
    def _now(self) -> _Point:
        return self._points[-1]

    def _start(self, prompt: Seq[int]) -> _Point:
        if self._constraint.at == "call":
            return _Point(_Phase.FREE)
        marks, tokens = self._vocabulary.marks, self._vocabulary.tokens
        for place in range(len(prompt) - 1, -1, -1):
            if prompt[place] == marks.think:
                return _Point(_Phase.REASONING)
            if prompt[place] == marks.end_think:
                return _Point(_Phase.ANSWER)
            if prompt[place] == marks.assistant:
                behind = b"".join(tokens[token] for token in prompt[place + 1 :])
                return _Point(_Phase.ANSWER if behind.strip() else _Phase.UNDECIDED, think_tags_count=True)
        return _Point(_Phase.ANSWER)

    def _after(self, now: _Point, token: int) -> _Point | None:
        """The point behind an ordinary or special token that is no stop id."""
        marks = self._vocabulary.marks
        match now.phase:
            case _Phase.UNDECIDED:
                return self._after_undecided(now, token)
            case _Phase.REASONING:
                if token == marks.end_think:
                    return now._replace(phase=_Phase.ANSWER, think_tags_count=False)
                if token == marks.tool_call and self._constraint.reads_calls:
                    return self._in_grammar(now._replace(phase=_Phase.ANSWER), token)
                return now
            case _Phase.FREE:
                return self._in_grammar(now._replace(phase=_Phase.CALL), token) if token == marks.tool_call else now
            case _Phase.CALL:
                phase = _Phase.FREE if token == marks.end_tool_call else _Phase.CALL
                return self._in_grammar(now._replace(phase=phase), token)
            case _Phase.ANSWER:
                return self._in_grammar(now, token)

    def _after_undecided(self, now: _Point, token: int) -> _Point | None:
        marks = self._vocabulary.marks
        if token == marks.think:
            return now._replace(phase=_Phase.REASONING, space=())
        if token == marks.end_think:
            return now._replace(phase=_Phase.ANSWER, space=(), think_tags_count=False)
        path = (*now.space, token)
        if self._is_space(token):
            # The layout's newline may stand before <think> even where the answer itself cannot begin with one.
            fits = self._grammar.num_accepted(path) == len(path) or (not now.space and token in self._newlines)
            return now._replace(space=path) if fits else None
        if self._grammar.num_accepted(path) < len(path):
            return None
        for space in now.space:
            self._grammar.advance(space)
        return self._in_grammar(now._replace(phase=_Phase.ANSWER, num_grammar=len(now.space), space=()), token)

    def _in_grammar(self, now: _Point, token: int) -> _Point | None:
        if token in self._not_ends or not self._grammar.advance(token):
            return None
        marks = self._vocabulary.marks
        return now._replace(
            num_grammar=now.num_grammar + 1,
            in_call=(now.in_call or token == marks.tool_call) and token != marks.end_tool_call,
            in_value=(now.in_value or token == marks.arg_value) and token != marks.end_arg_value,
        )

    def _undecided_mask(self, now: _Point) -> Mask:
        grammar = self._grammar
        if grammar.num_accepted(now.space) == len(now.space):
            for space in now.space:
                grammar.advance(space)
            allowed = grammar.mask().copy()
            allowed[self._not_ends] = False
            grammar.rollback(len(now.space))
        else:
            allowed = np.zeros(len(self._vocabulary.tokens), dtype=np.bool_)
        if not now.space:
            allowed[list(self._newlines)] = True
        allowed[[self._vocabulary.marks.think, self._vocabulary.marks.end_think]] = True
        return allowed

    def _may_end(self) -> bool:
        match self._now.phase:
            case _Phase.UNDECIDED:
                space = self._now.space
                if self._grammar.num_accepted(space) < len(space):
                    return False
                for token in space:
                    self._grammar.advance(token)
                accepts = self._grammar.accepts
                self._grammar.rollback(len(space))
                return accepts
            case _Phase.REASONING | _Phase.CALL:
                return False
            case _Phase.FREE:
                return True
            case _Phase.ANSWER:
                return self._grammar.accepts

    def _tags(self, now: _Point) -> tuple[bytes, ...]:
        """The tags that ordinary text must not spell here."""
        if now.in_value:
            return (_END_ARG_VALUE,)
        if now.in_call:
            return ()
        calls = (_TOOL_CALL,) if self._constraint.reads_calls or now.phase is _Phase.FREE else ()
        if now.phase is _Phase.REASONING:
            return (_END_THINK, *calls)
        return (_THINK, _END_THINK, *calls) if now.think_tags_count else calls

    def _spells_tag(self, now: _Point, token: int) -> bool:
        if token in self._vocabulary.special:
            return False
        text = now.tail + self._vocabulary.tokens[token]
        return b"<" in text and any(tag in text for tag in self._tags(now))

    def _tail_after(self, now: _Point, token: int) -> bytes:
        if token in self._vocabulary.special:
            return b""
        text = (now.tail + self._vocabulary.tokens[token])[-_LONGEST_TAIL:]
        start = text.rfind(b"<")
        return text[start:] if start >= 0 and any(tag.startswith(text[start:]) for tag in _ALL_TAGS) else b""

    def _is_space(self, token: int) -> bool:
        return token not in self._vocabulary.special and self._vocabulary.tokens[token].isspace()


_ALL_TAGS: Final = (_THINK, _END_THINK, _TOOL_CALL, _END_ARG_VALUE)


def _overlap(tail: bytes, tag: bytes) -> bytes:
    """The tail as far as it begins this tag."""
    return tail if tag.startswith(tail) else b""
