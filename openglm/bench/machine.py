"""What a figure was measured on."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

import msgspec
import psutil


class Machine(msgspec.Struct, frozen=True):
    """The machine and the versions behind a measurement."""

    cpu: str
    cores: int
    memory_gib: float
    system: str
    python: str
    torch: str
    openglm: str


def this_machine() -> Machine:
    """Describe the machine this runs on; nothing is imported that is not installed."""
    return Machine(
        cpu=_cpu_name(),
        cores=len(os.sched_getaffinity(0)),
        memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        torch=metadata.version("torch"),
        openglm=metadata.version("openglm"),
    )


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
