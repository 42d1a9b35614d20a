"""Every Triton kernel at the shapes of GLM-4.5-Air and GLM-4.5: checked against the reference first, then timed.

One case is one operation with one format of weights. It is checked at all numbers of rows, with new inputs each time and with memory that
is NaN until it is written; if it is off by more than 1 % anywhere, the case has failed and is not timed. Times are those of a CUDA graph
over as many copies of the weights as no cache holds.

Expected values are computed in fp32 from the weights as they are stored (attention: fp64; RoPE and KV: the reference in bf16, whose
roundings are part of what e4m3 codes are made from).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from openglm.bench.gpu.byte_model import expected_hit
from openglm.bench.gpu.ceilings import reading
from openglm.bench.gpu.checks import MAX_ERROR, poisoned, row_error, share_unequal
from openglm.bench.gpu.figures import Values
from openglm.bench.gpu.place import Place, repeated
from openglm.bench.gpu.plan import CEILING
from openglm.bench.gpu.run import Case
from openglm.bench.gpu.weights import random_kv, random_matrix
from openglm.config import ModelConfig, variant
from openglm.engine.request import SamplingParams
from openglm.engine.sampler import filtered_probabilities
from openglm.ops import FP8, PAGE_SIZE, Fp8KV, KVLayer, PagedBatch, dequantize_kv, kv_tensors, quantize_kv, reference, rope_table, swiglu
from openglm.ops.triton.matrix import DeviceMatrix

_ROWS = (1, 2, 3, 4, 7, 8, 16, 33, 128)
_TIMED_ROWS = (1, 8, 128)
_PROMPT_ROWS = 2048  # of a chunk: experts have tiles of their own for it, and rows of FP8 layers are rounded
_COLD_BYTES = 512 << 20
_MOST_COPIES = 64
_MODELS = {"air": ("glm-4.5-air", "tiny-air"), "4.5": ("glm-4.5", "tiny-355b")}


@dataclass(frozen=True)
class Operation:
    """A kernel with its weights: `error(rows)` checks it on new inputs, `timed(rows)` makes a call to time and says what it reads."""

    error: Callable[[int], float]
    timed: Callable[[int], Timed]


@dataclass(frozen=True)
class Timed:
    """A call that runs an operation `times` times; bytes and operations are of one."""

    run: Callable[[], object]
    times: int
    num_bytes: float
    flops: float


def cases(place: Place, known: dict[str, Values]) -> Iterator[Case]:
    """Both models, what costs the most first."""
    yield reading(place)
    rows, timed = ((1, 3, 17), (1,)) if place.rehearsal else (_ROWS, _TIMED_ROWS)
    for name, (full, small) in _MODELS.items():
        config = variant(small if place.rehearsal else full)
        for operation, make in _operations(config, place):
            yield Case(f"{name}: {operation}", partial(measure, place, make, rows, timed, known))
        prompt = (20,) if place.rehearsal else (_PROMPT_ROWS,)
        for fp8 in (True, False):
            make = partial(_experts, config, place, fp8=fp8)
            yield Case(f"{name}: experts of a chunk, {'fp8' if fp8 else 'bf16'}", partial(measure, place, make, prompt, prompt, known))
        make = partial(_linear, place, config.hidden_size, config.query_dim, fp8=True, quantize_activations=True)
        yield Case(f"{name}: o of a chunk, rounded rows", partial(measure, place, make, prompt, prompt, known))


@torch.inference_mode()
def measure(
    place: Place, make: Callable[[], Operation], rows: Sequence[int], timed_rows: Sequence[int], known: dict[str, Values]
) -> Values:
    """The largest error, and seconds by number of rows. The interpreter cuts bf16 off where a GPU rounds, so twice the error is allowed."""
    operation, allowed, worst = make(), MAX_ERROR * (1 + place.rehearsal), 0.0
    for count in rows:
        error = operation.error(count)
        if not error <= allowed:
            raise ValueError(f"wrong with {count} rows: the error is {error:.2g}, and {allowed:g} is allowed")
        worst = max(worst, error)
    values: Values = {"error": worst}
    for count in timed_rows:
        timed = operation.timed(count)
        seconds = place.seconds(timed.run, at_most_s=0.15) / timed.times
        values[f"s_{count}"] = seconds
        rate = timed.num_bytes / seconds
        values[f"gb_per_s_{count}"] = rate / 1e9
        values[f"tflops_{count}"] = timed.flops / seconds / 1e12
        if CEILING in known:
            values[f"of_ceiling_{count}"] = rate / (1e9 * known[CEILING]["gb_per_s"])
    return values


def _operations(config: ModelConfig, place: Place) -> Iterator[tuple[str, Callable[[], Operation]]]:
    hidden, query, qkv = config.hidden_size, config.query_dim, config.query_dim + 2 * config.kv_dim
    for fp8 in (True, False):
        format = "fp8" if fp8 else "bf16"
        yield f"experts, {format}", partial(_experts, config, place, fp8=fp8)
        for name, n, k in (
            ("qkv", qkv, hidden),
            ("o", hidden, query),
            ("dense gate_up", 2 * config.intermediate_size, hidden),
            ("dense down", hidden, config.intermediate_size),
        ):
            yield f"{name}, {format}", partial(_linear, place, n, k, fp8=fp8)
    yield "head, bf16", partial(_linear, place, config.vocab_size, hidden, fp8=False, logits=True)
    yield "eh_proj, bf16", partial(_linear, place, hidden, 2 * hidden, fp8=False)
    short, long = (70, 200) if place.rehearsal else (1024, 32767)
    for fp8 in (True, False):
        format = "fp8 KV" if fp8 else "bf16 KV"
        for rows_each in (1, 2, 3, 4):
            name = f"attention, {rows_each} new, {short} tokens, {format}"
            yield name, partial(_attention, config, place, short, rows_each, fp8=fp8)
        yield f"attention, 1 new, {long} tokens, {format}", partial(_attention, config, place, long, 1, fp8=fp8, most=4)
        chunk = 30 if place.rehearsal else 515
        name = f"attention, {chunk} new, {short} tokens, {format}"
        yield name, partial(_attention, config, place, short, chunk, fp8=fp8, most=3)
        yield f"RoPE and {format}", partial(_rope, config, place, fp8=fp8)
    yield "router", partial(_router, config, place)
    yield "RMSNorm", partial(_norm, config, place, add=False)
    yield "add and RMSNorm", partial(_norm, config, place, add=True)
    yield "sampling", partial(_sampling, config, place)


def _fresh(place: Place) -> torch.Generator:
    """New numbers for every check."""
    generator = torch.Generator(place.device)
    generator.seed()
    return generator


def _normal(place: Place, *shape: int, generator: torch.Generator | None = None) -> Tensor:
    return torch.empty(shape, device=place.device).normal_(generator=generator or _fresh(place)).bfloat16()


def _matrix(place: Place, n: int, k: int, *, fp8: bool) -> DeviceMatrix:
    matrix = DeviceMatrix.empty(n, k, FP8 if fp8 else torch.bfloat16, place.device)
    random_matrix(matrix, _fresh(place))
    return matrix


def _wide(data: Tensor, scales: Tensor | None) -> Tensor:
    """fp32 of a stored weight [..., N, K]."""
    return data.float() if scales is None else data.float() * scales.unsqueeze(-1)


def _copies(place: Place, num_bytes: float) -> int:
    """As many as no cache holds."""
    return 2 if place.rehearsal else int(max(1, min(_MOST_COPIES, -(-_COLD_BYTES // num_bytes))))


def _linear(place: Place, n: int, k: int, *, fp8: bool, logits: bool = False, quantize_activations: bool = False) -> Operation:
    from openglm.ops.triton.linear import DeviceLinear

    num_bytes = n * k * (1 if fp8 else 2)
    matrices = [_matrix(place, n, k, fp8=fp8) for _ in range(_copies(place, num_bytes))]
    linears = [DeviceLinear(matrix.data, scales=matrix.scales, quantize_activations=quantize_activations) for matrix in matrices]

    def run(linear: DeviceLinear, x: Tensor) -> Tensor:
        return linear.logits(x) if logits else linear(x)

    def error(rows: int) -> float:
        x, residual = _normal(place, rows, k), _normal(place, rows, n)
        rounded = dequantize_kv(*quantize_kv(x), torch.float32) if linears[0].rounds(rows, x.dtype) else x.float()
        wide = rounded @ _wide(matrices[0].data, matrices[0].scales).t()
        with poisoned():
            found = run(linears[0], x)
            added = None if logits else linears[0](x, residual)
        return max(row_error(found, wide), 0.0 if added is None else row_error(added, wide + residual.float()))

    def timed(rows: int) -> Timed:
        x = _normal(place, rows, k)
        return Timed(lambda: [run(linear, x) for linear in linears], len(linears), num_bytes, 2 * rows * n * k)

    return Operation(error, timed)


def _experts(config: ModelConfig, place: Place, *, fp8: bool) -> Operation:
    from openglm.ops.triton.experts import DeviceExperts

    hidden, width, shared = config.hidden_size, config.moe_intermediate_size, config.n_shared_experts
    count, chosen = config.n_routed_experts, config.num_experts_per_tok
    gate_up = _matrix(place, (count + shared) * 2 * width, hidden, fp8=fp8)
    down = _matrix(place, (count + shared) * hidden, width, fp8=fp8)

    def stacked(rows: Tensor) -> Tensor:
        return rows.view(count + shared, -1, *rows.shape[1:])

    router = (_normal(place, count, hidden).float() * hidden**-0.5).bfloat16()
    stacks = [(stacked(matrix.data), None if matrix.scales is None else stacked(matrix.scales)) for matrix in (gate_up, down)]
    experts = DeviceExperts(
        *(data for data, _ in stacks),
        *(scales for _, scales in stacks),
        router=router,
        router_bias=torch.zeros(count, device=place.device),
        num_experts_per_tok=chosen,
        norm_topk_prob=config.norm_topk_prob,
        scaling=config.routed_scaling_factor,
        num_shared=shared,
    )

    def error(rows: int) -> float:
        x, residual = _normal(place, rows, hidden), _normal(place, rows, hidden)
        ids, weights = experts.choose(x)  # whose own check is another case: here a near tie must not count
        total = residual.float()
        for expert in ids.unique().tolist():
            own_rows, places = (ids == expert).nonzero(as_tuple=True)
            first, second = (_wide(data[expert], None if scales is None else scales[expert]) for data, scales in stacks)
            out = swiglu(x[own_rows].float() @ first.t()) @ second.t()
            total.index_add_(0, own_rows, out * weights[own_rows, places].unsqueeze(1))
        with poisoned():
            found = experts(x, residual)
            alone = experts.routed(x, weights, ids)
        return max(row_error(found, total), row_error(alone, total - residual.float()))

    def timed(rows: int) -> Timed:
        inputs = [(_normal(place, rows, hidden), _normal(place, rows, hidden)) for _ in range(8)]
        expert = 3 * hidden * width
        num_bytes = expert * (expected_hit(count, chosen, rows) + shared) * (1 if fp8 else 2)
        flops = 2 * rows * expert * (chosen + shared)
        return Timed(lambda: [experts(x, residual) for x, residual in inputs], len(inputs), num_bytes, flops)

    return Operation(error, timed)


def _router(config: ModelConfig, place: Place) -> Operation:
    from openglm.ops.triton.router import route, tickets

    hidden, count = config.hidden_size, config.n_routed_experts
    weight = (_normal(place, count, hidden).float() * hidden**-0.5).bfloat16()
    bias = torch.empty(count, device=place.device).normal_(0, 0.1, generator=_fresh(place))
    settings: dict[str, Any] = {
        "num_experts_per_tok": config.num_experts_per_tok,
        "norm_topk_prob": config.norm_topk_prob,
        "scaling": config.routed_scaling_factor,
    }
    counters = tickets(place.device)
    seen: list[tuple[Tensor, Tensor]] = []

    def error(rows: int) -> float:
        x = _normal(place, rows, hidden)
        expected = reference.experts.route(x, weight, bias, **settings)
        with poisoned():
            ids, weights = route(x, weight, bias, **settings, num_shared=config.n_shared_experts, counters=counters)
        routed = ids[:, : config.num_experts_per_tok].long()
        seen.append((routed, expected.experts))
        same = (routed == expected.experts).all(-1)
        off = share_unequal(*(torch.cat(parts) for parts in zip(*seen, strict=True))) if len(seen) > 4 else 0.0  # near ties are rare
        return max(off, row_error(weights[same][:, : config.num_experts_per_tok], expected.weights[same]), 0.0 if bool(same.any()) else 1.0)

    def timed(rows: int) -> Timed:
        x = _normal(place, rows, hidden)
        call = repeated(lambda: route(x, weight, bias, **settings, num_shared=config.n_shared_experts, counters=counters), 16)
        return Timed(call, 16, weight.nbytes, 2 * rows * weight.numel())

    return Operation(error, timed)


def _norm(config: ModelConfig, place: Place, *, add: bool) -> Operation:
    from openglm.ops.triton.norm import add_rms_norm, rms_norm

    width, eps = config.hidden_size, config.rms_norm_eps
    weight = _normal(place, width)

    def error(rows: int) -> float:
        x, residual = _normal(place, rows, width), _normal(place, rows, width)
        total = (x.float() + residual.float()).bfloat16().float() if add else x.float()
        expected = reference.norm.rms_norm(total, weight.float(), eps)
        with poisoned():
            if not add:
                return row_error(rms_norm(x, weight, eps), expected)
            normed, summed = add_rms_norm(x, residual, weight, eps)
        return max(row_error(normed, expected), row_error(summed, total))

    def timed(rows: int) -> Timed:
        x, residual = _normal(place, rows, width), _normal(place, rows, width)
        run: Callable[[], object] = (lambda: add_rms_norm(x, residual, weight, eps)) if add else (lambda: rms_norm(x, weight, eps))
        return Timed(repeated(run, 16), 16, (4 if add else 2) * x.nbytes, 4 * x.numel())

    return Operation(error, timed)


def _pages(config: ModelConfig, place: Place, count: int, *, fp8: bool) -> KVLayer:
    shape = (count, 2, config.num_key_value_heads, PAGE_SIZE, config.head_dim)
    data = torch.empty(shape, dtype=FP8 if fp8 else torch.bfloat16, device=place.device)
    kv: KVLayer = Fp8KV(data, torch.empty(shape[:-1], device=place.device)) if fp8 else data
    random_kv([kv], _fresh(place))
    return kv


def _wide_pages(kv: KVLayer) -> Tensor:
    return dequantize_kv(kv.data, kv.scales, torch.float32) if isinstance(kv, Fp8KV) else kv.float()


def _rope(config: ModelConfig, place: Place, *, fp8: bool) -> Operation:
    from openglm.ops.triton.rope import rope_and_write

    heads, dim = config.num_attention_heads, config.head_dim
    norms = [_normal(place, dim) if config.use_qk_norm else None for _ in range(2)]
    table = rope_table(min(8192, config.max_position_embeddings), config.rotary_dim, config.rope_theta, place.device)
    width = (heads + 2 * config.num_key_value_heads) * dim
    settings: dict[str, Any] = {"num_heads": heads, "q_norm": norms[0], "k_norm": norms[1], "eps": config.rms_norm_eps}

    def places(rows: int) -> tuple[Tensor, Tensor, int]:
        pages = -(-rows // PAGE_SIZE) + 2
        slots = torch.randperm(pages * PAGE_SIZE, device=place.device)[:rows]
        return torch.randint(table.shape[0], (rows,), device=place.device), slots, pages

    def error(rows: int) -> float:
        qkv = _normal(place, rows, width)
        positions, slots, pages = places(rows)
        ours = _pages(config, place, pages, fp8=fp8)
        theirs: KVLayer = Fp8KV(ours.data.clone(), ours.scales.clone()) if isinstance(ours, Fp8KV) else ours.clone()
        expected = reference.rope.rope_and_write(qkv, rope=table[positions], slots=slots, kv=theirs, **settings)
        with poisoned():
            found = rope_and_write(qkv, rope_table=table, positions=positions, slots=slots, kv=ours, **settings)
        return max(row_error(found, expected), row_error(_wide_pages(ours), _wide_pages(theirs)))

    def timed(rows: int) -> Timed:
        qkv = _normal(place, rows, width)
        positions, slots, pages = places(rows)
        kv = _pages(config, place, pages, fp8=fp8)
        run = repeated(lambda: rope_and_write(qkv, rope_table=table, positions=positions, slots=slots, kv=kv, **settings), 16)
        return Timed(run, 16, 2 * qkv.nbytes, 4 * qkv.numel())

    return Operation(error, timed)


def _attention(config: ModelConfig, place: Place, context: int, rows_each: int, *, fp8: bool, most: int | None = None) -> Operation:
    """Sequences of up to `context` tokens, of uneven lengths when checked, with `rows_each` new tokens each; up to `most` of them."""
    from openglm.ops.triton.attention import paged_attention

    heads, dim, device = config.num_attention_heads, config.head_dim, place.device
    width = -(-context // PAGE_SIZE)

    def batch(lengths: list[int], counts: list[int]) -> dict[str, Any]:
        kv = _pages(config, place, len(lengths) * width, fp8=fp8)
        starts = [0, *itertools.accumulate(counts)]
        return {
            "queries": _normal(place, starts[-1], heads, dim),
            "kv": kv,
            "batch": PagedBatch(
                query_starts=starts,
                kv_lengths=lengths,
                page_table=torch.randperm(len(lengths) * width, device=device).view(len(lengths), width),
                slots=torch.empty(0, dtype=torch.int64, device=device),
                kv=(kv,),
            ),
            "scale": dim**-0.5,
        }

    def error(rows: int) -> float:
        count = rows if most is None else min(rows, most)
        lengths = torch.randint(rows_each, context + 1, (count,)).tolist()
        lengths[0] = context
        given = batch(lengths, [rows_each if i % 2 == 0 else max(1, rows_each - 1) for i in range(count)])
        for tensor in kv_tensors(given["kv"]) if not fp8 else ():  # behind a sequence's end lies what a former owner left
            last = given["batch"].page_table[0, -1]
            tensor[last, :, :, (context - 1) % PAGE_SIZE + 1 :] = float("nan")
        with poisoned():
            found = paged_attention(**given)
        return row_error(found, _expected_attention(**given))

    def timed(rows: int) -> Timed:
        count = rows if most is None else min(rows, most)
        given = batch([context] * count, [rows_each] * count)
        num_bytes = count * context * 2 * config.kv_dim * (1 if fp8 else 2)
        return Timed(repeated(lambda: paged_attention(**given), 4), 4, num_bytes, 4 * count * rows_each * context * heads * dim)

    return Operation(error, timed)


def _expected_attention(queries: Tensor, kv: KVLayer, batch: PagedBatch, *, scale: float) -> Tensor:
    """In fp64, a sequence and a KV head at a time."""
    starts, lengths = batch.query_starts, batch.kv_lengths
    num_kv_heads = kv_tensors(kv)[0].shape[2]
    group = queries.shape[1] // num_kv_heads
    out = torch.zeros(queries.shape, dtype=torch.float64, device=queries.device)
    for r, length in enumerate(lengths):
        own = batch.page_table[r, : -(-length // PAGE_SIZE)]
        pages = dequantize_kv(kv.data[own], kv.scales[own], torch.float32) if isinstance(kv, Fp8KV) else kv[own].float()
        keys, values = pages.movedim(0, 2).flatten(2, 3)[:, :, :length]
        count = starts[r + 1] - starts[r]
        hidden = torch.ones(count, length, dtype=torch.bool, device=queries.device).tril(length - count).logical_not()
        for head in range(num_kv_heads):
            mine = slice(head * group, (head + 1) * group)
            rows = queries[starts[r] : starts[r + 1], mine].double().transpose(0, 1)  # [G, count, D]
            scores = (rows @ keys[head].double().t() * scale).masked_fill(hidden, float("-inf"))
            out[starts[r] : starts[r + 1], mine] = (scores.softmax(-1) @ values[head].double()).transpose(0, 1)
    return out


def _sampling(config: ModelConfig, place: Place) -> Operation:
    """Rows with every filter and with none, and greedy ones. Up to one row in a hundred may fall on another side of a rounding."""
    from openglm.ops.triton.sampling import sample

    width, device = config.vocab_size, place.device
    kinds = [
        SamplingParams(temperature=0.6),
        SamplingParams(temperature=1.0, top_p=0.95),
        SamplingParams(temperature=1.0, top_k=40, top_p=0.9),
        SamplingParams(temperature=0.8, min_p=0.02),
    ]
    seen: list[tuple[Tensor, Tensor]] = []

    def given(rows: int) -> tuple[Tensor, dict[str, Tensor], list[SamplingParams]]:
        params = [kinds[i % len(kinds)] for i in range(rows)]
        logits = torch.empty(rows, width, device=device).normal_(0, 3, generator=_fresh(place))
        settings = {
            "temperatures": torch.tensor([p.temperature for p in params], device=device),
            "top_k": torch.tensor([p.top_k for p in params], dtype=torch.int32, device=device),
            "top_p": torch.tensor([p.top_p for p in params], dtype=torch.float64, device=device),
            "min_p": torch.tensor([p.min_p for p in params], device=device),
            "uniforms": torch.rand(rows, dtype=torch.float64, device=device),
        }
        return logits, settings, params

    def error(rows: int) -> float:
        logits, settings, params = given(rows)
        cumulative = filtered_probabilities(logits, params).double().cumsum(-1)
        expected = torch.searchsorted(cumulative, settings["uniforms"][:, None] * cumulative[:, -1:], right=True)[:, 0]
        with poisoned():
            found = sample(logits, **settings)
            greedy = sample(logits, **{**settings, "temperatures": torch.zeros(rows, device=device)})
        if not bool(found.finite.all()) or not torch.equal(greedy.tokens, logits.argmax(-1)):
            return 1.0
        seen.append((found.tokens, expected))
        chosen = logits.double().log_softmax(-1).gather(1, found.tokens[:, None])[:, 0]
        if float((found.logprobs.double() - chosen).abs().max()) > 1e-3:
            return 1.0
        off = share_unequal(*(torch.cat(parts) for parts in zip(*seen, strict=True)))
        return off if sum(len(tokens) for tokens, _ in seen) >= 100 else 0.0

    def timed(rows: int) -> Timed:
        logits, settings, _ = given(rows)
        return Timed(repeated(lambda: sample(logits, **settings), 4), 4, logits.nbytes, 0)

    return Operation(error, timed)
