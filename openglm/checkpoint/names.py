"""The one table between the tensors of a published checkpoint and the parameters of `GlmModel`.

The model stacks some of the checkpoint's tensors by rows (q, k, v; gate, up) and the experts along a leading dim, so the table maps a
tensor name to (parameter, expert, rows) with the shape and dtype the tensor must have. Reading and writing both walk this table;
nothing else knows a tensor name. It is derived from the `ModelConfig` alone and needs no weights.

Everything is stored in the checkpoint's dtype except the router's `e_score_correction_bias`, which is always F32: rounded to bf16 it
chooses other experts. The MTP layer carries the layer number that follows the trunk's last one, so the number, never a substring of the
name, tells it from a trunk layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from openglm.config import ModelConfig


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of the checkpoint and the part of one model parameter it fills."""

    name: str
    shape: tuple[int, ...]
    parameter: str
    expert: int | None = None  # index into the parameter's leading dim, for packed experts
    rows: tuple[int, int] | None = None  # rows [first, last) of the (expert's) parameter; None is all of it
    always_f32: bool = False
    is_linear: bool = False  # a weight that quantized checkpoints store as FP8 with a scale per row

    def part_of(self, parameter: Tensor) -> Tensor:
        """The contiguous view of `parameter` that this tensor fills."""
        part = parameter if self.expert is None else parameter[self.expert]
        return part if self.rows is None else part[self.rows[0] : self.rows[1]]


class NameTable:
    """All tensors of one architecture, in the order in which they are written."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.entries: tuple[TensorEntry, ...] = tuple(_model_entries(config))

    @cached_property
    def by_name(self) -> dict[str, TensorEntry]:
        """Entry of a tensor name."""
        return {entry.name: entry for entry in self.entries}

    @cached_property
    def by_parameter(self) -> dict[str, tuple[TensorEntry, ...]]:
        """Entries that together fill a parameter, each element exactly once."""
        grouped: dict[str, list[TensorEntry]] = {}
        for entry in self.entries:
            grouped.setdefault(entry.parameter, []).append(entry)
        return {name: tuple(entries) for name, entries in grouped.items()}

    @cached_property
    def packed(self) -> dict[str, TensorEntry]:
        """The other spelling of experts: one 3-D tensor per layer, as transformers 5 writes with `save_original_format=False`.

        A packed tensor stands for all per-expert tensors of the same parameter.
        """
        c, packed = self.config, {}
        sizes = {"gate_up_proj": (2 * c.moe_intermediate_size, c.hidden_size), "down_proj": (c.hidden_size, c.moe_intermediate_size)}
        for prefix, module in _layer_prefixes(c):
            for kind, size in sizes.items():
                parameter = f"{module}.mlp.experts.{kind}"
                if parameter in self.by_parameter:
                    name = f"{prefix}.mlp.experts.{kind}"
                    packed[name] = TensorEntry(name, (c.n_routed_experts, *size), parameter)
        return packed

    @cached_property
    def ignored(self) -> frozenset[str]:
        """Copies of the embedding and head that some checkpoints keep in the MTP layer (and their scales); the trunk's are used."""
        prefix = self.mtp_prefix
        stems = (f"{prefix}embed_tokens.weight", f"{prefix}shared_head.head.weight")
        return frozenset(stems + tuple(f"{stem}_scale" for stem in stems))

    @property
    def mtp_prefix(self) -> str:
        """What the name of every MTP tensor begins with. The final dot keeps layer 4 apart from layer 46."""
        return f"model.layers.{self.config.num_hidden_layers}."

    def is_mtp(self, name: str) -> bool:
        """Whether `name` belongs to the MTP layer's number, whether or not the model has one."""
        return name.startswith(self.mtp_prefix)


def _model_entries(c: ModelConfig) -> Iterator[TensorEntry]:
    vocab = (c.vocab_size, c.hidden_size)
    yield TensorEntry("model.embed_tokens.weight", vocab, "embed_tokens")
    for layer, (prefix, module) in enumerate(_layer_prefixes(c)):
        if layer == c.num_hidden_layers:
            yield TensorEntry(f"{prefix}.enorm.weight", (c.hidden_size,), "mtp.enorm.weight")
            yield TensorEntry(f"{prefix}.hnorm.weight", (c.hidden_size,), "mtp.hnorm.weight")
            yield TensorEntry(f"{prefix}.eh_proj.weight", (c.hidden_size, 2 * c.hidden_size), "mtp.eh_proj.weight")
        yield from _layer_entries(c, prefix, module, is_moe=c.is_moe_layer(layer))
        if layer == c.num_hidden_layers:
            yield TensorEntry(f"{prefix}.shared_head.norm.weight", (c.hidden_size,), "mtp.norm.weight")
    yield TensorEntry("model.norm.weight", (c.hidden_size,), "norm.weight")
    yield TensorEntry("lm_head.weight", vocab, "lm_head.weight")


def _layer_prefixes(c: ModelConfig) -> list[tuple[str, str]]:
    """(checkpoint prefix, module path) of every decoder layer, the MTP layer's last."""
    layers = [(f"model.layers.{i}", f"layers.{i}") for i in range(c.num_hidden_layers)]
    return [*layers, (f"model.layers.{c.num_hidden_layers}", "mtp.layer")] if c.has_mtp else layers


def _layer_entries(c: ModelConfig, prefix: str, module: str, *, is_moe: bool) -> Iterator[TensorEntry]:
    hidden = (c.hidden_size,)
    yield TensorEntry(f"{prefix}.input_layernorm.weight", hidden, f"{module}.input_layernorm.weight")
    yield from _attention_entries(c, f"{prefix}.self_attn", f"{module}.self_attn")
    yield TensorEntry(f"{prefix}.post_attention_layernorm.weight", hidden, f"{module}.post_attention_layernorm.weight")
    if not is_moe:
        yield from _mlp_entries(c, f"{prefix}.mlp", f"{module}.mlp", c.intermediate_size)
        return
    experts, gate = c.n_routed_experts, f"{prefix}.mlp.gate"
    yield TensorEntry(f"{gate}.weight", (experts, c.hidden_size), f"{module}.mlp.gate.weight")
    bias = f"{module}.mlp.gate.e_score_correction_bias"
    yield TensorEntry(f"{gate}.e_score_correction_bias", (experts,), bias, always_f32=True)
    if c.n_shared_experts:
        width = c.moe_intermediate_size * c.n_shared_experts
        yield from _mlp_entries(c, f"{prefix}.mlp.shared_experts", f"{module}.mlp.shared_experts", width)
    m, gate_up, down = c.moe_intermediate_size, f"{module}.mlp.experts.gate_up_proj", f"{module}.mlp.experts.down_proj"
    for e in range(experts):
        stem = f"{prefix}.mlp.experts.{e}"
        yield TensorEntry(f"{stem}.gate_proj.weight", (m, c.hidden_size), gate_up, e, (0, m), is_linear=True)
        yield TensorEntry(f"{stem}.up_proj.weight", (m, c.hidden_size), gate_up, e, (m, 2 * m), is_linear=True)
        yield TensorEntry(f"{stem}.down_proj.weight", (c.hidden_size, m), down, e, is_linear=True)


def _attention_entries(c: ModelConfig, prefix: str, module: str) -> Iterator[TensorEntry]:
    first = 0
    for kind, size in (("q", c.query_dim), ("k", c.kv_dim), ("v", c.kv_dim)):
        rows = (first, first + size)
        yield TensorEntry(f"{prefix}.{kind}_proj.weight", (size, c.hidden_size), f"{module}.qkv_proj.weight", None, rows, is_linear=True)
        if c.attention_bias:
            yield TensorEntry(f"{prefix}.{kind}_proj.bias", (size,), f"{module}.qkv_proj.bias", None, rows)
        first += size
    yield TensorEntry(f"{prefix}.o_proj.weight", (c.hidden_size, c.query_dim), f"{module}.o_proj.weight", is_linear=True)
    if c.use_qk_norm:
        for kind in ("q_norm", "k_norm"):
            yield TensorEntry(f"{prefix}.{kind}.weight", (c.head_dim,), f"{module}.{kind}.weight")


def _mlp_entries(c: ModelConfig, prefix: str, module: str, width: int) -> Iterator[TensorEntry]:
    gate_up = f"{module}.gate_up_proj.weight"
    yield TensorEntry(f"{prefix}.gate_proj.weight", (width, c.hidden_size), gate_up, None, (0, width), is_linear=True)
    yield TensorEntry(f"{prefix}.up_proj.weight", (width, c.hidden_size), gate_up, None, (width, 2 * width), is_linear=True)
    yield TensorEntry(f"{prefix}.down_proj.weight", (c.hidden_size, width), f"{module}.down_proj.weight", is_linear=True)
