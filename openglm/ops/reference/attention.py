"""Causal grouped-query attention over paged KV (inference) and over whole documents (training).

Shape legend: T tokens of the step, R requests, Hq query heads, Hkv key/value heads, G = Hq / Hkv, D head dim, P pages of 64 slots.
Query head h reads key/value head h // G. Softmax is fp32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from openglm.ops.reference.fp8_kv import Fp8KV, dequantize_kv, quantize_kv
from openglm.ops.reference.linear import pad_rows

PAGE_SIZE = 64  # tokens per KV page, everywhere
KVLayer = Tensor | Fp8KV
"""One layer's pages: a tensor [pages, 2, Hkv, 64, D], or such a tensor in fp8 with its scales."""

_QUERY_BLOCK = 32


class Bucket(NamedTuple):
    """Documents of similar length in a dense batch, laid out as rows of `width` cells."""

    tokens: Tensor  # [m] int64, indices into the batch, document by document
    cells: Tensor  # [m] int64, where each of them lies in the grid [num_documents * width]
    num_documents: int
    width: int


def kv_tensors(kv: KVLayer) -> tuple[Tensor, ...]:
    """Every tensor that holds a part of the layer's pages, with the pages as first dim."""
    return (kv,) if isinstance(kv, Tensor) else (kv.data, kv.scales)


def write_kv(kv: KVLayer, slots: Tensor, keys: Tensor, values: Tensor) -> None:
    """Store keys and values [T, Hkv, D] of the step's tokens at `slots` [T] (page * 64 + offset) of kv [pages, 2, Hkv, 64, D]."""
    pages, offsets = slots // PAGE_SIZE, slots % PAGE_SIZE
    if isinstance(kv, Fp8KV):
        for i, vectors in enumerate((keys, values)):
            kv.data[pages, i, :, offsets], kv.scales[pages, i, :, offsets] = quantize_kv(vectors)
        return
    kv[pages, 0, :, offsets] = keys.to(kv.dtype)
    kv[pages, 1, :, offsets] = values.to(kv.dtype)


def paged_attention(
    queries: Tensor,
    kv: KVLayer,
    *,
    query_starts: Sequence[int],
    kv_lengths: Sequence[int],
    page_table: Tensor,
    scale: float,
    row_tile: int | None = None,
) -> Tensor:
    """Attention of each request's new tokens over its pages: queries [T, Hq, D] -> [T, Hq, D].

    kv [pages, 2, Hkv, 64, D] already holds the new tokens. Request r owns query rows query_starts[r]:query_starts[r+1], its
    KV length after this step is kv_lengths[r], and its pages in order are page_table[r].
    """
    outputs = []
    for r, length in enumerate(kv_lengths):
        rows = queries[query_starts[r] : query_starts[r + 1]]
        own_pages = _read_pages(kv, page_table[r, : -(-length // PAGE_SIZE)], queries.dtype)  # [P, 2, Hkv, 64, D]
        if row_tile is None:
            outputs.append(_attend_whole(rows, own_pages, length, scale))
            continue
        before = length - rows.shape[0]
        for start in range(0, rows.shape[0], _QUERY_BLOCK):  # a block of queries need not look at the pages behind it
            block = rows[start : start + _QUERY_BLOCK]
            end = before + start + block.shape[0]
            outputs.append(_attend_by_page(block, own_pages[: -(-end // PAGE_SIZE)], end, scale, row_tile))
    return torch.cat(outputs)


def _read_pages(kv: KVLayer, pages: Tensor, dtype: torch.dtype) -> Tensor:
    if isinstance(kv, Fp8KV):
        return dequantize_kv(kv.data[pages], kv.scales[pages], dtype)
    return kv[pages].to(dtype)


def _attend_whole(queries: Tensor, pages: Tensor, length: int, scale: float) -> Tensor:
    """One request, one call of torch's attention."""
    keys, values = pages.movedim(0, 2).flatten(2, 3)[:, :, :length]  # [Hkv, length, D] each
    num_queries = queries.shape[0]
    mask = None
    if num_queries > 1:
        mask = torch.ones(num_queries, length, dtype=torch.bool, device=queries.device).tril(length - num_queries)
    out = F.scaled_dot_product_attention(
        queries.transpose(0, 1)[None], keys[None], values[None], attn_mask=mask, scale=scale, enable_gqa=True
    )
    return out[0].transpose(0, 1)


def _attend_by_page(queries: Tensor, pages: Tensor, length: int, scale: float, row_tile: int) -> Tensor:
    """One request with every product on [row_tile, D] x [D, 64] and pages added up in order.

    A page that a row may not see adds exactly zero, so the result of a row depends only on the row and the pages before it.
    """
    num_queries, num_heads, head_dim = queries.shape
    num_pages, _, num_kv_heads = pages.shape[:3]
    group = num_heads // num_kv_heads
    rows = queries.view(num_queries, num_kv_heads, group, head_dim).transpose(1, 2).reshape(-1, num_kv_heads, head_dim)
    tiles = pad_rows(rows, row_tile).view(-1, row_tile, num_kv_heads, head_dim).transpose(1, 2)  # [N, Hkv, tile, D]
    num_tiles = tiles.shape[0]
    slot_positions = torch.arange(num_pages * PAGE_SIZE, device=queries.device)
    unused = (slot_positions >= length).view(num_pages, 1, PAGE_SIZE, 1)
    keys, values = pages[:, 0], pages[:, 1].masked_fill(unused, 0)  # [P, Hkv, 64, D]; what a former owner left may be NaN
    shape = (num_tiles, num_pages, num_kv_heads)
    left = tiles[:, None].expand(*shape, row_tile, head_dim).reshape(-1, row_tile, head_dim)
    right = keys[None].expand(*shape, PAGE_SIZE, head_dim).reshape(-1, PAGE_SIZE, head_dim)
    scores = torch.bmm(left, right.transpose(1, 2)).view(*shape, row_tile, PAGE_SIZE).float() * scale
    row_positions = length - num_queries + torch.arange(num_tiles * row_tile, device=queries.device) // group
    hidden = slot_positions.view(1, num_pages, 1, 1, PAGE_SIZE) > row_positions.view(num_tiles, 1, 1, row_tile, 1)
    scores = scores.masked_fill(hidden, float("-inf"))
    highest = scores.amax(dim=(1, 4), keepdim=True)
    weights = (scores - highest).double().exp()
    totals = weights.sum(-1, keepdim=True).cumsum(1)[:, -1]  # [N, Hkv, tile, 1]
    narrow = weights.to(queries.dtype).view(-1, row_tile, PAGE_SIZE)
    wide_values = values[None].expand(*shape, PAGE_SIZE, head_dim).reshape(-1, PAGE_SIZE, head_dim)
    parts = torch.bmm(narrow, wide_values).view(*shape, row_tile, head_dim)
    out = (parts.double().cumsum(1)[:, -1] / totals).to(queries.dtype)  # [N, Hkv, tile, D]
    out = out.transpose(1, 2).reshape(-1, num_kv_heads, head_dim)[: num_queries * group]
    return out.view(num_queries, group, num_kv_heads, head_dim).transpose(1, 2).reshape(num_queries, num_heads, head_dim)


def dense_attention(queries: Tensor, keys: Tensor, values: Tensor, *, buckets: Sequence[Bucket], scale: float) -> Tensor:
    """Causal attention inside each document, differentiable: queries [T, Hq, D], keys and values [T, Hkv, D] -> [T, Hq, D].

    Documents of similar length run together, so the work is the sum of squared document lengths, not of the packed batch.
    """
    group = queries.shape[1] // keys.shape[1]
    pieces = []
    for bucket in buckets:
        shape = (bucket.num_documents * keys.shape[1], -1, queries.shape[2])
        q, k, v = (_lay_out(x, bucket).reshape(shape) for x in (queries, keys, values))  # [n * Hkv, G * L or L, D]
        future = torch.full((bucket.width, bucket.width), float("-inf"), dtype=q.dtype, device=q.device).triu(1)
        scores = torch.baddbmm(future.repeat(group, 1), q, k.transpose(1, 2), alpha=scale)
        out = torch.bmm(scores.softmax(-1), v).view(bucket.num_documents, -1, bucket.width, queries.shape[2])
        pieces.append(out.transpose(1, 2).flatten(0, 1).index_select(0, bucket.cells))
    order = torch.cat([bucket.tokens for bucket in buckets]).argsort()
    return torch.cat(pieces).index_select(0, order)


def _lay_out(x: Tensor, bucket: Bucket) -> Tensor:
    """Tokens of the bucket's documents as rows of equal length: x [T, heads, D] -> [n, heads, L, D], zeros behind a document's end."""
    grid = x.new_zeros(bucket.num_documents * bucket.width, *x.shape[1:])
    grid = grid.index_copy(0, bucket.cells, x.index_select(0, bucket.tokens))
    return grid.view(bucket.num_documents, bucket.width, *x.shape[1:]).transpose(1, 2)
