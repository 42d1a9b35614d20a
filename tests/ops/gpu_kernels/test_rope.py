"""The fused bias, QK norm, RoPE and KV write against the reference."""

import itertools

import pytest
import torch

from openglm.ops import FP8, Fp8KV, rope_table
from openglm.ops.reference.rope import rope_and_write as reference
from openglm.ops.triton.rope import rope_and_write

HEADS, KV_HEADS, PAGES = 6, 2, 4


def pages(dtype, dim, kind):
    shape = (PAGES, 2, KV_HEADS, 64, dim)
    if kind == "fp8":
        return Fp8KV(torch.zeros(shape).to(FP8), torch.full(shape[:-1], 7.0))
    return torch.full(shape, 7.0, dtype=dtype)


def case(num_tokens, dtype, dim, seed=0):
    g = torch.Generator().manual_seed(seed)
    qkv = torch.randn(num_tokens, (HEADS + 2 * KV_HEADS) * dim, generator=g).to(dtype)
    norms = [(torch.randn(dim, generator=g) * 0.2 + 1).to(dtype) for _ in range(2)]
    bias = torch.randn(qkv.shape[1], generator=g).to(dtype)
    positions = torch.randint(0, 500, (num_tokens,), generator=g)
    slots = torch.randperm(PAGES * 64, generator=g)[:num_tokens]
    return qkv, norms, bias, positions, slots


@pytest.mark.parametrize(
    ("num_tokens", "dtype", "dim", "rotary", "kind"),
    [
        (1, torch.float32, 16, 8, "plain"),
        (5, torch.bfloat16, 128, 64, "plain"),
        (70, torch.float16, 16, 16, "plain"),
        (5, torch.float16, 24, 12, "fp8"),
        (67, torch.float32, 32, 8, "fp8"),
    ],
)
def test_equals_the_reference(num_tokens, dtype, dim, rotary, kind):
    qkv, (q_norm, k_norm), bias, positions, slots = case(num_tokens, dtype, dim)
    table = rope_table(500, rotary, 10000.0)
    tolerance = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 7e-2}[dtype]
    for normed, biased in itertools.product((True, False), repeat=2):
        ours, theirs = pages(dtype, dim, kind), pages(dtype, dim, kind)
        common = {"num_heads": HEADS, "q_norm": q_norm if normed else None, "k_norm": k_norm if normed else None, "eps": 1e-5}
        expected = reference(qkv + bias if biased else qkv, **common, rope=table[positions], slots=slots, kv=theirs)
        got = rope_and_write(qkv, **common, rope_table=table, positions=positions, slots=slots, kv=ours, bias=bias if biased else None)
        torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)
        assert dtype != torch.float16 or (got == expected).float().mean() > 0.98  # the interpreter cuts bf16 off instead of rounding
        if kind == "fp8":
            torch.testing.assert_close(ours.scales, theirs.scales, atol=0, rtol=max(tolerance, 1e-5))
            read = [x.data.float() * x.scales.unsqueeze(-1) for x in (ours, theirs)]
            torch.testing.assert_close(*read, atol=3e-2, rtol=0.13)  # one code apart where a value lies between two
            assert (ours.data.view(torch.uint8) == theirs.data.view(torch.uint8)).float().mean() > 0.995
        else:
            torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)


def test_a_padding_row_writes_nothing_and_a_strided_input_is_read_as_it_lies():
    qkv, (q_norm, k_norm), _, positions, slots = case(4, torch.float32, 16)
    wide = torch.randn(4, qkv.shape[1] + 7)
    wide[:, : qkv.shape[1]] = qkv
    slots[1] = -1
    kv = pages(torch.float32, 16, "plain")
    common = {"num_heads": HEADS, "q_norm": q_norm, "k_norm": k_norm, "eps": 1e-5}
    table = rope_table(500, 8, 10000.0)
    got = rope_and_write(wide[:, : qkv.shape[1]], **common, rope_table=table, positions=positions, slots=slots, kv=kv)
    assert got.isfinite().all()
    written = (kv != 7.0).flatten(4).any(-1)  # [pages, 2, Hkv, 64]
    assert written.sum() == 3 * 2 * KV_HEADS


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # infinity over infinity, in NumPy, which interprets
def test_damage_stays_visible_in_fp8_pages():
    qkv, _, _, positions, slots = case(3, torch.float32, 16)
    qkv[0, -1], qkv[1, -1] = float("nan"), float("inf")
    kv = pages(torch.float32, 16, "fp8")
    table = rope_table(500, 8, 10000.0)
    rope_and_write(qkv, num_heads=HEADS, q_norm=None, k_norm=None, eps=1e-5, rope_table=table, positions=positions, slots=slots, kv=kv)
    read = (kv.data.float() * kv.scales.unsqueeze(-1))[slots // 64, 1, -1, slots % 64]
    assert read.isfinite().all(-1).tolist() == [False, False, True]


def test_shapes_that_do_not_fit_are_refused():
    qkv, _, _, positions, slots = case(2, torch.float32, 16)
    common = {"num_heads": HEADS, "q_norm": None, "k_norm": None, "eps": 1e-5, "rope_table": rope_table(500, 8, 10000.0)}
    with pytest.raises(ValueError, match="in a row"):
        rope_and_write(qkv, **common, positions=positions, slots=slots.repeat_interleave(2)[::2], kv=pages(torch.float32, 16, "plain"))
    with pytest.raises(ValueError, match="qkv"):
        rope_and_write(
            qkv[:, 1:],
            num_heads=HEADS,
            q_norm=None,
            k_norm=None,
            eps=1e-5,
            rope_table=rope_table(500, 8, 10000.0),
            positions=positions,
            slots=slots,
            kv=pages(torch.float32, 16, "plain"),
        )
