"""Paged attention on the device against the reference, and that a row's result does not depend on its company."""

import pytest
import torch

from openglm.ops import Fp8KV, PagedBatch
from openglm.ops.reference.attention import paged_attention as reference
from openglm.ops.reference.fp8_kv import quantize_kv
from openglm.ops.triton import attention as module
from openglm.ops.triton.attention import chunk_attention, paged_attention


def make_case(counts, lengths, *, heads=6, kv_heads=2, dim=16, dtype=torch.float32, fp8=False, seed=0):
    """Queries, pages whose unused slots are NaN, offsets and a shuffled page table, for requests of `counts` new of `lengths` tokens."""
    g = torch.Generator().manual_seed(seed)
    needed = [-(-length // 64) for length in lengths]
    order = torch.randperm(sum(needed) + 1, generator=g)
    kv = torch.randn(sum(needed) + 1, 2, kv_heads, 64, dim, generator=g).to(dtype)
    table = torch.full((len(counts), max([1, *needed])), 2**40)  # entries behind a request's pages must not be followed
    used = 0
    for r, (number, length) in enumerate(zip(needed, lengths, strict=True)):
        table[r, :number] = order[used : used + number]
        used += number
        if length % 64:
            kv[table[r, number - 1], :, :, length % 64 :] = float("nan")
    starts = torch.tensor([0, *counts]).cumsum(0)
    queries = torch.randn(int(starts[-1]), heads, dim, generator=g).to(dtype)
    offsets = torch.cat([starts, torch.tensor(lengths)])
    return queries, Fp8KV(*quantize_kv(kv)) if fp8 else kv, offsets, table


def run(case, counts, lengths, *, max_query_len=None, max_kv_len=None):
    queries, kv, offsets, table = case
    bounds = {"max_query_len": max_query_len or max(counts), "max_kv_len": max_kv_len or max(lengths)}
    batch = PagedBatch.static(offsets=offsets, **bounds, page_table=table[: len(counts)], slots=offsets[:0], kv=(kv,))
    return paged_attention(queries, kv, batch, scale=0.3)


def expected(case, counts, lengths):
    queries, kv, offsets, table = case
    starts = offsets[: len(counts) + 1].tolist()
    if isinstance(kv, Fp8KV):
        kv = kv.data.double() * kv.scales.unsqueeze(-1).double()
    return reference(queries.double(), kv.double(), query_starts=starts, kv_lengths=lengths, page_table=table % 2**40, scale=0.3).float()


MIXED = ((1, 12, 3), (100, 12, 131))


@pytest.mark.parametrize(
    ("counts", "lengths", "dtype", "fp8"),
    [
        ((1,), (1,), torch.float32, False),
        ((1, 1, 1), (64, 65, 200), torch.float32, True),
        ((2, 4, 1), (130, 64, 63), torch.float16, False),
        ((2, 4, 1), (130, 64, 63), torch.float16, True),
        (*MIXED, torch.float32, False),
        (*MIXED, torch.bfloat16, True),
        ((70,), (150,), torch.bfloat16, False),
    ],
)
def test_equals_the_reference(counts, lengths, dtype, fp8):
    case = make_case(counts, lengths, dtype=dtype, fp8=fp8)
    tolerance = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(run(case, counts, lengths).float(), expected(case, counts, lengths), atol=tolerance, rtol=tolerance)


def test_more_pages_than_splits_and_heads_that_fill_no_tile():
    counts, lengths = (2,), (33 * 64 + 5,)
    case = make_case(counts, lengths, heads=5, kv_heads=1, dim=24)
    torch.testing.assert_close(run(case, counts, lengths), expected(case, counts, lengths), atol=2e-6, rtol=2e-6)


def test_a_draft_on_the_page_behind_the_last_split_is_seen():
    counts, lengths = (3,), (32 * 64 + 2,)
    case = make_case(counts, lengths, kv_heads=1, heads=2)
    torch.testing.assert_close(run(case, counts, lengths), expected(case, counts, lengths), atol=2e-6, rtol=2e-6)


def test_upper_bounds_and_company_change_no_bit():
    counts, lengths = (1, 1), (70, 300)
    case = make_case(counts, lengths)
    together = run(case, counts, lengths)
    queries, kv, _, table = case
    alone = run((queries[1:], kv, torch.tensor([0, 1, 300]), table[1:]), (1,), (300,))
    assert torch.equal(together[1:], alone)
    assert torch.equal(together, run(case, counts, lengths, max_query_len=3, max_kv_len=320))
    more = torch.cat([queries, torch.randn(40, 6, 16)])
    mixed = run((more, kv, torch.tensor([0, 1, 2, 42, 70, 300, 60]), table[[0, 1, 1]]), (1, 1, 40), (70, 300, 60))
    assert torch.equal(together, mixed[:2])


def test_requests_of_length_zero_and_rows_of_no_request_are_zeros():
    queries, kv, _, table = make_case((1, 1, 1, 1), (70, 1, 1, 1))
    offsets = torch.tensor([0, 1, 2, 2, 70, 0, 0])
    out = run((queries, kv, offsets, table), (1, 1, 0), (70, 0, 0))
    assert out[0].any() and not out[1:].any() and out.isfinite().all()


def test_damage_in_a_visible_slot_stays_in_its_request():
    counts, lengths = (1, 1), (70, 80)
    queries, kv, offsets, table = make_case(counts, lengths)
    kv[table[0, 0], 0, :, 3] = float("nan")
    out = run((queries, kv, offsets, table), counts, lengths)
    assert out[0].isnan().all() and out[1].isfinite().all()


def test_a_long_chunk_through_fused_attention_equals_the_reference():
    for fp8 in (False, True):
        case = make_case((40,), (130,), fp8=fp8)
        queries, kv, _, table = case
        out = chunk_attention(queries, kv, length=130, pages=table[0], scale=0.3)
        torch.testing.assert_close(out, expected(case, (40,), (130,)), atol=2e-6, rtol=2e-6)


@pytest.fixture
def fused(monkeypatch):
    """torch's fused attention as on NVIDIA, from 20 new tokens on; the requests that went there, by their new tokens."""
    seen = []

    def counted(queries, *rest, **settings):
        seen.append(len(queries))
        return chunk_attention(queries, *rest, **settings)

    monkeypatch.setattr(module, "_has_fused_attention", lambda queries: True)
    monkeypatch.setattr(module, "_SDPA_QUERIES", 20)
    monkeypatch.setattr(module, "chunk_attention", counted)
    return seen


def known(case, counts, lengths):
    """With lengths that the host knows."""
    queries, kv, offsets, table = case
    batch = PagedBatch(offsets[: len(counts) + 1].tolist(), lengths, table, offsets[:0], (kv,))
    return paged_attention(queries, kv, batch, scale=0.3)


@pytest.mark.parametrize(
    ("counts", "lengths", "to_fused"),
    [
        ((40,), (130,), [40]),
        ((1, 40, 2), (200, 70, 64), [40]),
        ((30, 12, 1, 20, 19), (30, 90, 65, 150, 19), [30, 20]),
        ((12, 1), (64, 3), []),
        ((25, 22), (25, 80), [25, 22]),
    ],
)
@pytest.mark.parametrize("fp8", [False, True])
def test_long_requests_go_to_fused_attention_whatever_their_company(fused, counts, lengths, to_fused, fp8):
    case = make_case(counts, lengths, fp8=fp8)
    together = known(case, counts, lengths)
    assert fused == to_fused
    torch.testing.assert_close(together, expected(case, counts, lengths), atol=2e-6, rtol=2e-6)
    queries, kv, offsets, table = case
    for r, (count, length) in enumerate(zip(counts, lengths, strict=True)):
        rows = slice(int(offsets[r]), int(offsets[r + 1]))
        alone = known((queries[rows], kv, torch.tensor([0, count, length]), table[r : r + 1]), (count,), (length,))
        # few new tokens may share a larger tile with company's, and of torch's attention on the CPU nothing is known
        assert torch.equal(together[rows], alone) or not 10 < count < 20
        torch.testing.assert_close(together[rows], alone, atol=1e-6, rtol=1e-6)


def test_decode_rows_do_not_notice_a_prefill_beside_them(fused):
    counts, lengths = (1, 40, 12, 1), (200, 70, 64, 65)
    case = make_case(counts, lengths)
    queries, kv, _, table = case
    rows, both = [0, 53], torch.tensor([0, 1, 2, 200, 65])
    assert torch.equal(known(case, counts, lengths)[rows], known((queries[rows], kv, both, table[[0, 3]]), (1, 1), (200, 65)))


def test_a_graph_never_asks_for_fused_attention(fused):
    case = make_case((40,), (130,))
    torch.testing.assert_close(run(case, (40,), (130,)), expected(case, (40,), (130,)), atol=2e-6, rtol=2e-6)
    assert not fused


def test_shapes_that_do_not_fit_are_refused():
    case = make_case((1,), (70,))
    with pytest.raises(ValueError, match="positions do not fit"):
        run(case, (1,), (700,))
    with pytest.raises(ValueError, match="do not fit pages"):
        run((case[0][:, :3], *case[1:]), (1,), (70,))
