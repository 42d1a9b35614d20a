"""Attention against a loop over single queries in fp64, and its independence of batch company."""

import math

import pytest
import torch

from openglm import ops
from openglm.model import DenseBatch
from openglm.ops import PAGE_SIZE

HEADS, KV_HEADS, DIM = 6, 2, 16


def naive_attention(queries, keys, values, scale):
    """fp64, one query and head at a time; query i sees keys 0 .. len(keys) - len(queries) + i."""
    out = torch.empty_like(queries, dtype=torch.float64)
    offset = len(keys) - len(queries)
    for i in range(len(queries)):
        for head in range(queries.shape[1]):
            kv_head = head // (queries.shape[1] // keys.shape[1])
            visible = keys[: offset + i + 1, kv_head].double()
            weights = (visible @ queries[i, head].double() * scale).softmax(0)
            out[i, head] = weights @ values[: offset + i + 1, kv_head].double()
    return out


def paged(lengths, new_tokens, seed=0):
    """Random requests with `lengths` tokens in scattered pages, of which the last `new_tokens` are queries."""
    generator = torch.Generator().manual_seed(seed)
    num_pages = [math.ceil(n / PAGE_SIZE) for n in lengths]
    order = torch.randperm(sum(num_pages) + 3, generator=generator)
    kv = torch.randn(len(order), 2, KV_HEADS, PAGE_SIZE, DIM, generator=generator)
    table = torch.zeros(len(lengths), max(num_pages), dtype=torch.int64)
    keys, values, used = [], [], 0
    for r, (length, pages) in enumerate(zip(lengths, num_pages, strict=True)):
        table[r, :pages] = order[used : used + pages]
        used += pages
        own = kv[table[r, :pages]].movedim(0, 2).flatten(2, 3)[:, :, :length]
        keys.append(own[0].transpose(0, 1))
        values.append(own[1].transpose(0, 1))
    queries = torch.randn(sum(new_tokens), HEADS, DIM, generator=generator)
    starts = [0, *torch.tensor(new_tokens).cumsum(0).tolist()]
    return queries, kv, table, starts, keys, values


@pytest.mark.parametrize("row_tile", [None, 16])
def test_paged_attention_equals_a_loop_over_queries(row_tile):
    lengths, new_tokens = [1, 63, 64, 65, 200, 130], [1, 63, 2, 1, 150, 4]
    queries, kv, table, starts, keys, values = paged(lengths, new_tokens)
    out = ops.paged_attention(queries, kv, query_starts=starts, kv_lengths=lengths, page_table=table, scale=0.25, row_tile=row_tile)
    for r in range(len(lengths)):
        rows = slice(starts[r], starts[r + 1])
        expected = naive_attention(queries[rows], keys[r], values[r], 0.25)
        torch.testing.assert_close(out[rows].double(), expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_is_bitwise_the_same_in_every_company(dtype):
    lengths, new_tokens = [200, 77, 130], [150, 5, 1]
    queries, kv, table, starts, *_ = paged(lengths, new_tokens)
    queries, kv = queries.to(dtype), kv.to(dtype)
    together = ops.paged_attention(queries, kv, query_starts=starts, kv_lengths=lengths, page_table=table, scale=0.25, row_tile=16)
    for r, (length, count) in enumerate(zip(lengths, new_tokens, strict=True)):
        for i in range(count):
            row = starts[r] + i
            alone = ops.paged_attention(
                queries[row : row + 1],
                kv,
                query_starts=(0, 1),
                kv_lengths=(length - count + i + 1,),
                page_table=table[r : r + 1],
                scale=0.25,
                row_tile=16,
            )
            assert torch.equal(alone[0], together[row])


@pytest.mark.parametrize("row_tile", [None, 16])
@pytest.mark.parametrize("left_over", [1e30, float("nan"), float("inf")])
def test_slots_behind_the_length_are_never_read(row_tile, left_over):
    queries, kv, table, starts, *_ = paged([70], [3])
    settings = {"query_starts": starts, "kv_lengths": [70], "page_table": table, "scale": 0.25, "row_tile": row_tile}
    before = ops.paged_attention(queries, kv, **settings)
    kv[table[0, 1], :, :, 70 - PAGE_SIZE :] = left_over
    after = ops.paged_attention(queries, kv, **settings)
    assert torch.equal(before, after)


def test_dense_attention_keeps_documents_apart_and_is_differentiable():
    lengths = (5, 1, 40, 17, 38, 90)
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(sum(lengths), h, DIM, generator=generator, requires_grad=True) for h in (HEADS, KV_HEADS, KV_HEADS))
    out = ops.dense_attention(q, k, v, buckets=DenseBatch(lengths).buckets, scale=0.25)
    start = 0
    for length in lengths:
        rows = slice(start, start + length)
        expected = naive_attention(q[rows].detach(), k[rows].detach(), v[rows].detach(), 0.25)
        torch.testing.assert_close(out[rows].double(), expected, atol=2e-6, rtol=0)
        start += length
    out[6:46].sum().backward()
    assert bool(q.grad[6:46].any()) and bool(v.grad[6:46].any())
    assert not bool(v.grad[:6].any()) and not bool(v.grad[46:].any())
