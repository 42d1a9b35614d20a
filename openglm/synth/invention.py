"""Words that no list holds, so that copying is learned instead of a vocabulary.

A byte-level BPE leaves tokens that occur in training only inside longer tokens; a held-out word that is cut into such a token would
meet an embedding that was never trained. Training words are therefore also glued together from pieces of other words, and from all
common Han characters; the held-out side keeps to pronounceable syllables.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache

from openglm.synth.lexicon import VERBS, WORDS
from openglm.synth.split import Split, split_of

_GLUED_SHARE = 0.6


class PieceRandom(random.Random):
    """A random source that brings the pieces (a tokenizer's letter tokens) of which training words are glued.

    With it every token is met by itself and copied hundreds of times, however rare it is in the words of the lists.
    """

    def __init__(self, seed: str, pieces: Sequence[str]) -> None:
        super().__init__(seed)
        self.pieces = tuple(pieces)


def invented_word(rng: random.Random, split: Split) -> str:
    """A made-up word in Latin letters, on its side of the border."""
    while True:
        word = _glued(rng) if split == "train" and rng.random() < _GLUED_SHARE else _spoken(rng)
        if split_of(word) == split:
            return word


def invented_label(rng: random.Random, split: Split) -> str:
    """The name of a parameter or field: an invented word; in training at times two, so that pieces behind a `_` are met too."""
    word = invented_word(rng, split)
    return f"{word} {invented_word(rng, split)}" if split == "train" and rng.random() < 0.3 else word


def invented_han(rng: random.Random) -> str:
    """Two or three Han characters, each from training words or from all common ones; for the training side only."""
    while True:
        word = "".join(rng.choice(_known_han() if rng.random() < 0.4 else _common_han()) for _ in range(rng.choice((2, 2, 3))))
        if split_of(word) == "train":
            return word


def _spoken(rng: random.Random) -> str:
    """Two or three syllables."""
    syllables = (rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(rng.choice((2, 2, 3))))
    return "".join(syllables) + rng.choice(_CODAS)


def _glued(rng: random.Random) -> str:
    """A piece of one word and of another."""
    parts = []
    for _ in range(rng.choice((2, 2, 3))):
        if isinstance(rng, PieceRandom) and rng.random() < 0.8:
            parts.append(rng.choice(rng.pieces))
            continue
        word, length = rng.choice(_known_words()), rng.randrange(2, 7)
        start = rng.randrange(max(1, len(word) - length + 1))
        parts.append(word[start : start + length])
    return "".join(parts)


@cache
def _known_words() -> tuple[str, ...]:
    words = WORDS["train"]
    english = [*(n.en for n in words.nouns), *(label[0] for label in words.labels), *(v.en for v in VERBS), *words.plain]
    english += [*(city[0] for city in words.cities), *words.people, *_TEMPLATE_WORDS, *_CATALOGUE_WORDS]
    return tuple(sorted({part.lower() for phrase in english for part in phrase.split() if len(part) > 2}))


@cache
def _known_han() -> str:
    words = WORDS["train"]
    chinese = [*(n.zh for n in words.nouns), *words.plain_zh, *words.people_zh, *(city[1] for city in words.cities)]
    return "".join(sorted({character for word in chinese for character in word if character > "\u2e80"}))


@cache
def _common_han() -> str:
    """The 3,755 characters of GB 2312, level 1: rows 16 to 55 of the code table."""
    rows = (bytes((0xA0 + row, 0xA0 + cell)) for row in range(16, 56) for cell in range(1, 95))
    return b"".join(rows).decode("gb2312", "ignore")


# Words of the prompt itself: their pieces are tokens too.
_TEMPLATE_WORDS = tuple(
    """
functions parameters properties description required additional arguments signatures provided following format object string
integer number boolean array enum items query assist within output
""".split()
)
# Words of catalogue and answers that no list holds: else each would be a token that is only ever met in one place.
_CATALOGUE_WORDS = tuple(
    """
body value subject title recipient address symbol ticker expression expr input current lookup timezone search query results result translate
translation translator content target mail status stock quote change remind reminder create task alarm currency converter source flight
arrival departure play music song light room read file path filename list directory execute shell command output random minimum maximum
number news latest topic weather temperature condition humidity wind send error found invalid missing unknown permission denied timeout
""".split()
)
_ONSETS = (*"bdfghjklmnprstvwz", "bl", "br", "cr", "dr", "fl", "gr", "kl", "pl", "pr", "sh", "st", "th", "tr", "qu", "zh")
_VOWELS = ("a", "e", "i", "o", "u", "a", "e", "i", "o", "u", "ai", "ea", "oo", "ou")
_CODAS = ("", "", "", "n", "r", "l", "x", "t", "k", "m", "p", "sk", "nd")
