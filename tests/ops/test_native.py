"""The native CPU kernels against the reference ops, at real widths of GLM-4.5-Air and GLM-4.5 and at awkward ones.

Two things are claimed: the same numbers up to rounding, and rows that do not depend, bit for bit, on what stands beside them.
Every instruction set that this processor can run is tested.
"""

from functools import partial

import pytest
import torch

from openglm import ops
from openglm.config import variant
from openglm.model import ForwardContext, GlmModel, PagedBatch, allocate_kv
from openglm.ops import PAGE_SIZE, PackedExperts, PackedLinear, PackedMLP, cpu, reference

pytestmark = pytest.mark.skipif(cpu.available() is None, reason="no native kernels on this machine")

DTYPES = (torch.float32, torch.bfloat16)
# Relative to the largest output: fp32 sums of up to 11,000 terms; one bf16 rounding of operands and of the result.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 1e-2}


@pytest.fixture(params=[*cpu.supported(), pytest.param("emulated amx", marks=pytest.mark.slow)], autouse=True)
def instruction_set(request, monkeypatch):
    if request.param == "emulated amx":
        monkeypatch.setattr(cpu, "_native", request.getfixturevalue("emulated_amx"))
        yield "amx"
        return
    best = cpu.available()
    cpu.select(request.param)
    yield request.param
    cpu.select(best)


def made(*shape: int, dtype: torch.dtype, scale: float = 1.0, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return (torch.randn(shape, generator=generator) * scale).to(dtype)


def assert_close(native: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    assert native.isfinite().all()
    assert float((native.double() - expected).abs().max()) <= TOLERANCE[dtype] * float(expected.abs().max())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("rows", "k", "n"), [(1, 4096, 1408), (2, 257, 33), (5, 48, 24), (13, 1408, 4096), (24, 320, 17), (1, 10944, 64), (7, 1, 1)]
)
def test_linear_equals_fp64_and_its_rows_stand_alone(dtype, rows, k, n):
    x, weight, bias = made(rows, k, dtype=dtype), made(n, k, dtype=dtype, scale=k**-0.5), made(n, dtype=dtype)
    residual = made(rows, n, dtype=dtype, seed=1)
    packed = PackedLinear(weight, bias)
    out = packed(x, residual)
    assert_close(out, residual.double() + x.double() @ weight.double().T + bias.double(), dtype)
    assert torch.equal(out, torch.cat([packed(x[i : i + 1], residual[i : i + 1]) for i in range(rows)]))
    assert_close(PackedLinear(weight).logits(x), x.double() @ weight.double().T, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("to", ["fp8", "int8", "int4", "w8a8"])
def test_a_packed_weight_is_rounded_as_its_original_would_be(dtype, to):
    x, weight = made(3, 257, dtype=dtype), made(33, 257, dtype=dtype)
    assert torch.equal(PackedLinear(weight).rounded(to)(x), PackedLinear(weight, to=to)(x))


def test_a_rounded_weight_is_not_rounded_again():
    with pytest.raises(ValueError, match="int8 cannot be packed again"):
        PackedLinear(made(16, 32, dtype=torch.float32), to="int8").rounded("w8a8")


def test_fp32_weights_that_bf16_can_hold_are_packed_as_bf16_and_give_the_same_bits():
    x, weight = made(9, 130, dtype=torch.float32), made(40, 130, dtype=torch.bfloat16).float()
    narrow, wide = PackedLinear(weight), PackedLinear(weight, to="float32")
    assert 2 * narrow.num_bytes == wide.num_bytes
    assert torch.equal(narrow(x), wide(x))
    weight[3, 7] += 1e-6
    assert PackedLinear(weight).num_bytes == wide.num_bytes
    assert torch.equal(PackedLinear(weight)(x), PackedLinear(weight, to="float32")(x))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_fp8_code_is_converted_exactly_and_found_again_from_the_weight(dtype):
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).view(16, 16)
    scale = 2.0 ** torch.arange(-8, 8)
    weight = (codes.float() * scale.unsqueeze(1)).to(dtype)
    out = PackedLinear(weight, to="fp8", scale=scale)(torch.eye(16, dtype=dtype))
    has_nan = weight.isnan().any(1)
    assert has_nan.sum() == 2 and torch.equal(out.T[has_nan].isnan(), torch.ones(2, 16, dtype=torch.bool))
    weight = weight.nan_to_num(0.0)
    assert torch.equal(PackedLinear(weight, to="fp8", scale=scale)(torch.eye(16, dtype=dtype)).T, weight)


@pytest.mark.parametrize("to", ["fp8", "int8"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "k", "n"), [(1, 4096, 1408), (3, 257, 33), (5, 48, 24), (13, 1408, 4096), (24, 320, 17)])
def test_an_8_bit_weight_is_its_rounded_values_times_the_scale(to, dtype, rows, k, n):
    x, weight, bias = made(rows, k, dtype=dtype), made(n, k, dtype=dtype, scale=k**-0.5), made(n, dtype=dtype)
    packed = PackedLinear(weight, bias, to=to)
    scale_and_bias = 2 * 4
    assert 0 <= packed.num_bytes - -(-n // 16) * 16 * (k + k % 2 + scale_and_bias) < 3 * 64
    rounded, scale = rounded_to(to, weight)
    out = packed(x)
    assert_close(out, x.double() @ rounded.T + bias.double(), dtype)
    assert torch.equal(out, torch.cat([packed(x[i : i + 1]) for i in range(rows)]))
    # What rounding the weight can do at most: half a step for every term.
    step = scale if to == "int8" else 32 * scale
    exact = x.double() @ weight.double().T + bias.double()
    bound = 0.5 * step.T * x.double().abs().sum(1, keepdim=True) + TOLERANCE[dtype] * exact.abs().max()
    assert bool(((out.double() - exact).abs() <= bound).all())


# Expert projections of GLM-4.5-Air and GLM-4.5, and awkward sizes.
SHAPES = [(torch.bfloat16, *shape) for shape in ((4096, 1408), (1408, 4096), (5120, 1536), (1536, 5120), (12288, 64))]
SHAPES += [(dtype, *shape) for shape in ((257, 33), (48, 24), (130, 100), (7, 1)) for dtype in DTYPES]


@pytest.mark.parametrize(("dtype", "k", "n"), SHAPES)
def test_an_int4_weight_is_low_plus_step_times_code_and_moves_by_half_a_step_at_most(dtype, k, n):
    x, weight, bias = made(14, k, dtype=dtype), made(n, k, dtype=dtype, scale=k**-0.5), made(n, dtype=dtype)
    packed = PackedLinear(weight, bias, to="int4")
    rounded, step = rounded_to_int4(weight)
    assert bool(((rounded - weight.double()).abs() <= 0.5001 * step).all())
    out = packed(x)
    assert_close(out, x.double() @ rounded.T + bias.double(), dtype)
    for rows in (2, 5):
        assert torch.equal(packed(x[:rows]), out[:rows])
    assert torch.equal(out, torch.cat([packed(x[i : i + 1]) for i in range(14)]))
    exact = x.double() @ weight.double().T + bias.double()
    bound = 0.5 * x.double().abs() @ step.T + TOLERANCE[dtype] * exact.abs().max()
    assert bool(((out.double() - exact).abs() <= bound).all())
    bits = 8 * packed.num_bytes / (-(-n // 16) * 16 * k)
    assert k < 1000 or bits <= 4.3


@pytest.mark.parametrize(("dtype", "k", "n"), SHAPES)
def test_w8a8_is_an_exact_product_of_rounded_rows_and_rounded_weights(dtype, k, n):
    x, weight, bias = made(14, k, dtype=dtype), made(n, k, dtype=dtype, scale=k**-0.5), made(n, dtype=dtype)
    x[3] = 0
    packed = PackedLinear(weight, bias, to="w8a8")
    rounded, scale = rounded_to("int8", weight)
    own = x.float().abs().amax(1, keepdim=True) / 127
    rows = torch.where(own > 0, (x.float() / own).round() * own, 0).double()
    out = packed(x)
    # A quotient on the edge between two codes may fall to the other side: one step of one element.
    edge = own.double() * rounded.abs().amax(1)
    assert bool(((out.double() - (rows @ rounded.T + bias.double())).abs() <= edge + TOLERANCE[dtype] * out.double().abs().max()).all())
    assert torch.equal(out, torch.cat([packed(x[i : i + 1]) for i in range(14)]))
    # Half a step of the row for every weight, half a step of the output for every element, and both at once.
    exact = x.double() @ weight.double().T + bias.double()
    half_x, half_w = 0.5 * own.double(), 0.5 * scale.T
    bound = half_x * weight.double().abs().sum(1) + half_w * x.double().abs().sum(1, keepdim=True) + k * half_x * half_w
    assert bool(((out.double() - exact).abs() <= 1.001 * bound + TOLERANCE[dtype] * exact.abs().max()).all())


def test_w8a8_has_the_same_bits_on_every_instruction_set(instruction_set):
    x, weight = made(9, 300, dtype=torch.float32), made(40, 300, dtype=torch.float32)
    out = PackedLinear(weight, to="w8a8").logits(x)
    for name in cpu.supported():
        cpu.select(name)
        assert torch.equal(PackedLinear(weight, to="w8a8").logits(x), out)


@pytest.mark.parametrize("to", ["fp8", "int8", "int4"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("hidden", "width"), [(64, 48), (320, 144)])
def test_experts_in_few_bits_equal_those_with_rounded_weights(to, dtype, hidden, width):
    x, residual = made(19, hidden, dtype=dtype), made(19, hidden, dtype=dtype, seed=1)
    router, bias = made(8, hidden, dtype=dtype).float(), made(8, dtype=torch.float32)
    gate_up, down = made(8, 2 * width, hidden, dtype=dtype, scale=0.2), made(8, hidden, width, dtype=dtype, scale=0.2)
    packed = PackedExperts(
        PackedExperts.pack(gate_up, down, to=to), router=router, router_bias=bias, shared=PackedMLP.of(gate_up[0], down[0], to=to),
        num_experts_per_tok=3, norm_topk_prob=True, scaling=2.5,
    )  # fmt: skip
    routing = ops.route(x, router, bias, num_experts_per_tok=3, scaling=2.5)
    wide = ops.Routing(routing.experts, routing.weights.double(), routing.scores)
    first, last = (torch.stack([rounded_to(to, one)[0] for one in weights]) for weights in (gate_up, down))
    expected = residual.double() + ops.experts_mlp(x.double(), wide, first, last)
    expected = expected + reference.swiglu.swiglu(x.double() @ first[0].T) @ last[0].T
    out = packed(x, residual)
    assert_close(out, expected, dtype)
    assert torch.equal(out, torch.cat([packed(x[i : i + 1], residual[i : i + 1]) for i in range(19)]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_experts_in_w8a8_are_near_the_exact_ones_and_tokens_stand_alone(dtype):
    x, residual = made(70, 320, dtype=dtype), made(70, 320, dtype=dtype, seed=1)
    router, bias = made(8, 320, dtype=dtype).float(), made(8, dtype=torch.float32)
    gate_up, down = made(8, 288, 320, dtype=dtype, scale=0.05), made(8, 320, 144, dtype=dtype, scale=0.05)
    settings = {"router": router, "router_bias": bias, "num_experts_per_tok": 3, "norm_topk_prob": True, "scaling": 2.5}

    def run(to):
        shared = PackedMLP.of(gate_up[0], down[0], to=to)
        packed = PackedExperts(PackedExperts.pack(gate_up, down, to=to), shared=shared, **settings)
        out = packed(x, residual)
        assert torch.equal(out, torch.cat([packed(x[i : i + 1], residual[i : i + 1]) for i in range(70)]))
        return out.double()

    exact = run("bfloat16" if dtype == torch.bfloat16 else "float32")
    assert float((run("w8a8") - exact).square().mean() / (exact - residual.double()).square().mean()) <= 0.03**2


def test_experts_of_formats_that_read_their_rows_differently_are_refused():
    settings = {"router": torch.zeros(2, 16), "router_bias": torch.zeros(2), "shared": None, "num_experts_per_tok": 1}
    settings |= {"norm_topk_prob": True, "scaling": 1.0}
    one, other = (PackedMLP.of(made(32, 16, dtype=torch.float32), made(16, 16, dtype=torch.float32), to=to) for to in ("int4", "int8"))
    with pytest.raises(ValueError, match="int4, narrow"):
        PackedExperts([one, other], **settings)
    narrow, wide = (PackedMLP.of(torch.full((32, 16), value), torch.full((16, 16), value)) for value in (1.0, 1.0001))
    mixed = PackedExperts([narrow, wide], **settings)
    assert mixed(torch.ones(3, 16), torch.zeros(3, 16)).isfinite().all()
    with pytest.raises(ValueError, match="fp32"):
        mixed(torch.ones(3, 16).bfloat16(), torch.zeros(3, 16).bfloat16())


@pytest.mark.parametrize("to", ["float32", "bfloat16", "fp8", "int8", "int4", "w8a8"])
def test_a_weight_filled_in_pieces_is_the_one_filled_at_once(to):
    x, weight = made(3, 140, dtype=torch.bfloat16), made(50, 140, dtype=torch.bfloat16)
    whole, pieces = PackedLinear(weight, to=to), PackedLinear.empty(50, 140, to)
    for first, last in ((40, 50), (0, 7), (7, 40), (3, 9)):
        assert pieces.fill(first, weight[first:last])
    assert torch.equal(pieces(x), whole(x))
    for first, rows in ((-1, weight[:2]), (49, weight[:2]), (0, weight[:, :9])):
        with pytest.raises(ValueError, match="rows"):
            pieces.fill(first, rows)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_weight_that_is_not_finite_shows_in_every_format(value):
    weight = made(20, 32, dtype=torch.float32)
    weight[3, 5] = value
    for to in ("fp8", "int8", "int4", "w8a8"):
        out = PackedLinear(weight, to=to)(made(2, 32, dtype=torch.float32))
        assert out[:, 3].isnan().all() and out[:, :3].isfinite().all() and out[:, 4:].isfinite().all()
    with pytest.raises(ValueError, match="scales"):
        PackedLinear(weight, to="fp8", scale=torch.ones(3))


def test_a_row_that_is_not_finite_shows_in_w8a8_and_spoils_no_other():
    x = made(6, 40, dtype=torch.float32)
    packed = PackedLinear(made(20, 40, dtype=torch.float32), to="w8a8")
    clean = packed(x)
    x[2, 39], x[4, 0] = float("nan"), float("inf")
    out = packed(x)
    assert out[[2, 4]].isnan().all() and torch.equal(out[[0, 1, 3, 5]], clean[[0, 1, 3, 5]])


def rounded_to_int4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The values [N, K] that int4 keeps, in fp64, and the step [N, K] of each."""
    values, steps = [], []
    for group in weight.float().split(128, dim=1):
        low = _bf16_towards(group.amin(1, keepdim=True), -1)
        step = _bf16_towards((group.amax(1, keepdim=True) - low) / 15, 1)
        codes = torch.where(step > 0, ((group - low) / step).round(), 0)
        assert int(codes.min()) >= 0 and int(codes.max()) <= 15
        values.append(codes.double() * step.double() + low.double())
        steps.append(step.double().expand(group.shape))
    return torch.cat(values, 1), torch.cat(steps, 1)


def _bf16_towards(x: torch.Tensor, direction: int) -> torch.Tensor:
    """The nearest bf16 number that is not on the other side of x."""
    near = x.bfloat16()
    moved = torch.nextafter(near, torch.full_like(near, direction * float("inf")))
    return torch.where((near.float() - x) * direction >= 0, near, moved).float()


def rounded_to(to: str, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The values [N, K] that the format keeps, in fp64, and its scales [N, 1]."""
    if to == "int4":
        return rounded_to_int4(weight)
    scale = weight.float().abs().amax(1, keepdim=True) / (448 if to == "fp8" else 127)
    codes = weight.float() / scale
    return (codes.to(torch.float8_e4m3fn) if to == "fp8" else codes.round()).double() * scale.double(), scale.double()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "hidden", "width"), [(3, 4096, 1408), (17, 40, 24), (1, 48, 80)])
def test_mlp_equals_reference(dtype, rows, hidden, width):
    x, residual = made(rows, hidden, dtype=dtype), made(rows, hidden, dtype=dtype, seed=1)
    gate_up, down = made(2 * width, hidden, dtype=dtype, scale=hidden**-0.5), made(hidden, width, dtype=dtype, scale=width**-0.5)
    out = PackedMLP.of(gate_up, down)(x, residual)
    inner = reference.swiglu.swiglu(x.double() @ gate_up.double().T)
    assert_close(out, residual.double() + inner @ down.double().T, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("rows", "experts", "top_k", "hidden", "width"), [(1, 160, 8, 64, 24), (6, 6, 2, 4096, 1408), (70, 128, 8, 48, 16)]
)
@pytest.mark.parametrize("with_shared", [True, False])
def test_experts_equal_reference_and_tokens_stand_alone(dtype, rows, experts, top_k, hidden, width, with_shared):
    x, residual = made(rows, hidden, dtype=dtype), made(rows, hidden, dtype=dtype, seed=1)
    router, bias = made(experts, hidden, dtype=torch.float32, scale=hidden**-0.5), made(experts, dtype=torch.float32, scale=0.1)
    gate_up, down = (
        made(experts, 2 * width, hidden, dtype=dtype, scale=hidden**-0.5),
        made(experts, hidden, width, dtype=dtype, scale=width**-0.5),
    )
    shared = (made(2 * width, hidden, dtype=dtype, scale=hidden**-0.5), made(hidden, width, dtype=dtype, scale=width**-0.5))
    packed = PackedExperts(
        PackedExperts.pack(gate_up, down),
        router=router,
        router_bias=bias,
        shared=PackedMLP.of(*shared) if with_shared else None,
        num_experts_per_tok=top_k,
        norm_topk_prob=True,
        scaling=2.5,
    )
    out = packed(x, residual)
    routing = ops.route(x, router, bias, num_experts_per_tok=top_k, scaling=2.5)
    wide = ops.Routing(routing.experts, routing.weights.double(), routing.scores)
    expected = residual.double() + ops.experts_mlp(x.double(), wide, gate_up.double(), down.double())
    if with_shared:
        expected = expected + reference.swiglu.swiglu(x.double() @ shared[0].double().T) @ shared[1].double().T
    assert_close(out, expected, dtype)
    assert torch.equal(out, torch.cat([packed(x[i : i + 1], residual[i : i + 1]) for i in range(rows)]))


def test_experts_without_tokens_and_tokens_of_one_expert():
    router, bias = torch.zeros(4, 32), torch.tensor([0.0, 5.0, 0.0, 0.0])
    gate_up, down, x = made(4, 32, 32, dtype=torch.float32), made(4, 32, 16, dtype=torch.float32), made(9, 32, dtype=torch.float32)
    experts = PackedExperts.pack(gate_up, down)
    packed = PackedExperts(experts, router=router, router_bias=bias, shared=None, num_experts_per_tok=1, norm_topk_prob=True, scaling=1.0)
    expected = reference.swiglu.swiglu(x.double() @ gate_up[1].double().T) @ down[1].double().T
    assert_close(packed(x, torch.zeros_like(x)), expected, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [40, 128, 5120])
def test_rms_norm_equals_reference(dtype, width):
    x, weight = made(5, width, dtype=dtype), made(width, dtype=dtype)
    assert_close(cpu.rms_norm(x, weight, 1e-5), reference.norm.rms_norm(x.double(), weight.double(), 1e-5), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads", "dim", "normed"), [(96, 8, 128, True), (10, 2, 32, True), (6, 2, 16, False)])
def test_rotation_and_kv_write_equal_reference(dtype, heads, kv_heads, dim, normed):
    tokens = 5
    qkv = made(tokens, (heads + 2 * kv_heads) * dim, dtype=dtype)
    norms = (made(dim, dtype=dtype), made(dim, dtype=dtype, seed=1)) if normed else (None, None)
    rope = ops.rope_table(300, dim // 2, 1e6)[torch.tensor([0, 1, 63, 64, 299])]
    slots = torch.tensor([70, 3, 64, 190, 0])
    pages, expected_pages = (torch.zeros(3, 2, kv_heads, PAGE_SIZE, dim, dtype=dtype) for _ in range(2))
    settings = {"num_heads": heads, "eps": 1e-5, "rope": rope, "slots": slots}
    q = cpu.rope_and_write(qkv, q_norm=norms[0], k_norm=norms[1], kv=pages, **settings)
    expected = ops.rope_and_write(qkv, q_norm=norms[0], k_norm=norms[1], kv=expected_pages, **settings)
    assert_close(q, expected.double(), dtype)
    assert_close(pages, expected_pages.double(), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(96, 8, 128), (10, 2, 32), (48, 1, 16)])
def test_attention_equals_reference_and_ignores_what_unused_slots_hold(dtype, heads, kv_heads, dim):
    lengths, queries = (1, 64, 65, 200, 130), (1, 64, 2, 7, 3)
    starts = [0]
    for count in queries:
        starts.append(starts[-1] + count)
    pages = made(20, 2, kv_heads, PAGE_SIZE, dim, dtype=dtype)
    table = torch.randperm(20, generator=torch.Generator().manual_seed(1)).view(5, 4)
    for r, length in enumerate(lengths):  # the slots behind a request's end
        pages[table[r, length // PAGE_SIZE], :, :, length % PAGE_SIZE :] = float("nan")
    q = made(starts[-1], heads, dim, dtype=dtype)
    offsets = torch.tensor([*starts, *lengths])
    out = cpu.paged_attention(q, pages, offsets=offsets, num_requests=5, page_table=table, scale=dim**-0.5)
    clean = pages.nan_to_num().double()
    expected = ops.paged_attention(q.double(), clean, query_starts=starts, kv_lengths=lengths, page_table=table, scale=dim**-0.5)
    assert_close(out, expected, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_fp8_pages_are_written_and_read_as_the_reference_does(dtype):
    heads, kv_heads, dim, tokens = 24, 2, 128, 70
    qkv = made(tokens, (heads + 2 * kv_heads) * dim, dtype=dtype)
    qkv[0] = 0
    qkv[1] *= 1e-7
    qkv[2, heads * dim] = 3e4
    pages, expected = (ops.Fp8KV(torch.zeros(2, 2, kv_heads, 64, dim, dtype=ops.FP8), torch.zeros(2, 2, kv_heads, 64)) for _ in range(2))
    settings = {"num_heads": heads, "q_norm": None, "k_norm": None, "eps": 1e-5, "slots": torch.arange(tokens)}
    settings["rope"] = torch.tensor([[1.0], [0.0]]).expand(tokens, 2, dim // 4).contiguous()  # no turn: then nothing is rounded before
    q = cpu.rope_and_write(qkv, kv=pages, **settings)
    ops.rope_and_write(qkv, kv=expected, **settings)
    assert torch.equal(pages.scales, expected.scales)
    assert torch.equal(pages.data.view(torch.uint8), expected.data.view(torch.uint8))
    batch = {"page_table": torch.tensor([[0, 1]]), "scale": dim**-0.5}
    out = cpu.paged_attention(q, pages, offsets=torch.tensor([0, tokens, tokens]), num_requests=1, **batch)
    wide = ops.dequantize_kv(expected.data, expected.scales, torch.float32).double()
    assert_close(out, ops.paged_attention(q.double(), wide, query_starts=[0, tokens], kv_lengths=[tokens], **batch), dtype)


def test_a_vector_that_is_not_finite_stays_so_in_fp8_pages():
    pages = ops.Fp8KV(torch.zeros(1, 2, 1, 64, 16, dtype=ops.FP8), torch.zeros(1, 2, 1, 64))
    qkv = torch.zeros(1, 3 * 16)
    qkv[0, 20] = float("inf")
    rope = torch.tensor([[1.0], [0.0]]).expand(1, 2, 4).contiguous()
    q = cpu.rope_and_write(qkv, num_heads=1, q_norm=None, k_norm=None, eps=1e-5, rope=rope, slots=torch.tensor([0]), kv=pages)
    out = cpu.paged_attention(q, pages, offsets=torch.tensor([0, 1, 1]), num_requests=1, page_table=torch.tensor([[0]]), scale=1.0)
    assert not out.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["tiny-air", "tiny-355b", "glm-nano"])
def test_a_packed_model_equals_the_reference_in_any_chunks(dtype, name):
    config, num_tokens = variant(name), 200
    model = GlmModel(config, dtype=dtype).init_weights(3)
    twin = GlmModel(config, dtype=dtype)
    twin.load_state_dict(model.state_dict())
    packed = twin.pack()
    tokens = torch.randint(0, config.vocab_size, (num_tokens + 1,), generator=torch.Generator().manual_seed(0))

    @torch.inference_mode()
    def run(model: GlmModel, chunks: list[int]) -> torch.Tensor:
        kv, table = allocate_kv(config, 8, dtype), torch.tensor([[5, 3, 7, 1]])
        states, start = [], 0
        for count in chunks:
            positions = torch.arange(start, start + count)
            slots = table[0][positions // PAGE_SIZE] * PAGE_SIZE + positions % PAGE_SIZE
            batch = PagedBatch((0, count), (start + count,), table, slots, kv)
            ctx = ForwardContext(positions, batch, native=model.is_packed)
            hidden = model(tokens[start : start + count], ctx)
            states.append(torch.cat([hidden, model.mtp_forward(tokens[start + 1 : start + count + 1], hidden, ctx)], dim=1))
            start += count
        trunk, drafted = torch.cat(states).chunk(2, dim=1)
        return torch.cat([model.logits(trunk), model.logits(drafted)])

    whole = run(packed, [num_tokens])
    assert torch.equal(whole, run(packed, [7, 57, 1, 64, 1, 1, 60, 9]))
    expected = run(model, [num_tokens])
    if dtype == torch.float32:
        assert float((whole - expected).abs().max()) <= 2e-5
    else:  # bf16 rounds in other places: as far from the fp32 truth as the reference is, not farther
        truth = run(GlmModel(config).init_weights(3).to(torch.bfloat16).float(), [num_tokens])
        assert float((whole - truth).square().mean()) <= 1.2 * float((expected - truth).square().mean())


@pytest.mark.parametrize("width", [1, 15, 16, 100, 3072])
def test_highest_equals_torch_whatever_the_row_holds(width):
    x = made(40, width + 3, dtype=torch.float32)
    x[1] = 0.5  # ties: the first place
    x[2, width // 2] = float("nan")
    x[3, width - 1] = float("inf")
    x[4] = float("-inf")
    x[5, : width // 2] = float("-inf")
    x[6] = x[6].round()
    values, places = cpu.highest(x[:, :width])
    expected, expected_places = reference.highest.highest(x[:, :width])
    assert torch.equal(values.nan_to_num(nan=7e30), expected.nan_to_num(nan=7e30))
    known = ~expected.isnan()
    assert torch.equal(places[known], expected_places[known])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("place", ["query", "key", "value"])
def test_a_row_that_is_not_finite_shows_and_spoils_no_other(dtype, place):
    q, pages = made(3, 2, 16, dtype=dtype), made(3, 2, 1, PAGE_SIZE, 16, dtype=dtype)
    batch = {
        "offsets": torch.tensor([0, 1, 2, 3, 40, 40, 40]),
        "num_requests": 3,
        "page_table": torch.tensor([[0], [1], [2]]),
        "scale": 0.25,
    }
    clean = cpu.paged_attention(q, pages, **batch)
    if place == "query":
        q[1, 0, 3] = float("nan")
    else:
        pages[1, 0 if place == "key" else 1, 0, 7, 3] = float("nan")
    out = cpu.paged_attention(q, pages, **batch)
    assert out[1, 0].isnan().any()
    assert torch.equal(out[::2], clean[::2])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_token_that_is_not_finite_comes_out_of_the_experts_so_and_spoils_no_other(dtype):
    x, zeros = made(5, 32, dtype=dtype), torch.zeros(5, 32, dtype=dtype)
    packed = PackedExperts(
        PackedExperts.pack(made(4, 32, 32, dtype=dtype), made(4, 32, 16, dtype=dtype)),
        router=made(4, 32, dtype=torch.float32),
        router_bias=torch.zeros(4),
        shared=None,
        num_experts_per_tok=2,
        norm_topk_prob=True,
        scaling=1.0,
    )
    clean = packed(x, zeros)
    x[2, 5] = float("nan")
    out = packed(x, zeros)
    assert out[2].isnan().all()
    assert torch.equal(out[[0, 1, 3, 4]], clean[[0, 1, 3, 4]])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["tiny-air", "tiny-355b"])
@torch.inference_mode()
def test_a_chain_of_drafts_is_that_of_one_pass_after_another(dtype, name):
    config = variant(name)
    model = GlmModel(config, dtype=dtype).init_weights(5).pack()
    kv = [made(6, 2, config.num_key_value_heads, PAGE_SIZE, config.head_dim, dtype=dtype) for _ in range(config.num_kv_layers)]
    other = [layer.clone() for layer in kv]
    table, depths = torch.tensor([[3, 1], [0, 5], [2, 4]]), [5, 3, 1]
    first_rows, counts, positions = [4, 0, 1], [3, 1, 2], [59, 5, 99]
    tokens = [[5, 6, 7], [8], [3, 9]]  # of each sequence, the last one is where drafting starts
    hidden = made(7, config.hidden_size, dtype=dtype)
    assert model.mtp is not None and model.mtp.packed is not None
    draft = partial(model.mtp.packed.draft, hidden, first_rows=first_rows, counts=counts, depths=depths, kv=kv[-1], num_tokens=300)
    chains, _ = draft(tokens=[token for own in tokens for token in own], positions=positions, page_table=table)
    expected: list[list[int]] = [[], [], []]
    for r in range(3):
        for at, token in enumerate(tokens[r], positions[r]):
            state = hidden[first_rows[r] + at - positions[r]].unsqueeze(0)
            slot = torch.tensor([int(table[r, at // PAGE_SIZE]) * PAGE_SIZE + at % PAGE_SIZE])
            batch = PagedBatch((0, 1), (at + 1,), table[r : r + 1], slot, other)
            if at < positions[r] + counts[r] - 1:
                model.mtp_forward(torch.tensor([token]), state, ForwardContext(torch.tensor([at]), batch, native=True))
        for step in range(depths[r]):
            at = positions[r] + counts[r] - 1 + step
            slot = torch.tensor([int(table[r, at // PAGE_SIZE]) * PAGE_SIZE + at % PAGE_SIZE])
            batch = PagedBatch((0, 1), (at + 1,), table[r : r + 1], slot, other)
            state = model.mtp_forward(torch.tensor([token]), state, ForwardContext(torch.tensor([at]), batch, native=True))
            token = int(model.logits(state)[0, :300].argmax())
            expected[r].append(token)
    assert [chain[:depth] for chain, depth in zip(chains, depths, strict=True)] == expected
    assert torch.equal(kv[-1], other[-1])
    with pytest.raises(ValueError, match="outside pages"):
        draft(tokens=[1, 2, 3, 4, 5, 6], positions=[126, 5, 99], page_table=table)
    with pytest.raises(ValueError, match="do not fit"):
        draft(tokens=[1, 2, 3], positions=positions, page_table=table)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weights", [None, "fp8", "int8", "int4", "w8a8"])
@torch.inference_mode()
def test_entries_written_alone_are_those_of_the_whole_layer(dtype, weights):
    config = variant("tiny-355b")
    model = GlmModel(config, dtype=dtype).init_weights(5).pack(weights)
    kv = [torch.zeros(2, 2, config.num_key_value_heads, PAGE_SIZE, config.head_dim, dtype=dtype) for _ in range(config.num_kv_layers)]
    other = [layer.clone() for layer in kv]
    positions, tokens, hidden = torch.arange(70), torch.arange(70) * 3, made(70, config.hidden_size, dtype=dtype)
    for pages, run in ((kv, model.mtp_write_kv), (other, model.mtp_forward)):
        run(tokens, hidden, ForwardContext(positions, PagedBatch((0, 70), (70,), torch.tensor([[0, 1]]), positions, pages), native=True))
    assert kv[-1].any() and torch.equal(kv[-1], other[-1])


def test_wrong_tensors_are_refused_before_an_address_leaves_python():
    packed = PackedLinear(made(8, 16, dtype=torch.float32))
    with pytest.raises(ValueError, match="rows of 16"):
        packed(made(2, 15, dtype=torch.float32))
    with pytest.raises(ValueError, match="fp32 or bf16"):
        packed(made(2, 16, dtype=torch.float64))
    with pytest.raises(ValueError, match="shape"):
        packed(made(2, 16, dtype=torch.float32), made(2, 9, dtype=torch.float32))


def test_several_threads_give_the_same_bits():
    x, weight = made(50, 512, dtype=torch.float32), made(1000, 512, dtype=torch.float32)
    packed = PackedLinear(weight)
    alone = packed(x)
    cpu.set_num_threads(3)
    try:
        for _ in range(50):
            assert torch.equal(packed(x), alone)
    finally:
        cpu.set_num_threads(1)
