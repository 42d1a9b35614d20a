"""`Grammar`: one answer held to a form, token by token; and llguidance behind it.

    grammar = compile_grammar(constraint, vocabulary)    # raises GrammarError
    grammar.mask()          which tokens may come next
    grammar.advance(token)  one more token, if it may come next
    grammar.rollback(n)     take the last n back, exactly

A grammar knows bytes and special tokens. It does not know thinking, stop ids of a request or drafts (see `constrained_answer`).
Special tokens (all added tokens of the vocabulary) are out of band: no text matches them, so a `<` inside a value is just a `<`.

llguidance bounds its own work - per token and in all - and reports what it gives up on; that becomes a `GrammarError`, the request's
own. No tensors.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import llguidance
import numpy as np
from numpy.typing import NDArray

from openglm.engine.constraint import Constraint
from openglm.errors import RequestError

Mask = NDArray[np.bool_]

JSON_WHITESPACE: Final = r" {1,4}|\r?\n[ \t]{0,40}"
"""White space between the tokens of a JSON answer: some spaces, or a new line and its indentation. Bounded, because a model that may
write white space for ever sometimes does."""

MAX_LEXER_STATES: Final = 50_000  # one to two KiB each; a large tool list needs a few thousand
_MAX_MESSAGE_CHARS: Final = 200


class GrammarError(RequestError):
    """A constraint that cannot be compiled, or that gave up in the middle of an answer."""


class Grammar(Protocol):
    """The state of one answer. Cheap to copy; not for use from several threads."""

    def copy(self) -> Grammar:
        """Another answer in the same state."""
        ...

    def mask(self) -> Mask:
        """Which tokens [V] may come next; the vocabulary's end tokens are among them where the answer may end."""
        ...

    def num_accepted(self, tokens: Sequence[int]) -> int:
        """How many of these tokens, from the first on, could follow; changes nothing."""
        ...

    def advance(self, token: int) -> bool:
        """Take one more token; False, and no change, when it may not come next."""
        ...

    def rollback(self, count: int) -> None:
        """Take back the last `count` tokens."""
        ...

    @property
    def accepts(self) -> bool:
        """Whether the answer may end here."""
        ...

    @property
    def exhausted(self) -> bool:
        """Whether the answer is complete and nothing can follow."""
        ...


@dataclass(frozen=True)
class AnswerMarks:
    """Ids of the tags between and inside which an answer is read."""

    assistant: int
    think: int
    end_think: int
    tool_call: int
    end_tool_call: int
    arg_value: int
    end_arg_value: int


class Vocabulary:
    """The tokens as bytes, in the form that grammars need. Built once per model."""

    def __init__(
        self,
        tokens: Sequence[bytes],
        *,
        special: Iterable[int],
        end_ids: Sequence[int],
        marks: AnswerMarks,
        encode: Callable[[str], list[int]],
    ) -> None:
        """`tokens[i]` is what id i stands for; `special` are the added tokens, `end_ids` those that end a turn; `encode` turns
        ordinary text into ids."""
        self.tokens = tuple(tokens)
        self.special = frozenset(special)
        self.end_ids = tuple(end_ids)
        self.marks = marks
        self.encode = encode
        self.llguidance: Final = llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(_Tokens(self.tokens, sorted(self.special), self.end_ids[0], encode)),
            n_vocab=len(self.tokens),
            eos_token=list(self.end_ids),
        )
        self._ordinary = sorted((token, i) for i, token in enumerate(self.tokens) if token and i not in self.special)
        self._containing: dict[bytes, list[int]] = {}

    def ids_completing(self, tail: bytes, text: bytes) -> list[int]:
        """Ordinary tokens that, written after `tail`, make `text` appear. `text` has its first byte nowhere else, and `tail` is a
        proper beginning of it."""
        if text not in self._containing:
            self._containing[text] = [i for token, i in self._ordinary if text in token]
        found = list(self._containing[text])
        if tail:
            rest = text[len(tail) :]
            found += [i for token, i in self._starting(rest) if text not in token]
        return found

    def _starting(self, text: bytes) -> list[tuple[bytes, int]]:
        first = bisect_left(self._ordinary, (text, -1))
        end = first
        while end < len(self._ordinary) and self._ordinary[end][0].startswith(text):
            end += 1
        return self._ordinary[first:end]


def grammar_text(constraint: Constraint) -> str:
    """The constraint in llguidance's words; raises `GrammarError` when its JSON is none."""
    if constraint.kind == "regex":
        return llguidance.LLMatcher.grammar_from_regex(constraint.text)
    if constraint.kind == "lark":
        return constraint.text
    try:
        schema = json.loads(constraint.text)
    except (ValueError, RecursionError):
        raise GrammarError("the schema is not valid JSON", param=constraint.param) from None
    if not isinstance(schema, dict | bool):
        raise GrammarError("a schema must be a JSON object", param=constraint.param)
    return json.dumps({"grammars": [{"json_schema": json_form(schema)}]})


def json_form(schema: Any) -> Any:
    """A schema with our own settings for how its JSON is written, in place of any that it brought."""
    if not isinstance(schema, dict):
        schema = {"allOf": [schema]}
    return {**schema, "x-guidance": {"whitespace_pattern": JSON_WHITESPACE}}


def compile_grammar(text: str, vocabulary: Vocabulary, *, param: str) -> Grammar:
    """Compile what `grammar_text` returned. May take long: `grammar_compiler` tries a text in another process first."""
    matcher = llguidance.LLMatcher(vocabulary.llguidance, text, log_level=0, limits=_limits())
    if matcher.is_error():
        raise GrammarError(error_message(matcher.get_error()), param=param)
    grammar = _LlguidanceGrammar(matcher, len(vocabulary.tokens), param)
    if not grammar.mask().any():
        raise GrammarError("nothing can match it", param=param)
    return grammar


def error_message(text: str) -> str:
    """The first lines of an error of llguidance, short enough to send."""
    short = " ".join(text.split())
    return short if len(short) <= _MAX_MESSAGE_CHARS else f"{short[:_MAX_MESSAGE_CHARS]}..."


class _LlguidanceGrammar:
    """A matcher of llguidance, whose errors are sticky and become exceptions here."""

    def __init__(self, matcher: llguidance.LLMatcher, num_tokens: int, param: str) -> None:
        self._matcher = matcher
        self._num_tokens = num_tokens
        self._param = param

    def copy(self) -> _LlguidanceGrammar:
        return _LlguidanceGrammar(self._matcher.deep_copy(), self._num_tokens, self._param)

    def mask(self) -> Mask:
        words = self._matcher.compute_bitmask()
        self._check()
        bits = np.unpackbits(np.frombuffer(words, dtype=np.uint8), count=self._num_tokens, bitorder="little")
        return bits.view(np.bool_)

    def num_accepted(self, tokens: Sequence[int]) -> int:
        return self._matcher.validate_tokens(list(tokens))

    def advance(self, token: int) -> bool:
        taken = self._matcher.try_consume_tokens([token])
        self._check()
        return bool(taken)

    def rollback(self, count: int) -> None:
        if count and not self._matcher.rollback(count):
            self._check()

    @property
    def accepts(self) -> bool:
        return self._matcher.is_accepting()

    @property
    def exhausted(self) -> bool:
        return self._matcher.is_stopped()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise GrammarError(f"the grammar gave up: {error_message(self._matcher.get_error())}", param=self._param)


class _Tokens:
    """What llguidance asks of a tokenizer."""

    bos_token_id = None

    def __init__(self, tokens: Sequence[bytes], special: Sequence[int], end_id: int, encode: Callable[[str], list[int]]) -> None:
        self.tokens = tokens
        self.special_token_ids = special
        self.eos_token_id = end_id
        self._encode = encode

    def __call__(self, text: str) -> list[int]:
        return self._encode(text if isinstance(text, str) else bytes(text).decode("utf-8", "replace"))


def _limits() -> llguidance.LLParserLimits:
    return llguidance.LLParserLimits(max_lexer_states=MAX_LEXER_STATES, verbose_errors=False)
