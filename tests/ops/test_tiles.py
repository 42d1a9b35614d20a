"""The AMX kernels with emulated tiles against the other instruction sets and fp64; test_native.py runs whole with them as well."""

import pytest
import torch

from openglm.ops import PackedExperts, PackedLinear, PackedMLP, cpu

pytestmark = [pytest.mark.slow, pytest.mark.skipif(cpu.available() is None, reason="no native kernels on this machine")]

MAX_ROWS = 70  # two full blocks of tiles and a part of a third
SHAPES = [(1, 1), (7, 33), (63, 16), (64, 17), (65, 48), (257, 33), (300, 40), (1056, 20)]


def made(*shape: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(dtype)


@pytest.fixture(autouse=True)
def tiles(emulated_amx, monkeypatch):
    monkeypatch.setattr(cpu, "_native", emulated_amx)
    assert cpu.supported() == ["amx"] and cpu.available() == "amx"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("k", "n"), SHAPES)
def test_w8a8_has_the_bits_of_the_vector_instructions_for_every_number_of_rows(dtype, k, n, emulated_amx, monkeypatch):
    x, weight = made(MAX_ROWS, k, dtype=dtype), made(n, k, dtype=dtype)
    on_tiles = PackedLinear(weight, to="w8a8")
    out = [on_tiles(x[:rows]) for rows in range(1, MAX_ROWS + 1)]
    monkeypatch.undo()
    assert cpu._native is not emulated_amx
    on_vectors = PackedLinear(weight, to="w8a8")
    for rows, of_tiles in enumerate(out, 1):
        assert torch.equal(of_tiles, on_vectors(x[:rows])), rows


@pytest.mark.parametrize("to", ["bfloat16", "fp8", "int8", "int4"])
@pytest.mark.parametrize(("k", "n"), SHAPES)
def test_a_row_has_the_same_bits_among_any_others_and_those_of_the_exact_product_but_for_rounding(to, k, n, monkeypatch):
    x, weight = made(MAX_ROWS, k), made(n, k)
    packed = PackedLinear(weight, to=to)
    out = packed.logits(x)
    for rows in range(1, MAX_ROWS + 1):
        assert torch.equal(packed.logits(x[:rows]), out[:rows]), rows
        assert torch.equal(packed.logits(x[MAX_ROWS - rows :]), out[MAX_ROWS - rows :]), rows
    # The same rounded weight in fp32 arithmetic of the vector kernels: both only round sums.
    monkeypatch.undo()
    wide = PackedLinear(weight, to=to).logits(x.float())
    assert float((out - wide).abs().max()) <= 2e-5 * float(wide.abs().max())


@pytest.mark.parametrize("to", ["bfloat16", "fp8", "int8", "int4", "w8a8"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_row_or_a_column_that_is_not_finite_stays_alone(to, value):
    x, weight = made(40, 70), made(50, 70)
    clean = PackedLinear(weight, to=to)
    expected = clean(x)
    x[17, 69] = value
    out = clean(x)
    others = [i for i in range(40) if i != 17]
    assert not out[17].isfinite().any() and torch.equal(out[others], expected[others])
    weight[18, 0] = value  # lies where a tile behind the last places of the panel before would be
    out = PackedLinear(weight, to=to)(x[others])
    columns = [i for i in range(50) if i != 18]
    assert not out[:, 18].isfinite().any() and torch.equal(out[:, columns], expected[others][:, columns])


@pytest.mark.parametrize("to", ["bfloat16", "fp8", "int8", "int4", "w8a8"])
def test_tokens_of_experts_stand_alone(to):
    x, residual = made(MAX_ROWS, 320), made(MAX_ROWS, 320, seed=1)
    gate_up, down = made(8, 288, 320) * 0.05, made(8, 320, 144) * 0.05
    packed = PackedExperts(
        PackedExperts.pack(gate_up, down, to=to), router=made(8, 320, dtype=torch.float32), router_bias=torch.zeros(8),
        shared=PackedMLP.of(gate_up[0], down[0], to=to), num_experts_per_tok=3, norm_topk_prob=True, scaling=2.5,
    )  # fmt: skip
    out = packed(x, residual)
    for rows in (1, 2, 8, 9, 15, 16, 17, 31, 32, 33, 64, 65):
        assert torch.equal(packed(x[:rows], residual[:rows]), out[:rows]), rows


def test_several_threads_give_the_same_bits():
    x, weight = made(70, 512), made(1000, 512)
    packed = {to: PackedLinear(weight, to=to) for to in ("bfloat16", "int4", "w8a8")}
    alone = {to: one(x) for to, one in packed.items()}
    cpu.set_num_threads(3)
    try:
        for to, one in packed.items():
            assert torch.equal(one(x), alone[to])
    finally:
        cpu.set_num_threads(1)


def test_the_sums_of_a_product_have_the_order_of_tiles():
    """By Intel's pseudocode: even and odd places apart over 32 of K, both added, then added to the sum so far."""
    x, weight = made(3, 96), made(5, 96)
    total = torch.zeros(3, 5)
    for k in range(0, 96, 32):
        parts = [torch.zeros(3, 5), torch.zeros(3, 5)]
        for i in range(32):
            # Products of bf16 are exact in fp64, and so is nearly every such sum: rounded to fp32, a fused multiply-add.
            product = x[:, k + i].double().unsqueeze(1) * weight[:, k + i].double()
            parts[i % 2] = (parts[i % 2].double() + product).float()
        total += parts[0] + parts[1]
    assert torch.equal(PackedLinear(weight).logits(x), total)


def test_subnormal_numbers_are_zeros():
    x = torch.zeros(2, 32, dtype=torch.bfloat16)
    x[0, 0], x[0, 1], x[1, 0] = 2.0**-130, 1.0, 2.0**-100
    weight = torch.full((3, 32), 2.0**-29, dtype=torch.bfloat16)
    weight[0], weight[1] = 2.0**100, 2.0**-26
    out = PackedLinear(weight).logits(x)
    assert out[0].tolist() == [2.0**100, 2.0**-26, 2.0**-29]  # 2^-130 is not read
    assert out[1].tolist() == [1.0, 2.0**-126, 0.0]  # 2^-129 is not written


@pytest.mark.parametrize("weight", [1, 5])  # bf16, w8a8
def test_the_ceiling_is_measured(weight, emulated_amx):
    assert 0 < emulated_amx.measure_multiplying(2560, weight, 1) < emulated_amx.measure_multiplying(256_000, weight, 1)
