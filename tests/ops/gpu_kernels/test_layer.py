"""glm-nano on the kernels, in the interpreter: prefill, decode, verify rows and the MTP layer are those of the reference.

The steps are few and short because the interpreter is slow; `tests/model/test_device_model.py` covers more of the composition without it.
"""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "model"))
from device_steps import run_steps

from openglm.checkpoint import load_model, load_packed_model
from openglm.config.engine import model_directory
from openglm.ops import FP8, cpu

for kernels in ("attention", "experts", "linear", "norm", "rope", "router"):
    pytest.importorskip(f"openglm.ops.triton.{kernels}")

NONE_ON_HOST = (0, 0, 0, 0, 0)


def on_kernels(to=None, host_experts=NONE_ON_HOST, dtype=torch.float32):
    return load_packed_model(model_directory(None), dtype=dtype, to=to, host_experts=host_experts)


def error(found, expected):
    """The largest root mean square error of a step's logits, relative to their spread."""
    return max(float((a - b).square().mean().sqrt() / b.std()) for a, b in zip(found, expected, strict=True))


@pytest.fixture(scope="module")
def exact():
    return run_steps(load_model(model_directory(None), dtype=torch.float32), length=6)


@pytest.mark.parametrize("static", [False, True])
def test_only_the_order_of_sums_differs(exact, static):
    assert error(run_steps(on_kernels(), length=6, static=static), exact) < 1e-3


def test_bf16_weights_and_activations(exact):
    """In the first sequence a token stands 0.00013 from another expert, which any rounding may cross; the second is compared."""
    found = run_steps(on_kernels(dtype=torch.bfloat16), kv_dtype=torch.bfloat16, length=6)
    rows = (5, 1, 2, 2)  # of the second sequence in each step
    second = [[logits[-count:] for logits, count in zip(steps, rows, strict=True)] for steps in (found, exact)]
    assert error(*second) < 5e-2


def test_fp8_weights_cost_what_they_cost_on_the_cpu(exact):
    if cpu.available() is None:
        pytest.skip("no native kernels on this machine")
    found = run_steps(on_kernels("fp8"), length=6)
    assert error(found, exact) < 0.2
    # the CPU rounds the same matrices the same way
    model = load_packed_model(model_directory(None), dtype=torch.float32, to="fp8")
    assert error(found, run_steps(model, length=6)) < 5e-2


def test_fp8_pages(exact):
    reference = run_steps(load_model(model_directory(None), dtype=torch.float32), kv_dtype=FP8, length=6)
    assert error(run_steps(on_kernels(), kv_dtype=FP8, length=6), reference) < 5e-2


@pytest.mark.skipif(cpu.available() is None, reason="no native kernels on this machine")
def test_experts_in_host_memory_change_no_more_than_rounding():
    assert error(run_steps(on_kernels(host_experts=(0, 16, 5, 0, 3)), length=6), run_steps(on_kernels(), length=6)) < 1e-3
