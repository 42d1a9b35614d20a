"""Which tile a product runs with: measured once per device, kernel and shape, then read from a file.

    first call of a kernel at a shape:  known in this process -> in the file -> measured now and written -> the first candidate

Candidates are listed best guess first and cut down to those that fit the device's shared memory. Nothing is measured in the interpreter
or while a CUDA graph is captured; the best guess is taken then, and kept, so that one process never changes its mind. A file that is
missing, damaged, of another machine or not writable costs a measurement and nothing else.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import tempfile
import threading
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import torch
import triton

from openglm import env
from openglm.ops.triton.device import INTERPRETED, DeviceLimits, limits

_MOST_BYTES = 1 << 20  # of a file that is read; an entry has some 150
_ROUNDS = 20
_log = logging.getLogger(__name__)

Measure = Callable[[Callable[[], object]], float]
"""Seconds, or any unit, that a call takes on the device."""


class Tile(NamedTuple):
    """A block of a product, and how it is compiled. All zeros stand for the library's product."""

    rows: int
    columns: int
    inner: int
    num_warps: int
    num_stages: int
    swapped: bool = False
    """Whether outputs, not rows, are the first dimension of the matrix instruction, which on Hopper is 64 at least."""

    def options(self, device: DeviceLimits) -> dict[str, int]:
        """How its kernel is launched; AMD's pipelines have two stages at most."""
        return {"num_warps": self.num_warps, "num_stages": min(self.num_stages, 2) if device.is_hip else self.num_stages}


LIBRARY = Tile(0, 0, 0, 0, 0)


def fitting(tiles: Sequence[Tile], device: DeviceLimits, given_bytes: int, stored_bytes: int) -> list[Tile]:
    """Those whose pipeline of both operands, of so many bytes an element, fits a program's shared memory; at least the smallest."""

    def size(tile: Tile) -> int:
        return tile.options(device)["num_stages"] * tile.inner * (tile.rows * given_bytes + tile.columns * stored_bytes)

    return [tile for tile in tiles if size(tile) <= device.shared_bytes] or [min(tiles, key=size)]


class Tuner:
    """The choices for one device. Safe for several threads."""

    def __init__(self, device: DeviceLimits, file: Path | None, measure: Measure | None) -> None:
        """Without `measure` the first candidate is taken; without `file` nothing is kept for the next process."""
        self._prefix = f"{device.name} | triton {triton.__version__} | torch {torch.__version__}"
        self._file, self._measure = file, measure
        self._chosen: dict[str, Tile] = {}
        self._lock = threading.Lock()

    def choose(self, kernel: str, shape: Sequence[object], candidates: Sequence[Tile], run: Callable[[Tile], object]) -> Tile:
        """The fastest of `candidates` for `kernel` at `shape`; `run` launches it once with a tile, and may fail for some."""
        key = f"{self._prefix} | {kernel} | {' '.join(map(str, shape))}"
        found = self._chosen.get(key)
        if found is not None:
            return found
        with self._lock:
            found = self._chosen.get(key) or self._decide(key, candidates, run)
            self._chosen[key] = found
            return found

    def _decide(self, key: str, candidates: Sequence[Tile], run: Callable[[Tile], object]) -> Tile:
        if self._measure is None or len(candidates) == 1:
            return candidates[0]
        kept = read(self._file).get(key)
        for tile in candidates:
            if kept == list(tile):
                return tile
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            return candidates[0]
        times: dict[Tile, float] = {}
        for tile in candidates:
            # Too much shared memory, an instruction the device lacks, no memory left for the library's workspace: not a candidate here.
            with contextlib.suppress(RuntimeError, ValueError, triton.TritonError):
                times[tile] = self._measure(partial(run, tile))
        if not times:
            return candidates[0]  # and its error is told by the launch that follows
        best = min(times, key=times.__getitem__)
        write(self._file, key, best)
        _log.debug("tile %s for %s", tuple(best), key)
        return best


def read(file: Path | None) -> dict[str, object]:
    """What a file of choices holds; empty if there is none or it is damaged."""
    if file is None:
        return {}
    try:
        with file.open("rb") as source:
            text = source.read(_MOST_BYTES + 1)
        held = json.loads(text) if len(text) <= _MOST_BYTES else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return held if isinstance(held, dict) else {}


def write(file: Path | None, key: str, tile: Tile) -> None:
    """Add a choice. Readers see the old file or the new one; of two writers at once one may lose its entry, which is measured again."""
    if file is None:
        return
    text = json.dumps({**read(file), key: list(tile)}, indent=0)
    if len(text) > _MOST_BYTES:
        text = json.dumps({key: list(tile)}, indent=0)
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as target:
                target.write(text)
            Path(name).replace(file)
        except OSError:
            Path(name).unlink(missing_ok=True)
            raise


@cache
def tuner(device: torch.device) -> Tuner:
    """The tuner of a device; it measures only on a GPU."""
    folder = env.cache_folder()
    file = None if folder is None else folder / "tiles.json"
    return Tuner(limits(device), file, partial(_seconds, device) if device.type == "cuda" and not INTERPRETED else None)


def _seconds(device: torch.device, call: Callable[[], object]) -> float:
    """The median time of `call` on the current stream, each run behind a sweep over twice the L2 cache, as a layer finds it."""
    call()  # compiles, and finds out what does not fit
    sweep = torch.empty(2 * torch.cuda.get_device_properties(device).L2_cache_size, dtype=torch.uint8, device=device)
    times = []
    for _ in range(_ROUNDS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        sweep.zero_()
        begin.record()
        call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return float(sorted(times)[_ROUNDS // 2] / 1000)
