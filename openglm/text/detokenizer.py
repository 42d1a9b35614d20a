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

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, ids: Sequence[int]) -> str:
        """The whole characters that `ids` complete."""
        tokenizer = self._tokenizer
        kept = (i for i in ids if not (self._skip_special and tokenizer.is_special(i)))
        return self._decoder.decode(b"".join(map(tokenizer.token_bytes, kept)))

    def finish(self) -> str:
        """What is left when no id follows: U+FFFD for an unfinished character, usually nothing."""
        return self._decoder.decode(b"", final=True)
