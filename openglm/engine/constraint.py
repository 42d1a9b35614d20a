"""`Constraint`: the form that a request demands of its answer, as it crosses the engine's border. No tensors.

A constraint is text: a JSON schema, a regular expression, or a grammar in llguidance's dialect of Lark (or llguidance's own JSON
form of several such grammars). The engine compiles it (`grammar_compiler`) and holds the answer to it (`constrained_answer`). What a
tool call looks like, or how a chat layout frames an answer, is said in the grammar; see `openglm.text.tool_grammar`.

A conversation's answer begins after its reasoning, which is never constrained.
"""

from __future__ import annotations

from typing import Final, Literal, get_args

import msgspec

from openglm.errors import RequestError

ConstraintKind = Literal["json_schema", "regex", "lark"]

MAX_CONSTRAINT_CHARS: Final = 1 << 20
MAX_REGEX_CHARS: Final = 16 << 10


class Constraint(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the answer must match, from its first token to its last."""

    kind: ConstraintKind
    text: str
    at: Literal["answer", "call"] = "answer"
    """"answer": the whole answer, which cannot end before it matches. "call": only what follows a `<tool_call>`, up to its
    `</tool_call>`; text around calls is free, and the grammar is that of the calls one after another."""
    reads_calls: bool = False
    """Whether the answer's reader recognises calls: then `<tool_call>` ends reasoning, and ordinary text must not spell it."""
    param: str = "constraint"
    """What the request itself calls it, for errors."""

    def __post_init__(self) -> None:
        """Refuse what is no constraint at all; whether the text makes sense is known when it is compiled."""
        if self.kind not in get_args(ConstraintKind):
            raise RequestError(f"a constraint's kind must be one of {', '.join(get_args(ConstraintKind))}", param=self.param)
        if self.at not in ("answer", "call"):
            raise RequestError('a constraint applies at "answer" or "call"', param=self.param)
        limit = MAX_REGEX_CHARS if self.kind == "regex" else MAX_CONSTRAINT_CHARS
        if not isinstance(self.text, str) or not 1 <= len(self.text) <= limit:
            raise RequestError(f"a constraint of kind {self.kind} must have 1 to {limit} characters", param=self.param)
        try:
            self.text.encode()
        except UnicodeEncodeError:
            raise RequestError("a constraint must be well-formed text; it holds half a surrogate pair", param=self.param) from None
