"""The arguments of one tool call, written as JSON text while the model is still writing them as tagged text.

A string argument flows out escaped as it arrives. Everything else is held until its value is complete and comes out in
one piece, because `12` may become `12.5` and a half value cannot be taken back. An argument whose schema allows strings
*and* other types (or says nothing) is held only as long as its text could still be one of the others.

Invariant: the concatenated fragments are one JSON object, equal to `arguments`. A key written twice appears twice in the
text; JSON readers let the last one win, and so does `arguments`.
"""

from __future__ import annotations

from openglm.text.messages import JSON
from openglm.text.schema_types import MAX_SCALAR, STRING_ONLY, Types, argument_types, convert, could_be_json, to_json


class ArgumentStream:
    """Call `begin`, `write`..., `end` per argument and `close` once; each returns the JSON text to send (maybe empty)."""

    def __init__(self, parameters: dict[str, JSON] | None) -> None:
        """`parameters` is the tool's schema; None for a tool that was not offered."""
        self.arguments: dict[str, JSON] = {}
        self._parameters = parameters
        self._opened = False
        self._key = ""
        self._types: Types = None
        self._pieces: list[str] = []
        self._head = ""
        self._flowing = False  # the value is a string whose opening quote is out

    def begin(self, key: str) -> str:
        """A value for `key` begins."""
        self._key = key
        self._types = argument_types(self._parameters, key)
        self._pieces = []
        self._head = ""
        self._flowing = self._types == STRING_ONLY
        return self._open_value() + '"' if self._flowing else ""

    def write(self, text: str) -> str:
        """More text of the value."""
        self._pieces.append(text)
        if self._flowing:
            return _escape(text)
        if self._types is not None and "string" not in self._types:
            return ""
        self._head += text[: MAX_SCALAR + 1 - len(self._head)]
        if could_be_json(self._head, self._types):
            return ""
        self._flowing = True
        return f'{self._open_value()}"{_escape("".join(self._pieces))}'

    def end(self) -> str:
        """The value is complete."""
        text = "".join(self._pieces)
        if self._flowing:
            self.arguments[self._key] = text
            return '"'
        value = convert(text, self._types)
        self.arguments[self._key] = value
        return self._open_value() + to_json(value)

    def cut(self) -> str:
        """The reply ended inside the value: a string keeps what was already sent, anything else is dropped."""
        return self.end() if self._flowing else ""

    def close(self) -> str:
        """No argument follows."""
        return "}" if self._opened else "{}"

    def _open_value(self) -> str:
        separator = ", " if self._opened else "{"
        self._opened = True
        return f"{separator}{to_json(self._key)}: "


def _escape(text: str) -> str:
    return to_json(text)[1:-1]
