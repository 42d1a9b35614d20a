"""Every kernel compiles for real GPUs at real shapes, within their shared memory and registers. No GPU is needed for that."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SHARED = {"sm_90": 227 * 1024, "gfx942": 64 * 1024}
REGISTERS = {"sm_90": 255, "gfx942": 512}
SPILLED = {  # what compilers leave over, in bytes (sm_90) or registers (gfx942); everything else must have none
    ("sm_90", "split 2 fp8=False"): 8,
}
SLOW = pytest.mark.slow


def compiled(script, folder, *arguments):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}  # it is read when kernels are defined
    environment |= {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "TRITON_CACHE_DIR": str(folder)}
    command = [sys.executable, str(Path(__file__).with_name(f"compile_{script}.py")), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    ("script", "target", "model", "how", "least"),
    [
        ("linear", "sm_90", "air", ("best",), 9),
        ("linear", "sm_90", "glm-4.5", ("best",), 9),
        ("linear", "gfx942", "air", ("best",), 9),
        ("experts", "sm_90", "air", ("best",), 20),
        ("experts", "sm_90", "glm-4.5", ("best",), 20),
        ("experts", "gfx942", "air", ("best",), 20),
        ("attention", "sm_90", "air", (), 20),
        pytest.param("linear", "sm_90", "air", (), 35, marks=SLOW),
        pytest.param("linear", "sm_90", "glm-4.5", (), 35, marks=SLOW),
        pytest.param("linear", "gfx942", "glm-4.5", (), 20, marks=SLOW),
        pytest.param("experts", "sm_90", "air", (), 60, marks=SLOW),
        pytest.param("experts", "sm_90", "glm-4.5", (), 60, marks=SLOW),
        pytest.param("attention", "sm_90", "glm-4.5", (), 20, marks=SLOW),
        pytest.param("attention", "gfx942", "air", (), 20, marks=SLOW),
    ],
)
def test_kernels_compile_within_the_limits_of_the_device(script, target, model, how, least, tmp_path):
    built = compiled(script, tmp_path, target, model, *how)
    assert len(built) >= least
    for kernel in built:
        assert kernel["shared"] <= SHARED[target], kernel
        assert 0 < kernel["registers"] <= REGISTERS[target], kernel
        if (
            how or script == "attention" or target != "gfx942"
        ):  # of tiles that are not the first guess some spill there: the tuner's business
            assert kernel["spilled"] <= SPILLED.get((target, kernel["kernel"]), 0), kernel
        if target == "sm_90" and script == "experts" and not kernel["kernel"].startswith("prompt"):
            assert kernel["registers"] <= 128, kernel  # four programs of four warps on a multiprocessor
        if target == "sm_90" and "swapped" not in kernel["kernel"]:
            assert not kernel["serialized"], kernel
        if target == "sm_90" and script == "linear" and "fp8=" in kernel["kernel"]:
            assert kernel["converts_e4m3"] == kernel["kernel"].endswith("fp8=True"), kernel
