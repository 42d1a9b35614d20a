"""Collects every mismatch of a checkpoint so that the user sees them all at once, in one error of readable length."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from openglm.errors import CheckpointError

MAX_LINES = 24


class Mismatches:
    """Mismatches found so far, each under a kind ("missing tensor", "wrong shape", ...) that is counted in the summary."""

    def __init__(self) -> None:
        self._lines: list[tuple[str, str]] = []

    def __len__(self) -> int:
        return len(self._lines)

    def add(self, kind: str, line: str) -> None:
        """Note one mismatch; `line` names the file or tensor, what was expected and what is there."""
        self._lines.append((kind, line))

    def raise_if_any(self, where: Path) -> None:
        """Raise one `CheckpointError` that lists the mismatches, at most `MAX_LINES` of them, and counts all kinds."""
        if not self._lines:
            return
        counts = Counter(kind for kind, _ in self._lines)
        summary = ", ".join(f"{number} x {kind}" for kind, number in counts.most_common())
        lines = [f"  {kind}: {line}" for kind, line in self._lines[:MAX_LINES]]
        if len(self._lines) > MAX_LINES:
            lines.append(f"  ... and {len(self._lines) - MAX_LINES} more")
        raise CheckpointError("\n".join([f"{where}: the checkpoint cannot be loaded ({summary})", *lines]))
