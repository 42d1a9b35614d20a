"""Where a row runs: a GPU, or for a rehearsal the CPU with Triton's interpreter.

`find_place` refuses with one line where a row cannot be measured. What needs CUDA - graphs, events, the profiler - is behind `Place`, so
that a rehearsal takes the same way through a row: there graphs are calls made again, and clocks are the host's.
"""

from __future__ import annotations

import importlib.util
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from openglm import env
from openglm.engine.graphs import CudaGraphs, GraphDevice
from openglm.errors import ConfigError
from openglm.ops.copies import Readback, read_back

_FEWEST, _MOST = 5, 200  # replays behind a median
_CLOCKS = "clocks.sm,clocks.max.sm,clocks.mem,clocks.max.mem,power.limit,driver_version"


class Place(Protocol):
    """What rows need of the machine they run on."""

    device: torch.device
    gpu: str
    rehearsal: bool
    starts_early: bool
    """Whether a kernel can start before the one ahead of it has ended: NVIDIA from sm_90 on."""
    graphs: GraphDevice

    def seconds(self, run: Callable[[], object], *, captured: bool = True, at_most_s: float = 0.5) -> float:
        """Median seconds of `run` on the device: captured in a graph once and replayed, or called again and again."""
        ...

    def synchronize(self) -> None:
        """Wait until the device has nothing to do."""
        ...

    def free_bytes(self) -> int:
        """Memory that is left, with what torch holds and does not use."""
        ...

    def kernels(self, run: Callable[[], object]) -> dict[str, tuple[float, int]]:
        """Seconds and number of launches per kernel of one call of `run`, by the profiler."""
        ...

    def clocks(self) -> str:
        """What the driver says of clocks and power."""
        ...


class CudaPlace:
    """One GPU."""

    rehearsal = False

    def __init__(self, device: torch.device) -> None:
        properties = torch.cuda.get_device_properties(device)
        self.device = device
        self.gpu = properties.name
        self.memory_bytes = properties.total_memory
        self.starts_early = torch.version.hip is None and torch.cuda.get_device_capability(device) >= (9, 0)
        self.graphs: GraphDevice = CudaGraphs(device)

    def seconds(self, run: Callable[[], object], *, captured: bool = True, at_most_s: float = 0.5) -> float:
        """By events around each replay."""

        def once() -> None:
            run()

        replay = self.graphs.capture(once) if captured else once
        replay()
        self.synchronize()
        times: list[float] = []
        end = time.perf_counter() + at_most_s
        while len(times) < _FEWEST or (len(times) < _MOST and time.perf_counter() < end):
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            replay()
            last.record()
            last.synchronize()
            times.append(first.elapsed_time(last) / 1e3)
        return statistics.median(times)

    def synchronize(self) -> None:
        """All streams."""
        torch.cuda.synchronize(self.device)

    def free_bytes(self) -> int:
        """As the driver counts after torch has given back what it holds without use."""
        self.synchronize()
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(self.device)[0]

    def kernels(self, run: Callable[[], object]) -> dict[str, tuple[float, int]]:
        """Kernels of a replayed graph are seen one by one."""
        self.synchronize()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            run()
            self.synchronize()
        found = profile.key_averages()
        return {entry.key: (entry.self_device_time_total / 1e6, entry.count) for entry in found if entry.self_device_time_total > 0}

    def clocks(self) -> str:
        """From nvidia-smi, or nothing where there is none."""
        command = ["nvidia-smi", f"--query-gpu={_CLOCKS}", "--format=csv,noheader"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return ""
        lines = done.stdout.strip().splitlines()
        return f"{_CLOCKS}: {lines[0]}" if done.returncode == 0 and lines else ""


class CalledAgain:
    """Graphs without a GPU, or on one without capturing: a recorded call is made again."""

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        """Call once, as capturing would."""
        run()
        return run

    def staging(self, size: int) -> Tensor:
        """Plain memory."""
        return torch.zeros(size, dtype=torch.int64)

    def copied(self) -> Callable[[], None]:
        """Copies from plain memory are done when they return."""
        return lambda: None

    def read_back(self, values: Tensor) -> Readback:
        """As without graphs."""
        return read_back(values)

    def used_bytes(self) -> int:
        """Nothing is recorded."""
        return 0


class RehearsalPlace:
    """The CPU. Every call is timed once, and the times mean nothing."""

    rehearsal = True
    starts_early = False
    memory_bytes = 1 << 30

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self.gpu = "none (rehearsal)"
        self.graphs: GraphDevice = CalledAgain()

    def seconds(self, run: Callable[[], object], *, captured: bool = True, at_most_s: float = 0.5) -> float:
        """One call by the host's clock."""
        began = time.perf_counter()
        run()
        return max(time.perf_counter() - began, 1e-9)

    def synchronize(self) -> None:
        """Nothing runs beside the host."""

    def free_bytes(self) -> int:
        """So much as the small shapes need."""
        return self.memory_bytes

    def kernels(self, run: Callable[[], object]) -> dict[str, tuple[float, int]]:
        """The whole call as one kernel."""
        return {"the whole step": (self.seconds(run), 1)}

    def clocks(self) -> str:
        """None are read."""
        return ""


def find_place(*, rehearse: bool) -> CudaPlace | RehearsalPlace:
    """The GPU, or for a rehearsal the CPU. Raises `ConfigError` where the row cannot run."""
    if importlib.util.find_spec("triton") is None:
        raise ConfigError("glm bench gpu needs Triton; install openglm[gpu]")
    if rehearse:
        if "openglm.ops.triton.device" not in sys.modules and "triton" not in sys.modules:
            env.interpret_triton()
        from openglm.ops.triton.device import INTERPRETED

        if not INTERPRETED:
            raise ConfigError("a rehearsal needs Triton's interpreter, and this process has loaded the kernels for a GPU; start a new one")
        return RehearsalPlace()
    if not torch.cuda.is_available():
        raise ConfigError("glm bench gpu needs a GPU, and torch finds none; --rehearse tries the scripts on small shapes without one")
    from openglm.ops.triton.device import INTERPRETED

    if INTERPRETED:
        raise ConfigError("TRITON_INTERPRET is set, so nothing would run on the GPU; unset it")
    return CudaPlace(torch.device("cuda", torch.cuda.current_device()))


def repeated(run: Callable[[], object], times: int) -> Callable[[], None]:
    """`run`, several times in one call, so that a graph's own launch does not count."""

    def all_of_them() -> None:
        for _ in range(times):
            run()

    return all_of_them


def wall_seconds(place: Place, run: Callable[[], object], *, rounds: int) -> float:
    """Median seconds on the host's clock from the call until the device is idle, as whoever waits for it counts."""
    times = []
    for _ in range(rounds):
        place.synchronize()
        began = time.perf_counter()
        run()
        place.synchronize()
        times.append(time.perf_counter() - began)
    return max(statistics.median(times), math.ulp(1.0))
