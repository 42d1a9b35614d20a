"""Loading a model straight into the weights of its kernels, on the CPU or on a device, for models that fill most of the memory.

No matrix ever exists unpacked: each is cut into blocks of rows of about two megabytes, and several threads read a block, round it and store
it where it stays (in panel order for `ops.cpu`, in plain rows on a device), in the order in which the blocks lie in the files. So the peak
is the packed weights plus a few blocks per thread. Everything else of a model - embedding, norms, biases, routers - goes into its
parameters.

FP8 checkpoints keep their codes: the bytes of a weight are moved, not computed. What is checked before anything is read is the same as
in `load_model`.
"""

from __future__ import annotations

import math
import threading
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor

from openglm.checkpoint.load import Piece, Progress, check_checkpoint, in_file_order, read_piece
from openglm.checkpoint.reader import DTYPES, Reader, StoredTensor
from openglm.model import GlmModel
from openglm.model.device_weights import Target
from openglm.model.transformer import packed_format
from openglm.ops import PackedLinear, WeightFormat

BLOCK_BYTES = 2 * 2**20
_PANEL = 16  # rows that share cache lines in a packed weight


@dataclass(frozen=True)
class Block:
    """Rows [first, last) of a stored matrix, which become rows of one packed weight from `at` on."""

    stored: StoredTensor
    scale: StoredTensor | None
    first: int
    last: int
    target: Target
    at: int

    @property
    def num_bytes(self) -> int:
        """Bytes on disk."""
        return self.stored.num_bytes // self.stored.shape[0] * (self.last - self.first)


def load_packed_model(
    directory: str | Path,
    *,
    dtype: torch.dtype | None = None,
    to: WeightFormat | None = None,
    only_drafts: bool = False,
    device: torch.device | str = "cpu",
    host_experts: Sequence[int] | None = None,
    allow_missing_mtp: bool = False,
    threads: int = 1,
    progress: Progress | None = None,
) -> GlmModel:
    """The packed model in `directory`; it computes in `dtype` (default: the dtype its config names), which fp32 or bf16 must be.

    `to` rounds the layers' matrices, and for the CPU kernels `only_drafts` those of the MTP layer (see `GlmModel.pack`); None keeps e4m3
    codes where a matrix has them throughout, and else bf16, or fp32 where bf16 would lose bits; on a device, it is the model's `dtype`,
    which may be fp16 there, and linear layers round many rows at once if the checkpoint asks for that (`ops.triton.linear`).
    `host_experts` says how many experts of each KV layer stay in host memory, for the CPU kernels; it may be given for a device, and asks
    for the device kernels by itself. `progress` is called in the caller's thread. Raises what `load_model` raises.
    """
    checkpoint = check_checkpoint(directory, allow_missing_mtp=allow_missing_mtp)
    config = checkpoint.config
    wanted = dtype or getattr(torch, config.dtype)
    device = torch.device(device)
    model = GlmModel(config, device=device, dtype=wanted, matrices_later=True)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    by_parameter: dict[str, list[Piece]] = {}
    for piece in checkpoint.pieces:
        by_parameter.setdefault(piece.entry.parameter, []).append(piece)
    on_device = None
    if device.type != "cpu" or host_experts is not None:
        on_device = model.on_device(host_experts=host_experts, quantize_activations=to is None and checkpoint.rounds_activations)
    only_drafts = only_drafts and on_device is None
    opened = (on_device or model).open_packed(lambda name: _format(name, by_parameter[name], to, only_drafts=only_drafts))
    parameters = dict(model.named_parameters()) | dict(model.named_buffers())
    blocks: list[Block] = []
    others: list[Piece] = []
    for piece in in_file_order(checkpoint.pieces):
        name = piece.entry.parameter
        if name in opened:
            blocks += _blocks(piece, opened[name], rows_per_expert=shapes[name][-2])
        else:
            others.append(piece)
    done, total = 0, checkpoint.num_bytes
    with Reader() as reader:
        for piece in others:
            done += read_piece(reader, piece, parameters[piece.entry.parameter])
            if progress is not None:
                progress(done, total)
        lossy: dict[int, PackedLinear] = {}
        for block, fits in _fill(reader, blocks, wanted, threads, pinned=device.type == "cuda"):
            done += block.num_bytes
            if not fits and isinstance(block.target, PackedLinear):
                lossy[id(block.target)] = block.target
            if progress is not None:
                progress(done, total)
        for target in lossy.values():
            target.restart("float32")
        for _ in _fill(reader, [block for block in blocks if id(block.target) in lossy], wanted, threads, pinned=False):
            pass
    if on_device is None:
        return model.pack(to, only_drafts=only_drafts)
    on_device.close()
    return model


def _format(parameter: str, pieces: Sequence[Piece], to: WeightFormat | None, *, only_drafts: bool) -> WeightFormat:
    """The format in which a matrix is begun."""
    rounded = packed_format(parameter, to, only_drafts=only_drafts)
    if rounded is not None:
        return rounded
    return "fp8" if all(piece.scale is not None for piece in pieces) else "bfloat16"


def _blocks(piece: Piece, targets: Sequence[Target], rows_per_expert: int) -> Iterator[Block]:
    """Cut a stored tensor where packed weights begin, and into pieces of a few megabytes."""
    entry = piece.entry
    width = piece.stored.shape[-1]
    num_rows = math.prod(piece.stored.shape[:-1])
    stored = replace(piece.stored, shape=(num_rows, width))  # also where one tensor holds all experts
    offset = (entry.expert or 0) * rows_per_expert + (entry.rows[0] if entry.rows is not None else 0)
    starts = list(accumulate((target.out_features for target in targets), initial=0))
    step = max(_PANEL, BLOCK_BYTES * num_rows // stored.num_bytes // _PANEL * _PANEL)
    first = 0
    while first < num_rows:
        which = bisect_right(starts, offset + first) - 1
        at = offset + first - starts[which]
        last = min(num_rows, first + step, first + targets[which].out_features - at)
        yield Block(stored, piece.scale, first, last, targets[which], at)
        first = last


def _fill(reader: Reader, blocks: Sequence[Block], dtype: torch.dtype, threads: int, *, pinned: bool) -> Iterator[tuple[Block, bool]]:
    """Fill all blocks on several threads; yields each with whether its format could hold it."""
    waiting: dict[Future[bool], Block] = {}
    scratch = _Scratch(pinned)
    with ThreadPoolExecutor(max(1, threads)) as pool:
        try:
            for block in blocks:
                waiting[pool.submit(_fill_one, reader, block, dtype, scratch)] = block
                if len(waiting) >= 4 * threads:
                    yield from _finished(waiting)
            while waiting:
                yield from _finished(waiting)
        finally:
            for future in waiting:
                future.cancel()


def _finished(waiting: dict[Future[bool], Block]) -> Iterator[tuple[Block, bool]]:
    for future in wait(waiting, return_when=FIRST_COMPLETED).done:
        yield waiting.pop(future), future.result()


class _Scratch(threading.local):
    """Memory of one thread for the block it is at: what is allocated anew for every block, the allocator keeps."""

    def __init__(self, pinned: bool) -> None:
        """`pinned`: page-locked, which copies to a device faster. Called in every thread that uses it."""
        self.pinned = pinned
        self.memory = torch.empty(0, dtype=torch.uint8)

    def tensor(self, rows: int, width: int, dtype: torch.dtype) -> Tensor:
        """An uninitialised matrix [rows, width], until the next call."""
        num_bytes = rows * width * dtype.itemsize
        if len(self.memory) < num_bytes:
            self.memory = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=self.pinned)
        return self.memory[:num_bytes].view(dtype).view(rows, width)


def _fill_one(reader: Reader, block: Block, dtype: torch.dtype, scratch: _Scratch) -> bool:
    stored, rows, target = block.stored, slice(block.first, block.last), block.target
    shape = block.last - block.first, stored.shape[1]
    scale = None if block.scale is None else reader.read(block.scale, rows).float().flatten()
    if scale is not None and target.format == "fp8":
        codes = scratch.tensor(*shape, DTYPES[stored.dtype])
        reader.read_into(stored, codes, rows)
        return target.fill(block.at, codes, scale)
    values = scratch.tensor(*shape, dtype)
    reader.read_into(stored, values, rows, scale=None if scale is None else scale.unsqueeze(1))
    return target.fill(block.at, values)
