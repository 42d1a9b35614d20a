"""Decoding with GLM-4.5-Air in FP8 at full size: the bare step in a CUDA graph, at the plan's batches and contexts.

Routers of random weights may send all tokens to the same experts, the more so the deeper the layer. So every case says how many distinct
experts its step hit, and bytes are those of what was hit; "uniform" replaces the routers' choice by a table of random ones, which makes
the case comparable with the byte model, and "router" is what the weights do.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import torch

from openglm.bench.gpu.byte_model import kv_bytes, step_bytes
from openglm.bench.gpu.ceilings import reading
from openglm.bench.gpu.figures import Values
from openglm.bench.gpu.place import Place
from openglm.bench.gpu.plan import CEILING, DATASHEET_BYTES_PER_S, decode_case, of_layers
from openglm.bench.gpu.run import Case
from openglm.bench.gpu.steps import Steps, uniform_routing
from openglm.bench.gpu.weights import fitting, random_model
from openglm.config import ModelConfig, variant
from openglm.model import GlmModel
from openglm.ops import FP8

BATCHES = (1, 8, 32, 64, 2, 4, 16, 128)
_SHORT = 1024
_LONG = ((1, 131072), (1, 32768), (1, 8192), (2, 8192), (2, 32768), (2, 131072))
_DRAWS = 3  # sets of tokens behind a figure
_WORKING = 3_000_000_000  # activations, logits, graphs
_REHEARSAL_LONGEST = 200


class FullSize:
    """The model, as much of it as fits, and the pages of the present dtype: made when first needed."""

    def __init__(self, place: Place, config: ModelConfig, *, tokens: int, fp8: bool = True) -> None:
        self.place, self.fp8 = place, fp8
        self.all_layers = config.num_hidden_layers
        self._tokens = tokens
        room = _WORKING + kv_bytes(config, tokens, 1.04) * (1 + config.num_nextn_predict_layers / config.num_hidden_layers)
        beside = 0 if place.rehearsal else round(room)
        self.config = fitting(config, place.free_bytes(), weight_bytes=1 if fp8 else 2, beside=beside)
        self._model: GlmModel | None = None
        self._steps: dict[torch.dtype, Steps] = {}

    @property
    def weight_bytes(self) -> int:
        """Of a number in the layers' matrices."""
        return 1 if self.fp8 else 2

    @property
    def model(self) -> GlmModel:
        """The model."""
        if self._model is None:
            self._model = random_model(self.config, self.place.device, fp8=self.fp8)
        return self._model

    def steps(self, kv_dtype: torch.dtype, tokens: int | None = None) -> Steps:
        """Pages in this dtype; those in another are given back first."""
        if kv_dtype not in self._steps:
            self.drop_steps()
            self._steps[kv_dtype] = Steps(self.model, self.place, tokens=tokens or self._tokens, kv_dtype=kv_dtype)
        return self._steps[kv_dtype]

    def drop_steps(self) -> None:
        """Give all pages back."""
        self._steps.clear()
        gc.collect()  # an engine's parts know each other
        self.place.free_bytes()

    def name(self, case: str) -> str:
        """The case's name, with the number of layers where not all are there."""
        return of_layers(case, self.config.num_hidden_layers, self.all_layers)


def air(place: Place, *, drafts: bool) -> ModelConfig:
    """GLM-4.5-Air, or what a rehearsal can run."""
    full = replace(variant("tiny-air"), num_hidden_layers=2) if place.rehearsal else variant("glm-4.5-air")
    return full if drafts else replace(full, num_nextn_predict_layers=0)


def cases(place: Place, known: dict[str, Values]) -> Iterator[Case]:
    """In the order of their worth."""
    yield reading(place)
    short = 70 if place.rehearsal else _SHORT
    batches = (1, 2) if place.rehearsal else BATCHES
    longer = ((1, _REHEARSAL_LONGEST),) if place.rehearsal else _LONG
    tokens = max(max(batches) * -(-short // 64) * 64, *(count * -(-length // 64) * 64 for count, length in longer))
    full = FullSize(place, air(place, drafts=False), tokens=tokens)

    def case(sequences: int, context: int, kv: str, routing: str) -> Case:
        name = full.name(decode_case(sequences, context, kv=kv, routing=routing))
        return Case(name, partial(decode, full, sequences, context, kv, routing, known))

    for count in batches:
        yield case(count, short, "fp8", "uniform")
    for count, context in longer:
        yield case(count, context, "fp8", "uniform")
    for count in batches[-1:] if place.rehearsal else batches:
        yield case(count, short, "fp8", "router")
    yield Case(full.name("kernels of a step, 1 sequence"), partial(profile, full, short))
    yield case(1, longer[0][1], "bf16", "uniform")


@torch.inference_mode()
def decode(full: FullSize, sequences: int, context: int, kv: str, routing: str, known: dict[str, Values], rows_each: int = 1) -> Values:
    """One decode or verify step, over several sets of tokens."""
    place = full.place
    kv_element_bytes = 1 if kv == "fp8" else 2
    steps = full.steps(FP8 if kv == "fp8" else torch.bfloat16, None if kv == "fp8" else sequences * -(-context // 64) * 64)
    table = steps.table(sequences, context)
    with uniform_routing(full.model, sequences * rows_each) if routing == "uniform" else nullcontext():
        graph = steps.graph(table, rows_each, context)
        seconds, hits, draws = 0.0, 0.0, 1 if place.rehearsal else _DRAWS
        for _ in range(draws):
            inputs = steps.inputs(table, rows_each, context)
            _, logits = graph.run(inputs)
            if not bool(logits.isfinite().all()):
                raise ValueError("the step's logits are not finite")
            hits += steps.hits(table, rows_each, context, inputs) / draws
            seconds += place.seconds(graph.replay, captured=False, at_most_s=0.3) / draws
    return reading_figures(full, seconds, hits, sequences, context, kv_element_bytes, known, rows_each)


def reading_figures(
    full: FullSize,
    seconds: float,
    hits: float,
    sequences: int,
    context: int,
    kv_element_bytes: float,
    known: dict[str, Values],
    rows_each: int = 1,
) -> Values:
    """The step's figures beside what it must read."""
    read_bytes, expected = (
        step_bytes(
            full.config,
            sequences=sequences,
            context=context,
            rows_each=rows_each,
            weight_bytes=full.weight_bytes,
            kv_element_bytes=kv_element_bytes,
            experts_hit=hit,
        )
        for hit in (hits, None)
    )
    rate = read_bytes / seconds
    values = {
        "s": seconds,
        "tokens_per_s": sequences * rows_each / seconds,
        "experts_hit": hits,
        "gb": read_bytes / 1e9,
        "expected_gb": expected / 1e9,
        "gb_per_s": rate / 1e9,
    }
    sheet = next((rate for name, rate in DATASHEET_BYTES_PER_S.items() if name in full.place.gpu), None)
    if sheet is not None:
        values["of_datasheet"] = rate / sheet
    if CEILING in known:
        values["of_ceiling"] = rate / (1e9 * known[CEILING]["gb_per_s"])
        values["floor_s"] = read_bytes / (1e9 * known[CEILING]["gb_per_s"])
    return values


@torch.inference_mode()
def profile(full: FullSize, context: int) -> Values:
    """Microseconds per kernel of one step, by name, with how often each runs."""
    steps = full.steps(FP8)
    table = steps.table(1, context)
    graph = steps.graph(table, 1, context)
    graph.run(steps.inputs(table, 1, context))
    found = full.place.kernels(graph.replay)
    values = {"s": sum(seconds for seconds, _ in found.values())}
    for name, (seconds, count) in sorted(found.items(), key=lambda item: -item[1][0])[:20]:
        values[f"{name[:80]} x {count}: us"] = 1e6 * seconds
    return values
