"""Writing safetensors files: the same tensors always give the same bytes, and memory stays at one chunk beyond the tensors.

Wider dtypes come first, so that every tensor starts at a multiple of its item size; otherwise the order is the caller's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from openglm.checkpoint.reader import CHUNK_BYTES, DTYPE_NAMES


class OutgoingTensor(NamedTuple):
    """A tensor on any device and the dtype in which it is to be stored."""

    name: str
    tensor: Tensor
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """Bytes on disk."""
        return self.tensor.numel() * self.dtype.itemsize


def write_safetensors(path: Path, tensors: Sequence[OutgoingTensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write one file and flush it to the disk. `OSError` (disk full, say) leaves a partial file for the caller to remove."""
    ordered = sorted(tensors, key=lambda outgoing: -outgoing.dtype.itemsize)
    header: dict[str, object] = {"__metadata__": dict(sorted((metadata or {}).items()))} if metadata else {}
    end = 0
    for outgoing in ordered:
        assert outgoing.name not in header, f"{outgoing.name} is to be written twice"
        begin, end = end, end + outgoing.num_bytes
        header[outgoing.name] = {
            "dtype": DTYPE_NAMES[outgoing.dtype],
            "shape": list(outgoing.tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for outgoing in ordered:
            for chunk in _chunks(outgoing):
                file.write(chunk.view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())


def _chunks(outgoing: OutgoingTensor) -> Iterator[Tensor]:
    """The tensor's values in order as flat CPU tensors in the stored dtype."""
    flat = outgoing.tensor.detach().contiguous().view(-1)
    size = max(1, CHUNK_BYTES // max(flat.dtype.itemsize, outgoing.dtype.itemsize))
    for start in range(0, flat.numel(), size):
        yield flat[start : start + size].to(device="cpu", dtype=outgoing.dtype)
