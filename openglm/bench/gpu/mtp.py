"""Speculation and the engine's loop: verify steps against the byte model, a pass of the MTP layer, the whole loop over bare replays.

Verify steps are compared with decoding in the same run: (time of T rows / time of one) over (bytes of T rows / bytes of one), so that what
a single row lacks of the memory's bandwidth is not counted a second time. Random weights say nothing about acceptance; what a draft gains
is projected for given acceptance lengths.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from functools import partial

import torch

from openglm.bench.gpu.byte_model import draft_bytes
from openglm.bench.gpu.ceilings import reading
from openglm.bench.gpu.decode import FullSize, air, decode
from openglm.bench.gpu.figures import Values
from openglm.bench.gpu.place import CalledAgain, Place
from openglm.bench.gpu.plan import CEILING, EQUAL_TOKENS, draft_case, engine_case, projected_case, projected_speedups, verify_case
from openglm.bench.gpu.run import Case
from openglm.bench.gpu.steps import counted, uniform_routing
from openglm.config.engine import ResolvedEngineConfig
from openglm.engine.core import EngineCore
from openglm.engine.request import GenerationRequest, SamplingParams
from openglm.errors import EngineError
from openglm.model import ForwardContext, PagedBatch
from openglm.ops import FP8, PAGE_SIZE

_SHAPES = ((1, 1024), (8, 1024), (32, 1024), (1, 32768), (8, 32768))


def cases(place: Place, known: dict[str, Values]) -> Iterator[Case]:
    """In the order of their worth."""
    yield reading(place)
    shapes = ((1, 70),) if place.rehearsal else _SHAPES
    full = FullSize(place, air(place, drafts=True), tokens=max(count * -(-context // 64) * 64 for count, context in shapes))

    def verify(count: int, rows_each: int, context: int) -> Case:
        return Case(full.name(verify_case(count, rows_each, context)), partial(_verify, full, count, rows_each, context, known))

    count, context = shapes[0]
    yield from (verify(count, rows_each, context) for rows_each in (1, 2))
    engines = (1,) if place.rehearsal else (1, 32)
    yield from (Case(full.name(engine_case(count)), partial(_engine, full, count)) for count in engines)
    yield from (verify(count, rows_each, context) for rows_each in ((3,) if place.rehearsal else (3, 4)))
    for count, context in shapes[1:]:
        yield from (verify(count, rows_each, context) for rows_each in (1, 2, 3, 4))
    short = [(count, context) for count, context in shapes if context == shapes[0][1]]
    for count, context in short:
        yield Case(full.name(draft_case(count)), partial(_draft, full, count, context, known))
    for count, context in short:
        yield Case(full.name(projected_case(count)), partial(_projected, full, count, context, known))
    yield Case(full.name(EQUAL_TOKENS), partial(_equal, full))


def _verify(full: FullSize, sequences: int, rows_each: int, context: int, known: dict[str, Values]) -> Values:
    values = decode(full, sequences, context, "fp8", "uniform", known, rows_each)
    lone = known.get(full.name(verify_case(sequences, 1, context)))
    if lone is not None and rows_each > 1:
        values["over_one_row"] = values["s"] / lone["s"]
        values["bytes_over_one_row"] = values["gb"] / lone["gb"]
        values["over_byte_model"] = values["over_one_row"] / values["bytes_over_one_row"]
    return values


@torch.inference_mode()
def _draft(full: FullSize, sequences: int, context: int, known: dict[str, Values]) -> Values:
    """One pass of the MTP layer and the head for every sequence."""
    steps, model, device = full.steps(FP8), full.model, full.place.device
    table = steps.table(sequences, context)
    inputs = steps.inputs(table, 1, context)
    tokens, positions, slots = (torch.tensor(given, device=device) for given in (inputs.tokens, inputs.positions, inputs.slots))
    offsets = torch.tensor([*inputs.query_starts, *inputs.kv_lengths], device=device)
    batch = PagedBatch.static(offsets=offsets, max_query_len=1, max_kv_len=context, page_table=table[:sequences], slots=slots, kv=steps.kv)
    hidden = torch.randn(sequences, full.config.hidden_size, device=device).bfloat16()
    context_of_step = ForwardContext(positions, batch, native=True)

    def run() -> torch.Tensor:
        return model.logits(model.mtp_forward(tokens, hidden, context_of_step))

    with uniform_routing(model, sequences):
        with counted(model) as counts:
            finite = bool(run().isfinite().all())
        if not finite or len(counts) != 1:
            raise ValueError("the draft's logits are not finite, or its experts were not seen")
        hits, seconds = float(counts[0]), full.place.seconds(run)
    kv_share = context * 2 * full.config.kv_dim * sequences
    rate = (draft_bytes(full.config, sequences=sequences, weight_bytes=full.weight_bytes, experts_hit=hits) + kv_share) / seconds
    values = {"s": seconds, "experts_hit": hits, "gb_per_s": rate / 1e9}
    if CEILING in known:
        values["of_ceiling"] = rate / (1e9 * known[CEILING]["gb_per_s"])
    return values


def _projected(full: FullSize, sequences: int, context: int, known: dict[str, Values]) -> Values:
    """What one draft per step gains, from the measured step, verify step and draft."""
    names = verify_case(sequences, 1, context), verify_case(sequences, 2, context), draft_case(sequences)
    found = [known.get(full.name(name)) for name in names]
    missing = [name for name, values in zip(names, found, strict=True) if values is None]
    if missing:
        raise ValueError(f"not measured: {', '.join(missing)}")
    alone, verify, draft = (values["s"] for values in found if values is not None)
    return {"over_one_row": (verify + draft) / alone, **projected_speedups((verify + draft) / alone)}


def _engine(full: FullSize, sequences: int) -> Values:
    """A step of the whole engine, scheduler, sampling and all, over the bare replay of the graph that it runs.

    Steps are launched ahead of the host (`engine.pipeline`), so a call returns when the step before the newest is done: the time between
    two returns is the device's, unless the host needs more.
    """
    prompt, settling, steps = (5, 1, 2) if full.place.rehearsal else (1024, 8, 60)
    tokens = sequences + settling + steps + 2  # the first speak while others' prompts are read
    core = _core(full, sequences, drafts=0, prompt=prompt, tokens=tokens)
    _fill(core, sequences, prompt, core.config.max_model_len - prompt)
    speaking: set[str] = set()
    while len(speaking) < sequences:
        speaking.update(output.request_id for output in core.step())
    times = []
    for number in range(settling + steps):
        if number == settling:
            ahead = core.stats().num_steps_ahead
        began = time.perf_counter()
        core.step()
        if number >= settling:
            times.append(time.perf_counter() - began)
    if core.stats().num_steps_ahead - ahead < steps:
        raise EngineError("the engine did not launch its steps ahead of the host")
    graphs = core.runner.graphs
    graph = None if graphs is None else graphs.find(sequences, 1, prompt + settling)
    if graph is None or not graph.num_replays:
        raise EngineError("the engine ran its steps without a graph")
    seconds, replay = statistics.median(times), full.place.seconds(graph.replay, captured=False)
    return {"s": seconds, "replay_s": replay, "overhead": seconds / replay - 1}


def _equal(full: FullSize) -> Values:
    """The share of greedy tokens up to the first that differs, over prompts that are answered with one draft per step and with none."""
    prompt, tokens, count = (5, 4, 1) if full.place.rehearsal else (64, 64, 4)
    answers = []
    for drafts in (0, 1):
        core = _core(full, count, drafts=drafts, prompt=prompt, tokens=tokens)
        _fill(core, count, prompt, tokens)
        said: dict[str, list[int]] = {}
        while core.has_work:
            for output in core.step():
                said.setdefault(output.request_id, []).extend(output.token_ids)
        answers.append(said)
    shares = [equal_share(answers[0][name], answers[1][name]) for name in answers[0]]
    return {"equal_share": sum(shares) / len(shares)}


def equal_share(expected: Sequence[int], found: Sequence[int]) -> float:
    """How much of `expected` comes before the first difference."""
    same = next((i for i, pair in enumerate(zip(expected, found, strict=False)) if pair[0] != pair[1]), min(len(expected), len(found)))
    return same / max(len(expected), len(found), 1)


def _core(full: FullSize, sequences: int, *, drafts: int, prompt: int, tokens: int) -> EngineCore:
    """An engine for so many sequences of a prompt and its answer, without a tokenizer."""
    full.drop_steps()
    longest = prompt + tokens + drafts + 1
    config = ResolvedEngineConfig(
        device=str(full.place.device),
        dtype="bfloat16",
        num_speculative_tokens=drafts,
        max_model_len=longest,
        max_num_seqs=sequences,
        max_num_batched_tokens=max(2048, prompt),
        num_pages=sequences * (-(-longest // PAGE_SIZE) + 1),
        kv_cache_dtype="fp8_e4m3",
        num_host_pages=0,
        enable_prefix_caching=False,
        row_tile=None,
        threads=None,
        torch_threads=None,
        native_kernels=False,
        quantization="fp8",
        seed=0,
        max_queued_requests=sequences,
        max_preemptions=4,
        request_timeout_s=None,
        device_kernels=True,
    )
    if not full.place.rehearsal:
        return EngineCore(full.model, config)
    from openglm.ops.triton.sampling import sample

    return EngineCore(full.model, config, graph_device=CalledAgain(), sample_kernel=sample)


def _fill(core: EngineCore, sequences: int, prompt: int, tokens: int) -> None:
    generator = torch.Generator().manual_seed(5)
    for number in range(sequences):
        ids = torch.randint(core.num_tokens, (prompt,), generator=generator).tolist()
        core.add(GenerationRequest(f"bench-{number}", ids, SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True)))
