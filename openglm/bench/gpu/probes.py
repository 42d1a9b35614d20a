"""What the GPU itself can do: reading, copying, one kernel behind another. Kernels that do nothing else."""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 4096
_BLOCKS_EACH = 16


@triton.jit
def _read_kernel(x, out, count, BLOCK: tl.constexpr, BLOCKS: tl.constexpr):
    start = tl.program_id(0).to(tl.int64) * BLOCK * BLOCKS
    lanes = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.int32)
    for block in range(0, BLOCKS):
        at = start + block * BLOCK + lanes
        total += tl.load(x + at, mask=at < count, other=0)
    tl.store(out + tl.program_id(0), tl.sum(total, 0))


@triton.jit
def _next_kernel(x, EARLY: tl.constexpr):
    """Adds one. EARLY: may start before the kernel ahead of it has ended, and waits for what that one wrote."""
    if EARLY:
        tl.extra.cuda.gdc_wait()
    tl.store(x, tl.load(x) + 1)
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()


def reader(memory: Tensor) -> Callable[[], None]:
    """A call that reads memory (int32) once and writes next to nothing."""
    programs = triton.cdiv(memory.numel(), _BLOCK * _BLOCKS_EACH)
    out = torch.empty(programs, dtype=torch.int32, device=memory.device)

    def read() -> None:
        _read_kernel[(programs,)](memory, out, memory.numel(), BLOCK=_BLOCK, BLOCKS=_BLOCKS_EACH, num_warps=8)

    return read


def chain(length: int, device: torch.device, *, early: bool) -> tuple[Callable[[], None], Tensor]:
    """A call of `length` tiny kernels, each on the result of the one before; and that result [1] int32, which counts them."""
    counter = torch.zeros(1, dtype=torch.int32, device=device)
    settings = {"launch_pdl": True} if early else {}

    def run() -> None:
        for _ in range(length):
            _next_kernel[(1,)](counter, EARLY=early, num_warps=1, **settings)

    return run, counter
