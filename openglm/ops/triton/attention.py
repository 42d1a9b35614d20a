"""Causal grouped-query attention over paged KV, for CUDA graphs: lengths lie on the device and no grid depends on them.

Two kernels share one loop over pages. Requests with few new tokens (decode, and verification of drafts) go to `_split_kernel`: the G query
heads of a KV head and all new tokens are the rows of one tile, so KV is read once, and a request's KV is cut into up to 32 splits that
run side by side and are joined by `_join_kernel`, by their log-sum-exps and in a fixed order. Requests with more go to `_tile_kernel`, in
blocks of queries that each walk the pages up to their last one. Where the host knows the lengths, and on NVIDIA, a request of 256 and more
goes to torch's fused attention instead, over K and V that `_gather_kernel` lays side by side (`chunk_attention`): it is half again as fast
as a Triton kernel at a head dim of 128, and adds in another order. Each way leaves the other's requests alone, and a request's own number
of new tokens decides which one it takes, so that a decode row does not notice a prefill beside it, nor a prefill its company.

How KV is cut depends on the request's own length alone (`_split_pages`), not on the batch or its upper bounds: a split covers the
smallest power of two of pages of which 32 suffice. At 1K tokens that makes 16 splits of one page (128 programs for 8 KV heads), at 128K
32 splits of 64 pages (256 programs, two for each of 132 multiprocessors); partial results then cost 6 KB per split beside 32 KB to 2 MB
of bf16 KV. It is taken at the request's first new token, so a draft behind it changes nothing unless the row count changes the tile
(`_split_rows`), where hardware may add in another order. In a batch whose lengths the host knows, longer requests do not count for it.

A page is one tile of 64 keys. FP8 codes become the queries' dtype in registers; a key's scale multiplies its scores, a value's its values.

Shape legend: T tokens of the step, R requests, Hq query heads, Hkv KV heads, G = Hq / Hkv, D head dim, S splits, M rows of a tile.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

from openglm.ops.paged_batch import PagedBatch
from openglm.ops.reference.attention import PAGE_SIZE, KVLayer, kv_tensors
from openglm.ops.reference.fp8_kv import Fp8KV
from openglm.ops.triton.device import INTERPRETED, limits
from openglm.ops.triton.products import decoded, rounded

_MAX_SPLITS = 32
_SPLIT_ROWS = 64  # rows of the largest tile of the split kernel: five new tokens of twelve heads
_TILE = (128, 8)  # rows of the tile kernel, and warps
_TILE_ON_HIP = (64, 4)  # gfx942 has registers for no more: it decodes e4m3 by hand
_SDPA_QUERIES = 256  # a chunk from which torch's fused attention pays for gathering K and V
_LOG2_E = 1.4426950408889634


@triton.jit
def _request(offsets, request, num_requests):
    """A request's first row, its number of new tokens, and its KV length after them."""
    start = tl.load(offsets + request)
    count = (tl.load(offsets + request + 1) - start).to(tl.int32)
    return start, count, tl.load(offsets + num_requests + 1 + request).to(tl.int32)


@triton.jit
def _attend(
    q,
    kv,
    scales,
    pages,
    kv_head,
    first_page,
    last_page,
    row_positions,
    kv_stride,
    scale_stride,
    scale,
    M: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PAGE: tl.constexpr,
    FP8: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Rows q [M, D'] over pages [first_page, last_page): the weighted mean [M, D'] fp32 and the log2-sum-exp2 [M] of the scores."""
    dtype: tl.constexpr = q.dtype
    offsets = tl.arange(0, PAGE)
    dims = tl.arange(0, BLOCK_D)
    in_head = (dims < D)[None, :]
    highest = tl.full([M], float("-inf"), tl.float32)
    total = tl.zeros([M], tl.float32)
    mean = tl.zeros([M, BLOCK_D], tl.float32)
    last_position = tl.max(row_positions, 0)
    if UPCAST:
        q = q.to(tl.float32)
    for page in range(first_page, last_page):
        index = tl.load(pages + page).to(tl.int64)
        positions = page * PAGE + offsets
        used = positions <= last_position  # behind it lies what a former owner left, which may be NaN
        mask = used[:, None] & in_head
        place = index * kv_stride + (kv_head * PAGE + offsets[:, None]) * D + dims[None, :]
        keys = tl.load(kv + place, mask=mask, other=0.0)
        values = tl.load(kv + place + NUM_KV_HEADS * PAGE * D, mask=mask, other=0.0)
        if FP8:
            scale_place = scales + index * scale_stride + kv_head * PAGE + offsets
            key_scales = tl.load(scale_place, mask=used, other=0.0)
            value_scales = tl.load(scale_place + NUM_KV_HEADS * PAGE, mask=used, other=0.0)
            keys = decoded(keys, dtype)
            values = (decoded(values, tl.float32) * value_scales[:, None]).to(dtype)
        keys = keys.to(dtype)
        values = values.to(dtype)
        if UPCAST:
            keys = keys.to(tl.float32)
            values = values.to(tl.float32)
        scores = tl.dot(q, tl.trans(keys), input_precision="ieee") * scale
        if FP8:
            scores *= key_scales[None, :]
        scores = tl.where(positions[None, :] <= row_positions[:, None], scores, float("-inf"))
        raised = tl.maximum(highest, tl.max(scores, 1))
        base = tl.where(raised == float("-inf"), 0.0, raised)  # nothing seen so far
        weights = tl.exp2(scores - base[:, None])
        shrink = tl.exp2(highest - base)
        total = total * shrink + tl.sum(weights, 1)
        narrow = weights.to(dtype)
        if UPCAST:
            narrow = narrow.to(tl.float32)
        mean = mean * shrink[:, None] + tl.dot(narrow, values, input_precision="ieee")
        highest = raised
    empty = total == 0.0
    mean = mean / tl.where(empty, 1.0, total)[:, None]
    return mean, tl.where(empty, float("-inf"), highest + tl.log2(tl.where(empty, 1.0, total)))


@triton.jit
def _split_pages(length, PAGE: tl.constexpr, MAX_SPLITS: tl.constexpr):
    """Pages per split of a request whose first new token sees `length` positions: a power of two."""
    needed = tl.cdiv(tl.cdiv(length, PAGE), MAX_SPLITS)
    size = needed * 0 + 1
    while size < needed:
        size *= 2
    return size


@triton.jit
def _split_kernel(
    queries,
    kv,
    scales,
    offsets,
    page_table,
    means,
    sums,
    num_requests,
    kv_stride,
    scale_stride,
    table_stride,
    scale,
    SHORT: tl.constexpr,
    M: tl.constexpr,
    SPLITS: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
    G: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PAGE: tl.constexpr,
    FP8: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """One split of one request for one KV head: partial means [R * SHORT, Hq, SPLITS, D] and sums [R * SHORT, Hq, SPLITS]."""
    split = tl.program_id(0)
    kv_head = tl.program_id(1)
    request = tl.program_id(2)
    start, count, length = _request(offsets, request, num_requests)
    if count <= 0 or count > SHORT or length <= 0:
        return
    before = length - count
    size = _split_pages(before + 1, PAGE, MAX_SPLITS)
    first_page = split * size
    num_pages = tl.cdiv(length, PAGE)
    if first_page >= num_pages:
        return
    last_page = tl.minimum(first_page + size, num_pages)
    if split == SPLITS - 1:
        last_page = num_pages  # drafts may reach one page behind the last split
    rows = tl.arange(0, M)
    tokens = rows // G
    heads = kv_head * G + rows % G
    valid = tokens < count
    dims = tl.arange(0, BLOCK_D)
    in_head = (dims < D)[None, :]
    NUM_HEADS: tl.constexpr = G * NUM_KV_HEADS
    place = ((start + tokens) * NUM_HEADS + heads)[:, None] * D + dims[None, :]
    q = tl.load(queries + place, mask=valid[:, None] & in_head, other=0.0)
    row_positions = tl.where(valid, before + tokens, before)
    mean, sum = _attend(
        q,
        kv,
        scales,
        page_table + request.to(tl.int64) * table_stride,
        kv_head,
        first_page,
        last_page,
        row_positions,
        kv_stride,
        scale_stride,
        scale,
        M,
        NUM_KV_HEADS,
        D,
        BLOCK_D,
        PAGE,
        FP8,
        UPCAST,
    )
    partial = ((request.to(tl.int64) * SHORT + tokens) * NUM_HEADS + heads) * SPLITS + split
    tl.store(sums + partial, sum, mask=valid)
    tl.store(means + partial[:, None] * D + dims[None, :], mean, mask=valid[:, None] & in_head)


@triton.jit
def _join_kernel(
    means,
    sums,
    offsets,
    out,
    num_requests,
    num_tokens,
    SHORT: tl.constexpr,
    SPLITS: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
    BLOCK_S: tl.constexpr,
    NUM_HEADS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PAGE: tl.constexpr,
):
    """Joins one row's splits. Program i also clears row i of the output if it belongs to no request."""
    program = tl.program_id(0)
    head = tl.program_id(1)
    dims = tl.arange(0, BLOCK_D)
    in_head = dims < D
    if program < num_tokens and program >= tl.load(offsets + num_requests):
        empty = tl.zeros([BLOCK_D], tl.float32).to(out.dtype.element_ty)
        tl.store(out + (program.to(tl.int64) * NUM_HEADS + head) * D + dims, empty, mask=in_head)
    request = program // SHORT
    if request >= num_requests:
        return
    token = program % SHORT
    start, count, length = _request(offsets, request, num_requests)
    if count > SHORT or token >= count:
        return
    size = _split_pages(length - count + 1, PAGE, MAX_SPLITS)
    used = tl.minimum(tl.cdiv(tl.cdiv(length, PAGE), size), SPLITS)
    splits = tl.arange(0, BLOCK_S)
    partial = (program.to(tl.int64) * NUM_HEADS + head) * SPLITS + splits
    here = splits < used
    log_sums = tl.load(sums + partial, mask=here, other=float("-inf"))
    highest = tl.max(log_sums, 0)
    weights = tl.exp2(log_sums - tl.where(highest == float("-inf"), 0.0, highest))
    parts = tl.load(means + partial[:, None] * D + dims[None, :], mask=here[:, None] & in_head[None, :], other=0.0)
    total = tl.sum(weights, 0)
    joined = tl.sum(parts * weights[:, None], 0) / tl.where(total == 0.0, 1.0, total)
    tl.store(out + ((start + token) * NUM_HEADS + head) * D + dims, rounded(joined, out.dtype.element_ty), mask=in_head)


@triton.jit
def _tile_kernel(
    queries,
    kv,
    scales,
    offsets,
    page_table,
    out,
    num_requests,
    kv_stride,
    scale_stride,
    table_stride,
    scale,
    SHORT: tl.constexpr,
    LONG: tl.constexpr,
    M: tl.constexpr,
    G: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PAGE: tl.constexpr,
    FP8: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """One block of queries of one request for one KV head. Request r has room for blocks from query_starts[r] // B + r on.

    Requests of up to SHORT new tokens, and of LONG and more, are not its.
    """
    kv_head = tl.program_id(0)
    block = tl.program_id(1)
    B: tl.constexpr = M // G
    low = block * 0
    high = low + num_requests
    while high - low > 1:  # the last request whose blocks start at or before this one
        middle = (low + high) // 2
        if tl.load(offsets + middle) // B + middle <= block:
            low = middle
        else:
            high = middle
    request = low
    start, count, length = _request(offsets, request, num_requests)
    first = (block - start // B - request).to(tl.int32) * B
    if count <= SHORT or count >= LONG or first >= count or length <= 0:
        return
    before = length - count
    rows = tl.arange(0, M)
    tokens = first + rows // G
    heads = kv_head * G + rows % G
    valid = (rows < B * G) & (tokens < count)
    dims = tl.arange(0, BLOCK_D)
    in_head = (dims < D)[None, :]
    place = ((start + tokens) * (G * NUM_KV_HEADS) + heads)[:, None] * D + dims[None, :]
    q = tl.load(queries + place, mask=valid[:, None] & in_head, other=0.0)
    row_positions = tl.where(valid, before + tokens, before + first)
    last = before + tl.minimum(first + B, count)
    mean, _ = _attend(
        q,
        kv,
        scales,
        page_table + request.to(tl.int64) * table_stride,
        kv_head,
        0,
        tl.cdiv(last, PAGE),
        row_positions,
        kv_stride,
        scale_stride,
        scale,
        M,
        NUM_KV_HEADS,
        D,
        BLOCK_D,
        PAGE,
        FP8,
        UPCAST,
    )
    tl.store(out + place, rounded(mean, out.dtype.element_ty), mask=valid[:, None] & in_head)


def paged_attention(
    queries: Tensor,
    kv: KVLayer,
    batch: PagedBatch,
    *,
    scale: float,
) -> Tensor:
    """Attention of each request's new tokens over its pages: queries [T, Hq, D] -> [T, Hq, D].

    kv [pages, 2, Hkv, 64, D], one of the batch's layers, already holds the new tokens. The bounds of a static batch are upper bounds, so a
    graph can replay with other lengths. Rows of a request whose KV length is 0, and rows behind the last request, are zeros. Nothing is
    read back by the host.
    """
    offsets, page_table, num_requests = batch.offsets, batch.page_table, batch.num_requests
    max_kv_len = batch.max_kv_len
    data = kv_tensors(kv)[0]
    num_tokens, num_heads, head_dim = queries.shape
    num_kv_heads = data.shape[2]
    group = num_heads // num_kv_heads
    if group * num_kv_heads != num_heads or group > _SPLIT_ROWS or data.shape[3:] != (PAGE_SIZE, head_dim) or not data[0].is_contiguous():
        raise ValueError(f"queries {tuple(queries.shape)} do not fit pages {tuple(data.shape)}")
    if not queries.is_contiguous() or page_table.stride(1) != 1:
        raise ValueError("queries or rows of the page table are not contiguous")
    if max_kv_len > page_table.shape[1] * PAGE_SIZE:
        raise ValueError(f"{max_kv_len} positions do not fit {page_table.shape[1]} pages")
    if not num_tokens or not num_requests:
        return torch.zeros_like(queries)
    short = _SPLIT_ROWS // group  # requests of up to so many new tokens are split, in whatever company
    kinds = _kinds(queries, batch, short)
    if kinds.fused == [0] and num_requests == 1 and batch.query_starts[1] == num_tokens:
        return chunk_attention(queries, kv, length=max_kv_len, pages=page_table[0], scale=scale)
    # Only the join clears rows of no request, and only where it has a program for each row.
    out = torch.empty_like(queries) if kinds.most_split and not kinds.tiled and not kinds.fused else torch.zeros_like(queries)
    for r in kinds.fused:
        rows = slice(batch.query_starts[r], batch.query_starts[r + 1])
        out[rows] = chunk_attention(queries[rows], kv, length=batch.kv_lengths[r], pages=page_table[r], scale=scale)
    fp8 = isinstance(kv, Fp8KV)
    scales = kv.scales if isinstance(kv, Fp8KV) else data
    pages = data.view(torch.uint8) if fp8 else data
    block_d = max(16, triton.next_power_of_2(head_dim))
    meta = {
        "G": group,
        "NUM_KV_HEADS": num_kv_heads,
        "D": head_dim,
        "BLOCK_D": block_d,
        "PAGE": PAGE_SIZE,
        "FP8": fp8,
        "UPCAST": INTERPRETED,
    }
    strides = (data.stride(0), scales.stride(0), page_table.stride(0), scale * _LOG2_E)
    rows_each, splits = kinds.most_split, min(_MAX_SPLITS, -(-max_kv_len // PAGE_SIZE))
    if rows_each and splits:
        means = torch.empty(num_requests * rows_each, num_heads, splits, head_dim, dtype=torch.float32, device=queries.device)
        sums = torch.empty(num_requests * rows_each, num_heads, splits, dtype=torch.float32, device=queries.device)
        _split_kernel[(splits, num_kv_heads, num_requests)](
            queries,
            pages,
            scales,
            offsets,
            page_table,
            means,
            sums,
            num_requests,
            *strides,
            SHORT=rows_each,
            M=max(16, triton.next_power_of_2(rows_each * group)),
            SPLITS=splits,
            MAX_SPLITS=_MAX_SPLITS,
            **meta,
            num_warps=4,
            num_stages=3,
        )
        _join_kernel[(max(num_requests * rows_each, 0 if kinds.tiled or kinds.fused else num_tokens), num_heads)](
            means,
            sums,
            offsets,
            out,
            num_requests,
            num_tokens,
            SHORT=rows_each,
            SPLITS=splits,
            MAX_SPLITS=_MAX_SPLITS,
            BLOCK_S=triton.next_power_of_2(splits),
            NUM_HEADS=num_heads,
            D=head_dim,
            BLOCK_D=block_d,
            PAGE=PAGE_SIZE,
            num_warps=4,
        )
    elif rows_each:
        out.zero_()
    if kinds.tiled:
        most_rows, num_warps = _TILE_ON_HIP if limits(queries.device).is_hip else _TILE
        tile = max(most_rows, triton.next_power_of_2(group))
        grid = (num_kv_heads, num_tokens // (tile // group) + num_requests)
        _tile_kernel[grid](
            queries,
            pages,
            scales,
            offsets,
            page_table,
            out,
            num_requests,
            *strides,
            SHORT=short,
            LONG=_SDPA_QUERIES if kinds.fused else 1 << 30,
            M=tile,
            **meta,
            num_warps=num_warps,
            num_stages=2,
        )
    return out


class _Kinds(NamedTuple):
    """Which requests of a batch take which way."""

    most_split: int
    """Rows that the split kernel has for a request; 0 where there is none for it."""
    tiled: bool
    """Whether the tile kernel has any."""
    fused: list[int]
    """Requests of torch's fused attention."""


def _kinds(queries: Tensor, batch: PagedBatch, short: int) -> _Kinds:
    """By each request's new tokens; where the host does not know them, by their bound, and none is fused."""
    counts = batch.query_lengths
    if counts is None:
        return _Kinds(min(short, batch.max_query_len), batch.max_query_len > short, [])
    fused = [r for r, count in enumerate(counts) if count >= _SDPA_QUERIES] if _has_fused_attention(queries) else []
    longest = _SDPA_QUERIES if fused else batch.max_query_len + 1
    return _Kinds(max((n for n in counts if n <= short), default=0), any(short < n < longest for n in counts), fused)


@triton.jit
def _gather_kernel(
    kv,
    scales,
    pages,
    out,
    num_pages,
    kv_stride,
    scale_stride,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PAGE: tl.constexpr,
    FP8: tl.constexpr,
):
    """One page's keys or values of one head: out [2, Hkv, num_pages * 64, D]."""
    page = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)  # keys of all heads, then values
    rows = tl.arange(0, PAGE)
    dims = tl.arange(0, BLOCK_D)
    mask = (rows < PAGE)[:, None] & (dims < D)[None, :]
    index = tl.load(pages + page).to(tl.int64)
    values = tl.load(kv + index * kv_stride + (part * PAGE + rows)[:, None] * D + dims[None, :], mask=mask, other=0)
    if FP8:
        scale = tl.load(scales + index * scale_stride + part * PAGE + rows)
        values = decoded(values, tl.float32) * scale[:, None]
    else:
        values = values.to(tl.float32)
    place = (part * num_pages + page) * PAGE + rows
    tl.store(out + place[:, None] * D + dims[None, :], rounded(values, out.dtype.element_ty), mask=mask)


def chunk_attention(queries: Tensor, kv: KVLayer, *, length: int, pages: Tensor, scale: float) -> Tensor:
    """One request's last T of `length` positions through torch's fused attention over K and V gathered from `pages` [P]: -> [T, Hq, D].

    The gathered copy is 4 KB per position for 8 KV heads of 128, written and read once per chunk and layer: at 8K about 20 us beside
    the 2 ms of products, at 128K half a gigabyte that the layer gives back.
    """
    data = kv_tensors(kv)[0]
    num_pages, num_kv_heads, head_dim = -(-length // PAGE_SIZE), data.shape[2], data.shape[4]
    fp8 = isinstance(kv, Fp8KV)
    scales = kv.scales if isinstance(kv, Fp8KV) else data
    gathered = torch.empty(2, num_kv_heads, num_pages * PAGE_SIZE, head_dim, dtype=queries.dtype, device=queries.device)
    _gather_kernel[(num_pages, 2 * num_kv_heads)](
        data.view(torch.uint8) if fp8 else data,
        scales,
        pages,
        gathered,
        num_pages,
        data.stride(0),
        scales.stride(0),
        D=head_dim,
        BLOCK_D=max(16, triton.next_power_of_2(head_dim)),
        PAGE=PAGE_SIZE,
        FP8=fp8,
    )
    keys, values = gathered[:, None, :, :length]
    mask = causal_lower_right(queries.shape[0], length)
    out = F.scaled_dot_product_attention(queries.transpose(0, 1)[None], keys, values, attn_mask=mask, scale=scale, enable_gqa=True)
    return out[0].transpose(0, 1).contiguous()


def _has_fused_attention(queries: Tensor) -> bool:
    """NVIDIA from sm_80 on; elsewhere torch would write out all scores."""
    return limits(queries.device).capability >= (8, 0) and queries.dtype in (torch.float16, torch.bfloat16)
