"""Linear layers on the device in the interpreter, against fp64 products of the same (rounded) weights."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from openglm.ops import FP8
from openglm.ops.reference.fp8_kv import quantize_kv
from openglm.ops.triton.linear import DeviceLinear

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}  # the interpreter cuts bf16 off instead of rounding


def made(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def close(found, wanted, dtype):
    assert found.shape == wanted.shape
    assert float((found.double() - wanted).abs().max() / wanted.abs().max()) < TOLERANCE[dtype]


@pytest.mark.parametrize("rows", [0, 1, 3, 16, 17, 70])
@pytest.mark.parametrize(
    ("dtype", "fp8"), [(torch.float32, False), (torch.float16, False), (torch.bfloat16, False), (torch.bfloat16, True)]
)
@pytest.mark.parametrize(("n", "k"), [(70, 300), (129, 40)])
def test_products_with_bias_and_residual_equal_fp64(rows, dtype, fp8, n, k):
    weight, bias, x, residual = made(n, k) / k**0.5, made(n, seed=1), made(rows, k, dtype=dtype, seed=2), made(rows, n, dtype=dtype, seed=3)
    linear = DeviceLinear.quantized(weight, bias=bias) if fp8 else DeviceLinear(weight.to(dtype), bias=bias)
    codes, scales = quantize_kv(weight)
    exact = codes.double() * scales.double().unsqueeze(1) if fp8 else weight.to(dtype).double()
    wanted = x.double() @ exact.T + bias.double()
    found = linear(x)
    assert found.dtype == dtype
    if rows:
        close(found, wanted, dtype)
        close(linear(x, residual), wanted + residual.double(), dtype)
        logits = linear.logits(x)
        assert logits.dtype == torch.float32
        close(logits, wanted, torch.float32)


@pytest.mark.parametrize("rows", [5, 40])
def test_rows_alone_are_rows_in_company(rows):
    linear = DeviceLinear(made(70, 500))
    x = made(rows, 500, seed=4)
    found = linear.logits(x)
    few = rows <= 16
    step = 1 if few else 20
    for first in range(0, rows, step):
        assert torch.equal(linear.logits(x[first : first + step]), found[first : first + step])


def test_a_row_that_is_not_finite_spoils_no_other():
    linear = DeviceLinear.quantized(made(70, 300))
    x = made(4, 300, seed=5)
    clean = linear.logits(x)
    x[1, 7] = float("nan")
    found = linear.logits(x)
    assert found[1].isnan().all()
    assert torch.equal(found[[0, 2, 3]], clean[[0, 2, 3]])


@pytest.mark.parametrize("rows", [2, 20])
def test_rounded_rows_are_multiplied_by_codes_and_scaled_behind_the_sum(rows):
    weight, x = made(70, 300), made(rows, 300, seed=6)
    found = DeviceLinear.quantized(weight, quantize_activations=True).logits(x)
    exact = [codes.double() * scales.double().unsqueeze(1) for codes, scales in map(quantize_kv, (x, weight))]
    close(found, exact[0] @ exact[1].T, torch.float32)


def test_every_code_is_its_value():
    codes = torch.arange(256, dtype=torch.uint8).view(FP8).view(256, 1)
    found = DeviceLinear(codes.clone(), scales=torch.ones(256)).logits(torch.ones(1, 1))[0]
    assert torch.equal(found.nan_to_num(1e9), codes.float().flatten().nan_to_num(1e9))


def test_weights_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="exactly if it is e4m3"):
        DeviceLinear(torch.zeros(4, 4).to(FP8))
    with pytest.raises(ValueError, match="4 outputs"):
        DeviceLinear(torch.zeros(4, 4), bias=torch.zeros(3))
    with pytest.raises(ValueError, match="does not fit"):
        DeviceLinear(torch.zeros(4, 4))(torch.zeros(2, 5))


@pytest.mark.parametrize("model", ["air", "glm-4.5"])
def test_kernels_compile_for_sm_90_within_its_limits(model, tmp_path):
    script = Path(__file__).with_name("compile_linear.py")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, str(script), "sm_90", model]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    built = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(built) == 5
    for kernel in built:
        assert kernel["shared"] <= 227 * 1024 and kernel["registers"] <= 255 and kernel["spilled"] == 0, kernel
