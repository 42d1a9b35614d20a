"""A slice of the model in bf16 beside transformers: the same weights, the same GPU, the best of its settings.

The slices are 8 layers of GLM-4.5-Air (one dense) and 3 + 3 layers of GLM-4.5. transformers makes the weights and ours are copied from
them, tensor by tensor through the table of checkpoint names. Both decode from a static cache of 1K tokens and both are timed by the
host's clock. Of transformers, every implementation of experts is tried, then the fastest for decoding once more compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from openglm.bench.gpu.ceilings import reading
from openglm.bench.gpu.figures import Values
from openglm.bench.gpu.place import Place, wall_seconds
from openglm.bench.gpu.plan import beside_case
from openglm.bench.gpu.run import Case
from openglm.bench.gpu.steps import Steps
from openglm.bench.gpu.weights import filled_model
from openglm.checkpoint.names import NameTable
from openglm.config import ModelConfig, variant
from openglm.errors import CheckpointError
from openglm.model import GlmModel
from openglm.ops import PackedLinear
from openglm.ops.triton.matrix import DeviceMatrix

_IMPLEMENTATIONS = ("grouped_mm", "batched_mm", "eager")
_MAX_DIFFERENCE = 5e-2  # of the median row's logits: two ways of rounding to bf16 in every layer
_COMPARED_TOKENS = 17


def cases(place: Place, known: dict[str, Values]) -> Iterator[Case]:
    """Air first."""
    yield reading(place)
    context = 20 if place.rehearsal else 1024
    batches, prompts = ((2,), (20,)) if place.rehearsal else ((1, 8, 32), (2048, 8192))
    for shape in ("air", "4.5"):
        pair = Pair(place, slice_of(shape, rehearsal=place.rehearsal), tokens=max(*prompts, 33 * (context + 64)))
        yield Case(beside_case(shape, "logits"), pair.compare)
        for count in batches:
            name = beside_case(shape, f"decode {count}")
            yield Case(name, partial(pair.decode, count, context))
        for tokens in prompts:
            name = beside_case(shape, f"prefill {tokens // 1024}K" if tokens >= 1024 else f"prefill {tokens}")
            yield Case(name, partial(pair.prefill, tokens))
        pair.drop()


def slice_of(shape: str, *, rehearsal: bool) -> ModelConfig:
    """A few layers of a model, dense and with experts, without the MTP layer."""
    if shape == "air":
        layers, dense, full = (2, 1, "tiny-air") if rehearsal else (8, 1, "glm-4.5-air")
    else:
        layers, dense, full = (2, 1, "tiny-355b") if rehearsal else (6, 3, "glm-4.5")
    config = replace(variant(full), num_hidden_layers=layers, first_k_dense_replace=dense, num_nextn_predict_layers=0, dtype="bfloat16")
    return replace(config, max_position_embeddings=16384) if not rehearsal else config


class Pair:
    """The same slice in both programs, made when first needed."""

    def __init__(self, place: Place, config: ModelConfig, *, tokens: int) -> None:
        self.place, self.config, self._tokens = place, config, tokens

    @cached_property
    def theirs(self) -> Any:
        """The model of transformers, with weights of its own making."""
        import transformers

        settings = self.config.to_hf()
        kind = settings.pop("model_type")
        settings.pop("architectures")
        config = transformers.AutoConfig.for_model(kind, **settings)
        with self.place.device:
            make: Any = transformers.AutoModelForCausalLM
            return make.from_config(config, dtype=torch.bfloat16).eval()

    @cached_property
    def ours(self) -> Steps:
        """Our kernels over the same weights."""
        state = self.theirs.state_dict()
        model = filled_model(self.config, self.place.device, fp8=False, fill=lambda model, targets: _copy(state, model, targets))
        return Steps(model, self.place, tokens=self._tokens, kv_dtype=torch.bfloat16)

    def drop(self) -> None:
        """Give the memory back."""
        self.__dict__.pop("ours", None)
        self.__dict__.pop("theirs", None)
        self.place.free_bytes()

    @torch.inference_mode()
    def compare(self) -> Values:
        """How far logits of a short prompt lie apart."""
        tokens = self._random(1, _COMPARED_TOKENS)
        found = self.ours.chunk(self.ours.table(1, _COMPARED_TOKENS), 0, _COMPARED_TOKENS, tokens[0], every_row=True)
        expected = self.theirs(input_ids=tokens, use_cache=False).logits[0].float()
        distance = (found - expected).norm(dim=-1) / expected.norm(dim=-1)
        median, largest = float(distance.median()), float((found - expected).abs().max())
        if not median <= _MAX_DIFFERENCE:
            raise ValueError(f"the logits differ by {median:.2g} of their length, and {_MAX_DIFFERENCE:g} is allowed")
        return {"difference": median, "largest_difference": largest}

    @torch.inference_mode()
    def decode(self, sequences: int, context: int) -> Values:
        """Milliseconds of a step of `sequences` sequences."""
        steps = self.ours
        table = steps.table(sequences, context)
        graph, inputs = steps.graph(table, 1, context), steps.inputs(table, 1, context)
        ours = wall_seconds(self.place, lambda: graph.run(inputs), rounds=self._rounds)
        found: dict[str, float] = {}
        failed: list[str] = []
        for name in _IMPLEMENTATIONS:
            self._try(found, failed, name, partial(self._their_decode, self.theirs, name, sequences, context))
        if found:
            best = min(found, key=lambda name: found[name])
            rehearsal = self.place.rehearsal
            compiled = torch.compile(
                self.theirs, backend="eager" if rehearsal else "inductor", mode=None if rehearsal else "reduce-overhead"
            )
            self._try(found, failed, "compiled", partial(self._their_decode, compiled, best, sequences, context))
            torch.compiler.reset()
        return self._figures(ours, found, failed)

    @torch.inference_mode()
    def prefill(self, tokens: int) -> Values:
        """Milliseconds of one prompt in one piece."""
        ids, steps = self._random(1, tokens), self.ours
        table = steps.table(1, tokens)
        rounds = min(self._rounds, 3)
        steps.chunk(table, 0, tokens, ids[0])
        ours = wall_seconds(self.place, lambda: steps.chunk(table, 0, tokens, ids[0]), rounds=rounds)

        def theirs(implementation: str) -> float:
            self.theirs.set_experts_implementation(implementation)

            def run() -> object:
                return self.theirs(input_ids=ids, use_cache=True, logits_to_keep=1).logits

            run()
            return wall_seconds(self.place, run, rounds=rounds)

        found: dict[str, float] = {}
        failed: list[str] = []
        for name in ("grouped_mm", "eager"):
            self._try(found, failed, name, partial(theirs, name))
        return self._figures(ours, found, failed)

    def _their_decode(self, model: Any, implementation: str, sequences: int, context: int) -> float:
        import transformers

        spare = self._rounds + 8
        cache = transformers.StaticCache(config=self.theirs.config, max_cache_len=context + spare)
        self.theirs.set_experts_implementation("grouped_mm")  # batched_mm would copy nine experts for every token of the context
        self.theirs(input_ids=self._random(sequences, context - 1), past_key_values=cache, use_cache=True, logits_to_keep=1)
        self.theirs.set_experts_implementation(implementation)
        tokens, at = self._random(sequences, 1), context - 1

        def step() -> object:
            nonlocal at
            positions = torch.full((1, 1), at, device=self.place.device)
            at += 1
            return model(input_ids=tokens, position_ids=positions, past_key_values=cache, use_cache=True).logits

        for _ in range(2 if self.place.rehearsal else 4):
            step()
        return wall_seconds(self.place, step, rounds=self._rounds)

    @property
    def _rounds(self) -> int:
        return 1 if self.place.rehearsal else 15

    def _random(self, *shape: int) -> Tensor:
        return torch.randint(self.config.vocab_size, shape, device=self.place.device)

    def _try(self, found: dict[str, float], failed: list[str], name: str, measure: Callable[[], float]) -> None:
        """One setting of transformers; one that fails there leaves the others."""
        try:
            found[name] = measure()
        except Exception as error:
            failed.append(f"{name}: {type(error).__name__}: {str(error)[:100]}")
            self.place.free_bytes()

    def _figures(self, ours: float, found: dict[str, float], failed: list[str]) -> Values:
        if not found:
            raise ValueError(f"no setting of transformers ran: {'; '.join(failed)}")
        best = min(found.values())
        values = {"s": ours, "theirs_s": best, "speedup": best / ours}
        values |= {"layer_s": ours / self.config.num_hidden_layers, "theirs_layer_s": best / self.config.num_hidden_layers}
        values |= {f"transformers {name}: s": seconds for name, seconds in found.items()}
        return values | {f"did not run: {reason}": 1.0 for reason in failed}


def _copy(state: dict[str, Tensor], model: GlmModel, targets: dict[str, tuple[DeviceMatrix | PackedLinear, ...]]) -> None:
    """Every tensor of transformers into the part of ours that it is."""
    table = NameTable(model.config)
    filled: dict[str, int] = {}
    buffers = dict(model.named_buffers())
    for name, tensor in state.items():
        entry = table.packed.get(name) or table.by_name.get(name)
        if entry is None:
            raise CheckpointError(f"transformers has a tensor {name!r:.100} that the table of names does not know")
        filled[entry.parameter] = filled.get(entry.parameter, 0) + tensor.numel()
        if entry.parameter not in targets:
            place = buffers[entry.parameter] if entry.parameter in buffers else model.get_parameter(entry.parameter)
            entry.part_of(place).copy_(tensor)
            continue
        (target,) = targets[entry.parameter]
        rows = tensor.flatten(0, -2)
        first = 0 if entry.rows is None else entry.rows[0]
        if entry.expert is not None:
            first += entry.expert * (target.out_features // model.config.n_routed_experts)
        target.fill(first, rows)
    for parameter, entries in table.by_parameter.items():
        wanted = sum(torch.Size(entry.shape).numel() for entry in entries)
        if filled.get(parameter, 0) != wanted:
            raise CheckpointError(f"transformers filled {filled.get(parameter, 0)} of {wanted} numbers of {parameter}")
