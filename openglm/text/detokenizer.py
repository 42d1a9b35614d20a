"""Ids to text while they arrive. A character may span several tokens; its bytes wait here until it is whole.

The text of all pushes plus `finish` equals `Tokenizer.decode` of all ids: bytes that never become a character come out as
U+FFFD, at the same places.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from openglm.text.tokenizer import Tokenizer


class IncrementalDetokenizer:
    """One per reply. With `skip_special`, control tokens such as `<|user|>` and `/nothink` are left out; think and tool-call
    tags are not special and always stay."""

    __slots__ = ("_bytes_of", "_held", "_skipped", "_text_of")

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True) -> None:
        self._bytes_of = tokenizer.token_bytes
        self._text_of = tokenizer.token_text
        self._skipped = tokenizer.special_ids if skip_special else frozenset()
        self._held = b""  # the beginning of a character

    def push(self, ids: Sequence[int]) -> str:
        """The whole characters that `ids` complete."""
        if len(ids) == 1 and not self._held and ids[0] not in self._skipped and (whole := self._text_of(ids[0])) is not None:
            return whole
        data = b"".join([self._held, *[self._bytes_of(i) for i in ids if i not in self._skipped]])
        text, num_read = codecs.utf_8_decode(data, "replace", False)
        self._held = data[num_read:]
        return text

    def finish(self) -> str:
        """What is left when no id follows: U+FFFD for an unfinished character, usually nothing."""
        held, self._held = self._held, b""
        return held.decode("utf-8", "replace")
