"""What a row has measured, and the file that keeps it while the row runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from openglm.bench.machine import Machine
from openglm.bench.marks import Mark

Values = dict[str, float]
"""Figures of one case by name. Names end in their unit; a row's columns (`plan`) say what each means."""


class Setting(msgspec.Struct, frozen=True):
    """What must be equal for figures to belong to one report."""

    row: str
    gpu: str
    memory_gib: float
    triton: str
    source: str
    """Digest of the code that was measured: figures of other kernels are not taken for these."""
    rehearsal: bool
    machine: Machine


class Figure(msgspec.Struct, frozen=True):
    """One case of a row."""

    setting: Setting
    case: str
    values: Values


class GpuFigures(msgspec.Struct, frozen=True):
    """The report of a row."""

    setting: Setting
    clocks: str
    """What the driver says of clocks and power while the row runs; nothing of them is changed."""
    cases: dict[str, Values]
    failures: dict[str, str]
    """Cases that failed or do not fit, and why."""
    left: tuple[str, ...]
    """Cases for which there was no time."""
    interrupted: bool
    seconds: float
    marks: tuple[Mark, ...]
    note: str


def read(store: Path, setting: Setting) -> dict[str, Values]:
    """Figures of earlier runs with this setting, by case. A line that was cut off is passed over."""
    return {figure.case: figure.values for figure in _lines(store) if figure.setting == setting}


def append(store: Path, figure: Figure) -> None:
    """Keep a figure; it is on disk when this returns."""
    whole = not store.exists() or store.stat().st_size == 0 or store.read_bytes().endswith(b"\n")
    with store.open("ab") as file:
        file.write((b"" if whole else b"\n") + msgspec.json.encode(figure) + b"\n")


def _lines(store: Path) -> Iterator[Figure]:
    if not store.exists():
        return
    for line in store.read_bytes().splitlines():
        try:
            yield msgspec.json.decode(line, type=Figure)
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
