"""One row, from its first case to its report.

A case is kept on disk as soon as it is measured. A row that is started again with the same code on the same GPU goes on with the cases
that are missing; one that is interrupted, or for which 70 % of its time is over, reports what it has. A case that fails is named with its
reason, and the next one is tried, unless the GPU itself has stopped working.
"""

from __future__ import annotations

import hashlib
import importlib
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple, Protocol, cast

import torch

import openglm
from openglm.bench.gpu.figures import Figure, GpuFigures, Setting, Values, append, read
from openglm.bench.gpu.place import CudaPlace, Place, RehearsalPlace, find_place
from openglm.bench.gpu.plan import Row, find_row, marks_of
from openglm.bench.machine import this_machine
from openglm.errors import OpenGLMError

_MEASURED_CODE = ("ops/triton", "ops/reference", "engine", "model", "bench/gpu")
_DEVICE_LOST = ("illegal memory access", "device-side assert", "unspecified launch failure", "misaligned address", "uncorrectable")


class Case(NamedTuple):
    """Something to measure."""

    name: str
    measure: Callable[[], Values]


class RowModule(Protocol):
    """What a row's module offers."""

    def cases(self, place: Place, known: dict[str, Values]) -> Iterable[Case]:
        """The cases in the order of their worth. `known` holds the figures so far; what cases share is made when one needs it."""
        ...


def measure_row(
    name: str,
    *,
    out: Path,
    rehearse: bool = False,
    minutes: float | None = None,
    progress: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
) -> GpuFigures:
    """Measure what is missing of a row; `minutes` replaces its time budget. Raises `ConfigError` where it cannot run at all."""
    row = find_row(name)
    place = find_place(rehearse=rehearse)
    module = cast("RowModule", importlib.import_module(f"openglm.bench.gpu.{row.module}"))
    return run_cases(row, module, place, _setting(row, place), out=out, limit_s=row.limit_s(minutes), progress=progress, clock=clock)


def run_cases(
    row: Row,
    module: RowModule,
    place: Place,
    setting: Setting,
    *,
    out: Path,
    limit_s: float,
    progress: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
) -> GpuFigures:
    """The loop over cases."""
    store = out / f"{row.name}{'-rehearsal' if place.rehearsal else ''}.jsonl"
    out.mkdir(parents=True, exist_ok=True)
    store.open("ab").close()  # a file that cannot be written is told before anything is measured
    known = read(store, setting)
    began, failures, left = clock(), dict[str, str](), list[str]()
    interrupted = lost = False
    names: list[str] = []
    try:
        for case in module.cases(place, known):
            names.append(case.name)
            if case.name in known:
                progress(f"{row.name}: {case.name}: kept from an earlier run")
                continue
            if lost or clock() - began >= limit_s:
                left.append(case.name)
                continue
            progress(f"{row.name}: {case.name}")
            try:
                values = case.measure()
                if not all(math.isfinite(value) for value in values.values()):
                    raise ValueError("a figure is not a finite number")
            except (RuntimeError, ValueError, AssertionError, TypeError, ImportError, OpenGLMError) as error:
                failures[case.name] = f"{type(error).__name__}: {_first_line(error)}"
                progress(f"{row.name}: {case.name} failed: {failures[case.name]}")
                lost = any(words in str(error) for words in _DEVICE_LOST)
                continue
            known[case.name] = values
            append(store, Figure(setting, case.name, values))
    except KeyboardInterrupt:
        interrupted = True
        progress(f"{row.name}: interrupted; what was measured is in {store}")
    cases = {name: known[name] for name in names if name in known}
    note = row.note
    if place.rehearsal:
        note = "A REHEARSAL ON SMALL SHAPES WITHOUT A GPU: THE FIGURES MEAN NOTHING" + (f"; {note}" if note else "")
    return GpuFigures(
        setting=setting,
        clocks=place.clocks(),
        cases=cases,
        failures=failures,
        left=tuple(left),
        interrupted=interrupted,
        seconds=clock() - began,
        marks=marks_of(row, cases, gpu=setting.gpu, rehearsal=setting.rehearsal),
        note=note,
    )


def _setting(row: Row, place: CudaPlace | RehearsalPlace) -> Setting:
    import triton

    return Setting(
        row=row.name,
        gpu=place.gpu,
        memory_gib=round(place.memory_bytes / 2**30, 1),
        triton=triton.__version__,
        source=_digest(Path(openglm.__file__).parent),
        rehearsal=place.rehearsal,
        machine=this_machine(),
    )


def _digest(package: Path) -> str:
    digest = hashlib.sha256()
    for part in _MEASURED_CODE:
        for file in sorted((package / part).rglob("*.py")):
            digest.update(file.relative_to(package).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _first_line(error: BaseException) -> str:
    if isinstance(error, torch.OutOfMemoryError):
        return "the GPU's memory does not hold it"
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else "no message"
