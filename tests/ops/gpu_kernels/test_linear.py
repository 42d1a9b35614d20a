"""Linear layers on the device in the interpreter, against fp64 products of the same (rounded) weights."""

import copy

import pytest
import torch

from openglm.ops import FP8
from openglm.ops.reference.fp8_kv import quantize_kv
from openglm.ops.triton import linear as module
from openglm.ops.triton.device import DeviceLimits
from openglm.ops.triton.linear import TILES, DeviceLinear, path_of, piece_of, rounded_rows
from openglm.ops.triton.tuning import LIBRARY, tuner

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


@pytest.mark.parametrize("rows", [5, 40, 150])
def test_rows_alone_are_rows_in_company(rows):
    linear = DeviceLinear(made(70, 500))
    x = made(rows, 500, seed=4)
    found = linear.logits(x)
    step = {5: 1, 40: 20, 150: 130}[rows]  # all parts of the path that the whole took
    for first in range(0, rows - step + 1, step):
        part = slice(first, first + step)
        assert path_of(step) == path_of(rows)
        assert torch.equal(linear.logits(x[part]), found[part])
    last = slice(rows - step, rows)  # at another place of its block
    assert torch.equal(linear.logits(x[last]), found[last])


def test_a_row_that_is_not_finite_spoils_no_other():
    linear = DeviceLinear.quantized(made(70, 300))
    x = made(4, 300, seed=5)
    clean = linear.logits(x)
    x[1, 7] = float("nan")
    found = linear.logits(x)
    assert found[1].isnan().all()
    assert torch.equal(found[[0, 2, 3]], clean[[0, 2, 3]])


@pytest.mark.parametrize("width", [16, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_are_rounded_as_the_reference_rounds(width, dtype):
    x = made(5, width, dtype=dtype)
    x[1], x[2, 3] = 0, float("nan")
    codes, scales = rounded_rows(x)
    wanted, wanted_scales = quantize_kv(x)
    whole = [0, 1, 3, 4]
    assert torch.equal(scales[whole], wanted_scales[whole])
    assert torch.equal(codes[whole].view(torch.uint8), wanted[whole].view(torch.uint8))
    assert (codes[2].float() * scales[2]).isnan().any()


@pytest.mark.parametrize("added", ["nothing", "bias", "residual"])
def test_many_rows_are_rounded_where_codes_are_multiplied(monkeypatch, added):
    weight, x = made(48, 64), made(130, 64, dtype=torch.bfloat16, seed=1)
    bias = made(48, dtype=torch.bfloat16, seed=2) if added == "bias" else None
    residual = made(130, 48, dtype=torch.bfloat16, seed=3) if added == "residual" else None
    linear = DeviceLinear.quantized(weight, bias=bias, quantize_activations=True)
    assert not linear.rounds(130, torch.bfloat16), "the interpreter multiplies no codes"
    exact, plain = quantize_kv(weight), linear(x, residual)
    monkeypatch.setattr(module, "_multiplies_codes", lambda *_: True)
    assert linear.rounds(129, torch.bfloat16) and not linear.rounds(128, torch.bfloat16) and not linear.rounds(129, torch.float16)
    assert not DeviceLinear.quantized(weight).rounds(129, torch.bfloat16)
    assert not DeviceLinear.quantized(weight[:40], quantize_activations=True).rounds(129, torch.bfloat16)
    rounded = [codes.double() * scales.double().unsqueeze(1) for codes, scales in (quantize_kv(x), exact)]
    wanted = rounded[0] @ rounded[1].T + sum(t.double() for t in (bias, residual) if t is not None)
    found = linear(x, residual)
    close(found, wanted, torch.bfloat16)
    assert not torch.equal(found, plain)
    few = linear(x[:20])
    close(few, x[:20].double() @ rounded[1].T + (0 if bias is None else bias.double()), torch.bfloat16)


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


@pytest.mark.parametrize(("path", "rows"), [("few", 3), ("some", 17), ("many", 129)])
@pytest.mark.parametrize("fp8", [False, True])
def test_every_tile_gives_the_product(monkeypatch, path, rows, fp8):
    weight, bias, x, residual = made(70, 600) / 24, made(70, seed=1), made(rows, 600, seed=2), made(rows, 70, seed=3)
    codes, scales = quantize_kv(weight)
    exact = codes.double() * scales.double().unsqueeze(1) if fp8 else weight.double()
    for tile in TILES[path]:
        monkeypatch.setitem(module.TILES, path, [tile])
        tuner.cache_clear()  # it remembers the choice of the round before
        linear = DeviceLinear.quantized(weight, bias=bias) if fp8 else DeviceLinear(weight, bias=bias)
        close(linear(x, residual), x.double() @ exact.T + bias.double() + residual.double(), torch.float32)
        assert set(linear._chosen.values()) == {tile}
    tuner.cache_clear()


@pytest.mark.parametrize("added", ["nothing", "bias", "residual"])
def test_the_library_gives_the_product(added):
    weight, x = made(48, 64, dtype=torch.bfloat16), made(130, 64, dtype=torch.bfloat16, seed=1)
    bias = made(48, dtype=torch.bfloat16, seed=2) if added == "bias" else None
    residual = made(130, 48, dtype=torch.bfloat16, seed=3) if added == "residual" else None
    linear, out = DeviceLinear(weight, bias=bias), torch.empty(130, 48, dtype=torch.bfloat16)
    linear._launch(x, residual, out, "many", LIBRARY)
    wanted = x.double() @ weight.double().T
    wanted += 0 if bias is None else bias.double()
    close(out, wanted if residual is None else wanted + residual.double(), torch.bfloat16)


H200 = DeviceLimits("an H200", num_sms=132, shared_bytes=227 * 1024, capability=(9, 0), is_hip=False, fp8_dot=True)


def test_the_library_is_asked_only_for_what_it_rounds_once():
    def fits(given, result=None, *, weight=None, residual=False, device=H200, **options):
        linear = copy.copy(DeviceLinear(made(48, 64, dtype=given) if weight is None else weight, **options))
        linear._limits, linear._weight = device, linear._weight.to("meta")
        linear._on_gpu = True
        return linear._library_fits(given, result or given, residual=residual)

    bf16, bias = torch.bfloat16, made(48, dtype=torch.bfloat16)
    codes, scales = quantize_kv(made(48, 64))
    assert fits(bf16) and fits(bf16, residual=True) and fits(bf16, bias=bias) and fits(torch.float16)
    assert not fits(bf16, bias=bias, residual=True) and not fits(bf16, torch.float32) and not fits(torch.float32)
    assert not fits(bf16, bias=bias.float()) and not fits(bf16, weight=made(48, 64))
    assert not fits(bf16, weight=codes, scales=scales)  # codes times unrounded rows is ours alone


def test_pieces_of_k_fill_the_device():
    assert [-(-k // piece_of(n, k, H200)) for n, k in ((14336, 4096), (4096, 12288), (5120, 12288), (151552, 4096))] == [1, 4, 3, 1]
    assert all(piece_of(n, k, H200) % 256 == 0 for n in (1, 70, 4096) for k in (1, 255, 256, 257, 12288))


def test_another_scheme_is_refused():
    with pytest.raises(ValueError, match="not to 'int4'"):
        DeviceLinear.quantized(made(4, 4), "int4")
