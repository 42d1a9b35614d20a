"""What the GPU can do at best: reading and copying memory, products, one node of a graph behind another, fused attention against ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from openglm.bench.gpu.figures import Values
from openglm.bench.gpu.place import Place
from openglm.bench.gpu.plan import CEILING
from openglm.bench.gpu.run import Case
from openglm.ops import FP8, PAGE_SIZE, PagedBatch

_GB = 1_000_000_000
_HEADS, _KV_HEADS, _HEAD_DIM = 96, 8, 128


def reading(place: Place) -> Case:
    """Bytes per second of a kernel that only reads, and of torch's sum, whichever is faster; of 8 GB, or of what is free."""

    def measure() -> Values:
        from openglm.bench.gpu.probes import reader

        size = 1 << 20 if place.rehearsal else min(8 * _GB, place.free_bytes() // 4)
        memory = torch.ones(size // 4, dtype=torch.int32, device=place.device)
        found = [place.seconds(reader(memory)), place.seconds(lambda: memory.view(torch.float32).sum())]
        seconds = min(found)
        return {"s": seconds, "gb_per_s": memory.nbytes / seconds / 1e9, "by_sum_gb_per_s": memory.nbytes / found[1] / 1e9}

    return Case(CEILING, measure)


def cases(place: Place, known: dict[str, Values]) -> Iterator[Case]:
    """In the order of their worth."""
    yield reading(place)
    yield Case("copy bandwidth", partial(_copying, place))
    width = 64 if place.rehearsal else 8192
    yield Case(f"bf16 product, {width} cubed", partial(_product, place, width))
    yield Case(f"fp8 product, {width} cubed, scales per row", partial(_fp8_product, place, width))
    yield Case("a node of a graph", partial(_nodes, place, early=False))
    if place.starts_early:
        yield Case("a node of a graph, started early", partial(_nodes, place, early=True))
    for length in (128, 200) if place.rehearsal else (8192, 32768):
        yield Case(f"attention, {length} tokens, ours", partial(_attention, place, length, ours=True))
        yield Case(f"attention, {length} tokens, from pages", partial(_attention, place, length, ours=True, gathered=True))
        for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION):
            name = f"attention, {length} tokens, {backend.name.partition('_')[0].lower()}"
            yield Case(name, partial(_attention, place, length, backend=backend))


def _copying(place: Place) -> Values:
    size = 1 << 20 if place.rehearsal else min(8 * _GB, place.free_bytes() // 4)
    source = torch.ones(size // 4, dtype=torch.int32, device=place.device)
    target = torch.empty_like(source)
    seconds = place.seconds(lambda: target.copy_(source))
    return {"s": seconds, "gb_per_s": 2 * source.nbytes / seconds / 1e9}


def _product(place: Place, width: int) -> Values:
    left, right = (torch.randn(width, width, device=place.device).bfloat16() for _ in range(2))
    return _rate(place, lambda: left @ right.t(), 2 * width**3)


def _fp8_product(place: Place, width: int) -> Values:
    left, right = (torch.randn(width, width, device=place.device).to(FP8) for _ in range(2))
    scales = torch.ones(width, 1, device=place.device)

    def run() -> object:
        if place.rehearsal:
            return left.bfloat16() @ right.bfloat16().t()
        return torch._scaled_mm(left, right.t(), scales, scales.t(), out_dtype=torch.bfloat16, use_fast_accum=True)

    return _rate(place, run, 2 * width**3)


def _nodes(place: Place, *, early: bool) -> Values:
    """Between a kernel's start and that of the next in a chain, where each needs the one before."""
    from openglm.bench.gpu.probes import chain

    length = 10 if place.rehearsal else 1000
    run, counter = chain(length, place.device, early=early)
    run()
    place.synchronize()
    if int(counter) != length:
        raise ValueError(f"{int(counter)} of {length} kernels saw the result of the one before")
    return {"s": place.seconds(run) / length}


def _attention(place: Place, length: int, *, ours: bool = False, gathered: bool = False, backend: SDPBackend | None = None) -> Values:
    """Causal, one prompt from its beginning."""
    heads, kv_heads, dim = (4, 2, 16) if place.rehearsal else (_HEADS, _KV_HEADS, _HEAD_DIM)
    device, flops = place.device, 2 * length * length * heads * dim
    queries = torch.randn(length, heads, dim, device=device).bfloat16()
    if ours:
        from openglm.ops.triton.attention import paged_attention

        pages = -(-length // PAGE_SIZE)
        kv = torch.randn(pages, 2, kv_heads, PAGE_SIZE, dim, device=device).bfloat16()
        table = torch.randperm(pages, device=device)[None]
        offsets = torch.tensor([0, length, length], device=device)

        batch = PagedBatch.static(offsets=offsets, max_query_len=length, max_kv_len=length, page_table=table, slots=offsets[:0], kv=(kv,))

        def attend() -> object:
            return paged_attention(queries, kv, batch, scale=dim**-0.5)

        return _rate(place, attend, flops)
    keys, values = (torch.randn(1, kv_heads, length, dim, device=device).bfloat16() for _ in range(2))

    def run() -> object:
        return F.scaled_dot_product_attention(queries.transpose(0, 1)[None], keys, values, is_causal=True, enable_gqa=True)

    if backend is None or place.rehearsal:
        return _rate(place, run, flops)
    with sdpa_kernel([backend]):
        return _rate(place, run, flops)


def _rate(place: Place, run: Callable[[], object], flops: float) -> Values:
    seconds = place.seconds(run)
    return {"s": seconds, "tflops": flops / seconds / 1e12}
