"""Compiles a kernel for a GPU that need not be here, and tells what it takes of it. For scripts that run without the interpreter."""

import json
import re
import subprocess
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from triton.runtime import driver

from openglm.ops.triton.device import DeviceLimits

TARGETS = {"sm_90": GPUTarget("cuda", 90, 32), "gfx942": GPUTarget("hip", "gfx942", 64)}
LIMITS = {
    "sm_90": DeviceLimits("H200", num_sms=132, shared_bytes=227 * 1024, capability=(9, 0), is_hip=False, fp8_dot=True),
    "gfx942": DeviceLimits("MI300X", num_sms=304, shared_bytes=64 * 1024, capability=(0, 0), is_hip=True, fp8_dot=False),
}


class _Absent:
    """Stands for the driver of a GPU, of which kernels ask what they are compiled for."""

    def __init__(self, target):
        self._target = target

    def get_current_target(self):
        return self._target


def build(name, kernel, constants, target, *, whole=(), options=None, **types):
    """Compile `kernel` and print one JSON line: name, target, shared memory in bytes, registers, spilled bytes (AMD: registers), and
    on NVIDIA whether matrix instructions wait for each other and whether hardware converts codes.

    types: of each parameter that is no constant. Pointers and the integers in `whole` are multiples of 16, as the launcher would see.
    """
    signature = {key: "constexpr" if key in constants else types[key] for key in kernel.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, key in enumerate(kernel.arg_names) if signature[key].startswith("*") or key in whole}
    driver.set_active(_Absent(TARGETS[target]))
    compiled = compile(
        ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned), target=TARGETS[target], options=options or {}
    )
    found = {"kernel": name, "target": target, "shared": compiled.metadata.shared}
    found |= _of_ptx(compiled.asm["ptx"]) if "ptx" in compiled.asm else _of_amdgcn(compiled.asm["amdgcn"])
    print(json.dumps(found), flush=True)
    return compiled


def _of_ptx(text):
    """By ptxas itself: the driver, which would fill the metadata, is not here."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(text)
        command = [triton.knobs.nvidia.ptxas.path, "-v", "--gpu-name=sm_90a", str(source), "-o", str(source.with_suffix(".cubin"))]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    spilled = sum(map(int, re.findall(r"(\d+) bytes spill stores", said)))
    used = re.findall(r"Used (\d+) registers", said)
    # ptxas waits after each wgmma where it cannot prove that registers are left alone meanwhile, and says so.
    serialized = "wgmma" in said and "serialized" in said
    return {"registers": int(used[-1]), "spilled": spilled, "serialized": serialized, "converts_e4m3": "e4m3x2" in text}


def _of_amdgcn(text):
    """From the notes of the assembly."""
    notes = dict(line.split(":", 1) for line in text.splitlines() if line.lstrip().startswith((".vgpr_count:", ".vgpr_spill_count:")))
    notes = {key.strip(): int(value) for key, value in notes.items()}
    return {"registers": notes[".vgpr_count"], "spilled": notes[".vgpr_spill_count"]}
