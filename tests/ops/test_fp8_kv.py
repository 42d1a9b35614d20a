"""KV in fp8: how exact it is, that it depends on nothing but the vector, and that damage stays visible."""

import pytest
import torch

from openglm import ops
from openglm.config import variant
from openglm.model import allocate_kv
from openglm.ops import FP8, PAGE_SIZE, Fp8KV


def random_vectors(count=64, dim=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 2, dim, generator=generator) * torch.logspace(-8, 6, count).view(-1, 1, 1)


def test_every_element_is_within_a_sixteenth_of_itself_or_the_smallest_step():
    vectors = random_vectors()
    data, scales = ops.quantize_kv(vectors)
    assert data.dtype == FP8 and scales.shape == vectors.shape[:-1] and scales.dtype == torch.float32
    error = (ops.dequantize_kv(data, scales, torch.float32) - vectors).abs()
    assert bool((error <= torch.maximum(vectors.abs() / 16, scales.unsqueeze(-1) * 2**-10) * (1 + 1e-6)).all())
    largest = vectors.abs().amax(-1)
    assert torch.allclose(ops.dequantize_kv(data, scales, torch.float32).abs().amax(-1), largest, rtol=1e-6)


def test_a_vector_is_stored_the_same_in_every_company():
    vectors = random_vectors()
    data, scales = ops.quantize_kv(vectors)
    for i in (0, 13, 63):
        alone, scale = ops.quantize_kv(vectors[i : i + 1])
        assert torch.equal(alone.view(torch.uint8)[0], data.view(torch.uint8)[i]) and torch.equal(scale[0], scales[i])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_damage_stays_visible_and_zero_stays_zero(value):
    vectors = torch.ones(3, 8)
    vectors[0] = 0
    vectors[1, 3] = value
    found = ops.dequantize_kv(*ops.quantize_kv(vectors), torch.float32)
    assert torch.equal(found[0], torch.zeros(8)) and not bool(found[1].isfinite().all()) and torch.equal(found[2], torch.ones(8))


@pytest.mark.parametrize("row_tile", [None, 16])
def test_attention_reads_what_was_written(row_tile):
    """Over fp8 pages it gives exactly what it gives over plain pages that hold the rounded vectors."""
    generator = torch.Generator().manual_seed(1)
    length, kv_heads, dim = 100, 2, 16
    fp8 = Fp8KV(torch.zeros(4, 2, kv_heads, PAGE_SIZE, dim, dtype=FP8), torch.zeros(4, 2, kv_heads, PAGE_SIZE))
    plain = torch.zeros(4, 2, kv_heads, PAGE_SIZE, dim)
    table = torch.tensor([[2, 1]])
    positions = torch.arange(length)
    slots = table[0][positions // PAGE_SIZE] * PAGE_SIZE + positions % PAGE_SIZE
    keys, values = torch.randn(2, length, kv_heads, dim, generator=generator)
    ops.write_kv(fp8, slots, keys, values)
    ops.write_kv(plain, slots, *(ops.dequantize_kv(*ops.quantize_kv(x), torch.float32) for x in (keys, values)))
    settings = {"query_starts": (0, 3), "kv_lengths": (length,), "page_table": table, "scale": 0.25, "row_tile": row_tile}
    queries = torch.randn(3, 6, dim, generator=generator)
    assert torch.equal(ops.paged_attention(queries, fp8, **settings), ops.paged_attention(queries, plain, **settings))


def test_the_pages_have_the_layout_of_plain_ones():
    config = variant("tiny-air")
    plain, fp8 = allocate_kv(config, 3), allocate_kv(config, 3, FP8)
    assert [layer.data.shape for layer in fp8] == [layer.shape for layer in plain]
    assert all(layer.scales.shape == layer.data.shape[:-1] and len(ops.kv_tensors(layer)) == 2 for layer in fp8)
