"""Weights as they lie on the disk: forgotten by the system before an engine loads them, and how fast the disk alone gives them."""

from __future__ import annotations

import contextlib
import mmap
import os
import time
from pathlib import Path

_SAMPLE_BYTES = 1 << 30
_BLOCK_BYTES = 1 << 24


def weight_files(model: Path) -> list[Path]:
    """The file, or the safetensors files of a directory."""
    return sorted(model.glob("*.safetensors")) if model.is_dir() else [model]


def forget(files: list[Path]) -> int:
    """Have the system drop what it keeps of these files in memory, so that they are read anew. Returns their size in bytes."""
    size = 0
    for path in files:
        with path.open("rb") as file:
            size += os.fstat(file.fileno()).st_size
            if hasattr(os, "posix_fadvise"):  # not on every system
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return size


def disk_bytes_per_second(path: Path) -> float | None:
    """Reading up to a GiB from the middle of a file past the system's cache; None where the file system has no such way."""
    with contextlib.suppress(OSError):
        return _read(path) if hasattr(os, "O_DIRECT") else None
    return None


def _read(path: Path) -> float | None:
    file = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        size = os.fstat(file).st_size // _BLOCK_BYTES * _BLOCK_BYTES
        length = min(size, _SAMPLE_BYTES)
        first = (size - length) // 2 // _BLOCK_BYTES * _BLOCK_BYTES
        done = 0
        with mmap.mmap(-1, _BLOCK_BYTES) as block:  # direct reads need memory on a page border
            started = time.perf_counter()
            while done < length:
                count = os.preadv(file, [block], first + done)
                if not count:
                    break
                done += count
            seconds = time.perf_counter() - started
    finally:
        os.close(file)
    return done / seconds if done else None
