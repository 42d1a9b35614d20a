"""Counts the fields of requests that no dialect reads. They are ignored, as clients expect, but whoever runs the server can see which
ones are asked for. Names come from clients, so their number and length are bounded."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

_MAX_NAMES: Final = 256
_MAX_NAME_CHARS: Final = 64


class IgnoredFields:
    """`total` counts all; `by_name` the first few hundred names that came."""

    def __init__(self) -> None:
        self.total = 0
        self.by_name: dict[str, int] = {}

    def note(self, names: Iterable[str]) -> None:
        """Count fields that a request brought for nothing."""
        for name in names:
            self.total += 1
            known = name if len(name) <= _MAX_NAME_CHARS and name.isascii() and name.isprintable() else "(odd name)"
            if known in self.by_name or len(self.by_name) < _MAX_NAMES:
                self.by_name[known] = self.by_name.get(known, 0) + 1
