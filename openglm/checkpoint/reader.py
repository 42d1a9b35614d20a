"""Safetensors files: headers that are checked before anything is believed, bytes that are read into memory we own.

A file is an 8-byte little-endian header length, a JSON header {name: {dtype, shape, data_offsets}}, and the data. The header comes from
whoever made the file, so every number in it is checked against the size of the file before memory is reserved for it: the ranges must
tile the data section exactly, each as long as its dtype and shape demand. Two readers that disagree about one file are how truncated
checkpoints get served, therefore nothing here is lenient.

Data is copied with `preadv` straight into the destination. A memory map would be shorter, and would turn a file that is truncated or
replaced while the model serves into a crash (SIGBUS) or silently changed weights.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import stat
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openglm.errors import CheckpointError

MAX_HEADER_BYTES = 16 * 2**20
MAX_TENSORS = 200_000
MAX_DIMS = 8
CHUNK_BYTES = 16 * 2**20  # staging buffer where a tensor is converted or moved to another device on its way in

DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "F32": torch.float32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
}
DTYPE_NAMES: dict[torch.dtype, str] = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where one tensor lies. `offset` counts from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    num_bytes: int


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of the file; anything that is not a complete, well-formed safetensors file raises `CheckpointError`."""
    try:
        with _open(path) as descriptor:
            size = os.fstat(descriptor).st_size
            start = os.pread(descriptor, 8, 0)
            if len(start) < 8:
                raise CheckpointError(f"{path}: {size} bytes is too short for a safetensors file (expected at least 8)")
            if start == b"version ":
                raise CheckpointError(f"{path}: this is a git-lfs pointer of {size} bytes, not the file itself; run `git lfs pull`")
            length = int.from_bytes(start, "little")
            if length > MAX_HEADER_BYTES:
                raise CheckpointError(f"{path}: header of {length} bytes (expected at most {MAX_HEADER_BYTES}); not a safetensors file?")
            if 8 + length > size:
                raise CheckpointError(f"{path}: truncated: expected at least {8 + length} bytes for the header, file has {size} bytes")
            text = os.pread(descriptor, length, 8)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from None
    return _parse_header(path, text, size)


class Reader:
    """Reads stored tensors; keeps each file open until `close` (or the end of a `with` block). Several threads may read at once."""

    def __init__(self) -> None:
        self._opening = threading.Lock()
        self._files: contextlib.ExitStack = contextlib.ExitStack()
        self._descriptors: dict[Path, int] = {}

    def __enter__(self) -> Reader:
        """Return the reader itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close every file."""
        self.close()

    def close(self) -> None:
        """Close every file; the reader may be used again and reopens them."""
        self._descriptors.clear()
        self._files.close()

    def read(self, stored: StoredTensor, rows: slice | None = None) -> Tensor:
        """The tensor, or the rows `rows` (step 1) of its first dim, in its stored dtype, in CPU memory of its own."""
        first, last = _row_range(stored, rows)
        out = torch.empty((last - first, *stored.shape[1:]) if stored.shape else (), dtype=DTYPES[stored.dtype])
        self.read_into(stored, out, rows)
        return out

    def read_into(self, stored: StoredTensor, out: Tensor, rows: slice | None = None, *, scale: Tensor | None = None) -> None:
        """Fill the contiguous tensor `out` with the stored values (or the rows `rows` of them), cast to its dtype, on its device.

        With `scale` [rows, 1] (fp32) each row is multiplied by its scale in fp32 before the cast: how FP8 weights become ordinary ones.
        Memory beyond `out` is bounded by a few staging chunks.
        """
        first, last = _row_range(stored, rows)
        row_shape = stored.shape[1:]
        wanted = (last - first, *row_shape) if stored.shape else ()
        assert tuple(out.shape) == wanted, f"{stored.name}: destination {tuple(out.shape)}, stored {wanted}"
        assert out.is_contiguous(), f"{stored.name}: the destination must be contiguous"
        dtype = DTYPES[stored.dtype]
        row_bytes = math.prod(row_shape) * dtype.itemsize
        begin = stored.offset + first * row_bytes
        if out.device.type == "cpu" and out.dtype == dtype and scale is None:
            self._fill(stored, out.detach(), begin)
            return
        destination = out.detach().view(-1, math.prod(row_shape)) if scale is not None else out.detach().view(-1, 1)
        num_rows, width = destination.shape
        step = max(1, CHUNK_BYTES // max(1, width * dtype.itemsize))
        for row in range(0, num_rows, step):
            chunk = torch.empty((min(step, num_rows - row), width), dtype=dtype)
            self._fill(stored, chunk, begin + row * width * dtype.itemsize)
            if scale is not None:
                chunk = chunk.float().mul_(scale[row : row + step])
            destination[row : row + step].copy_(chunk)

    def _fill(self, stored: StoredTensor, out: Tensor, offset: int) -> None:
        if out.numel() == 0:
            return
        view = out.view(-1).view(torch.uint8).numpy().data
        done = 0
        while done < len(view):
            try:
                count = os.preadv(self._descriptor(stored.file), [view[done:]], offset + done)
            except OSError as error:
                raise CheckpointError(f"{stored.file}: cannot be read: {error.strerror or error}") from None
            if count == 0:
                raise CheckpointError(f"{stored.file}: ends at {offset + done} bytes inside {stored.name}; was it replaced while loading?")
            done += count

    def _descriptor(self, path: Path) -> int:
        with self._opening:
            if path not in self._descriptors:
                self._descriptors[path] = self._files.enter_context(_open(path))
            return self._descriptors[path]


@contextlib.contextmanager
def _open(path: Path) -> Iterator[int]:
    """A descriptor of a regular file; `O_NONBLOCK` keeps a pipe of that name from blocking the open."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise CheckpointError(f"{path}: not a regular file")
        yield descriptor
    finally:
        os.close(descriptor)


def _row_range(stored: StoredTensor, rows: slice | None) -> tuple[int, int]:
    if rows is None:
        return 0, stored.shape[0] if stored.shape else 1
    first, last, step = rows.indices(stored.shape[0])
    assert step == 1, "rows are read without gaps"
    return first, max(first, last)


def _parse_header(path: Path, text: bytes, size: int) -> dict[str, StoredTensor]:
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_refuse_duplicates, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: header is not valid JSON: {error!s:.120}") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: header is {type(header).__name__}, expected an object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{path}: __metadata__ must map strings to strings")
    if len(header) > MAX_TENSORS:
        raise CheckpointError(f"{path}: {len(header)} tensors (expected at most {MAX_TENSORS})")
    data_start = 8 + len(text)
    found = sorted((_parse_entry(path, name, entry, data_start) for name, entry in header.items()), key=lambda t: (t.offset, t.num_bytes))
    end = data_start
    for tensor in found:
        if tensor.offset != end:
            kind = "overlaps the one before" if tensor.offset < end else "leaves a gap before it"
            raise CheckpointError(f"{path}: {tensor.name!r:.200} {kind}: expected its data at byte {end}, header says {tensor.offset}")
        end += tensor.num_bytes
    if end != size:
        kind = "truncated" if size < end else "has trailing bytes"
        raise CheckpointError(f"{path}: {kind}: expected {end} bytes, file has {size} bytes")
    return {tensor.name: tensor for tensor in found}


def _parse_entry(path: Path, name: str, entry: Any, data_start: int) -> StoredTensor:
    where = f"{path}: tensor {name!r:.200}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{where}: expected exactly the keys dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CheckpointError(f"{where}: unknown dtype {dtype!r:.40} (known: {', '.join(DTYPES)})")
    if not _are_sizes(shape) or len(shape) > MAX_DIMS:
        raise CheckpointError(f"{where}: shape must be a list of at most {MAX_DIMS} sizes, got {shape!r:.60}")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(f"{where}: data_offsets must be [begin, end], got {offsets!r:.60}")
    expected = math.prod(shape) * DTYPES[dtype].itemsize
    if offsets[1] - offsets[0] != expected:
        raise CheckpointError(f"{where}: {dtype} {shape} needs {expected} bytes, data_offsets give {offsets[1] - offsets[0]}")
    return StoredTensor(name, dtype, tuple(shape), path, data_start + offsets[0], expected)


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        [(twice, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the name {twice!r:.80} appears twice")
    return result


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")
