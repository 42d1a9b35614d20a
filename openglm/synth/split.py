"""Which side of the train / held-out border a word or a number pair lies on.

The border is a property of the item itself (a CRC of its text), not of a list or a seed: a word that is held out can never
reach training by being drawn from another list, and adding words moves nothing that was there before.
"""

from __future__ import annotations

from typing import Literal, TypeVar
from zlib import crc32

Split = Literal["train", "heldout"]
Item = TypeVar("Item")

HELD_OUT_ONE_IN = 6


def split_of(text: str) -> Split:
    """The side on which `text` lies; letter case does not matter."""
    return "heldout" if crc32(text.lower().encode()) % HELD_OUT_ONE_IN == 0 else "train"


def numbers_split(*numbers: int) -> Split:
    """The side of a set of operands; their order does not matter, so that a+b never leaks b+a."""
    return split_of(" ".join(str(number) for number in sorted(numbers)))


def side(items: tuple[Item, ...], split: Split, *, key: int | None = None) -> tuple[Item, ...]:
    """The items (or tuples, judged by their element `key`) that lie on one side."""
    return tuple(item for item in items if split_of(str(item if key is None else item[key])) == split)  # type: ignore[index]
