"""Words that must not be generated, as the token sequences the engine bans. Owns vLLM's rule and nothing else.

A word is written one way at the start of a text and another after a space. Both are banned, the second only where the space merely
changes the first token: otherwise the space would be a token of its own, and what follows it is the first way.
"""

from __future__ import annotations

from collections.abc import Iterable

from openglm.text.tokenizer import Tokenizer


def bad_word_ids(words: Iterable[str], tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
    """Token sequences of all words, each once; for `SamplingParams.bad_words`."""
    sequences: dict[tuple[int, ...], None] = {}
    for word in words:
        plain = tuple(tokenizer.encode_text(word.lstrip()))
        spaced = tuple(tokenizer.encode_text(" " + word.lstrip()))
        if plain:
            sequences[plain] = None
            if spaced[0] != plain[0] and len(spaced) == len(plain):
                sequences[spaced] = None
    return tuple(sequences)
