"""Where the kernels of this package run, and what that place allows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import triton

INTERPRETED = bool(triton.knobs.runtime.interpret)
"""Whether Triton's interpreter runs them on the CPU. Its `tl.dot` is wrong in bf16, so products are in fp32 there, and it cuts fp32 off
where a GPU rounds to the nearest bf16."""


@dataclass(frozen=True)
class DeviceLimits:
    """What tile configurations depend on."""

    name: str
    """As the driver tells it; measurements are kept under it."""
    num_sms: int
    """Multiprocessors, or compute units."""
    shared_bytes: int
    """Shared memory that one program may take."""
    capability: tuple[int, int]
    """Of NVIDIA hardware; (0, 0) elsewhere."""
    is_hip: bool
    """Whether it is AMD's."""
    fp8_dot: bool
    """Whether it multiplies and converts e4m3 in the OCP format, which is that of checkpoints (gfx942 has another)."""

    @property
    def is_cuda(self) -> bool:
        """Whether it is NVIDIA's."""
        return self.capability != (0, 0)


_NOT_A_GPU = DeviceLimits("interpreter", num_sms=132, shared_bytes=227 * 1024, capability=(0, 0), is_hip=False, fp8_dot=False)
"""The size of an H100, so that the interpreter cuts K as the target does, and none of its instructions."""


@cache
def limits(device: torch.device) -> DeviceLimits:
    """The limits of a GPU; for another device those that the interpreter is given."""
    if device.type != "cuda":
        return _NOT_A_GPU
    found = torch.cuda.get_device_properties(device)
    index = torch.cuda.current_device() if device.index is None else device.index
    shared = triton.runtime.driver.active.utils.get_device_properties(index)["max_shared_mem"]  # what its launcher compares with
    if torch.version.hip is not None:
        ocp = found.gcnArchName.split(":")[0] in {"gfx950", "gfx1200", "gfx1201"}
        return DeviceLimits(found.name, found.multi_processor_count, shared, (0, 0), is_hip=True, fp8_dot=ocp)
    capability = (found.major, found.minor)
    return DeviceLimits(found.name, found.multi_processor_count, shared, capability, is_hip=False, fp8_dot=capability >= (8, 9))
