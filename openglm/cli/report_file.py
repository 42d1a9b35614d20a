"""Options that name a file for a report: a path that cannot be written is told before the work, not after it."""

from __future__ import annotations

from pathlib import Path

import typer


def writable(path: Path | None) -> Path | None:
    """Callback of such an option."""
    if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
        raise typer.BadParameter(f"{path}: a file cannot be written there; its folder must exist")
    return path
