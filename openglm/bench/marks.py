"""A measured figure beside what it should be."""

from __future__ import annotations

import msgspec


class Mark(msgspec.Struct, frozen=True):
    """`value` is None where a run did not measure it."""

    name: str
    aim: str
    value: float | None
    holds: bool | None


def mark(name: str, value: float | None, *, at_least: float | None = None, at_most: float | None = None) -> Mark:
    """The mark of a value that has a lower or an upper bound."""
    aim = f">= {at_least:g}" if at_least is not None else f"<= {at_most:g}"
    if value is None:
        return Mark(name, aim, None, None)
    return Mark(name, aim, value, (at_least is None or value >= at_least) and (at_most is None or value <= at_most))
