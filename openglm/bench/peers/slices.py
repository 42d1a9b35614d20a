"""Slices of the published models at full width, and checkpoints of random weights in them.

The Air slice is the first three layers (one dense, two with all 128 experts) with the whole embedding and head: 6.2 B parameters. That of
GLM-4.5 has one layer of either kind, because two with 160 experts each would not fit 24 GB in bf16. Neither has an MTP layer, which
not every engine runs. `scale` divides widths, experts and vocabulary for a run that proves the tools and not the engines.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from openglm.checkpoint.layout import CONFIG_NAME, SINGLE_NAME
from openglm.checkpoint.names import NameTable, TensorEntry
from openglm.config import ModelConfig, variant
from openglm.config.engine import num_parameters
from openglm.errors import ConfigError

SLICES = {"air": "glm-4.5-air", "355b": "glm-4.5"}
_LAYERS = {"air": 3, "355b": 2}
_UNIT = 256  # llama.cpp's formats of four bits want rows of whole blocks
_CONTEXT = 16384
_PATTERN = 4_194_301  # random numbers that matrices are cut from; a prime, so that rows do not repeat


def slice_config(name: str, scale: int = 1) -> ModelConfig:
    """The shape of a slice; `ConfigError` for an unknown name."""
    if name not in SLICES or scale < 1:
        raise ConfigError(f"--slice must be one of {', '.join(SLICES)} and --scale at least 1; got {name!r:.40} and {scale}")
    full = replace(
        variant(SLICES[name]),
        num_hidden_layers=_LAYERS[name],
        first_k_dense_replace=1,
        num_nextn_predict_layers=0,
        max_position_embeddings=_CONTEXT,
    )
    if scale == 1:
        return full
    kv_heads = max(1, full.num_key_value_heads // scale)
    vocabulary = max(1024, _rounded(full.vocab_size // scale))
    experts = max(4, full.n_routed_experts // scale)
    return replace(
        full,
        hidden_size=_rounded(full.hidden_size // scale),
        num_key_value_heads=kv_heads,
        num_attention_heads=kv_heads * (full.num_attention_heads // full.num_key_value_heads),
        intermediate_size=_rounded(full.intermediate_size // scale),
        moe_intermediate_size=_rounded(full.moe_intermediate_size // scale),
        n_routed_experts=experts,
        num_experts_per_tok=min(full.num_experts_per_tok, experts // 2),
        vocab_size=vocabulary,
        eos_token_id=(vocabulary - 1,),
        pad_token_id=vocabulary - 1,
    )


def step_bytes(config: ModelConfig, bits: float, head_bits: float, batch: int, context: int, experts_hit: float | None = None) -> float:
    """Bytes that a decoding step must read: weights, head, and the bf16 KV of one context, which all sequences share.

    Of the routed experts those that were hit, or (None) that `batch` tokens are expected to hit.
    """
    hit = experts_hit
    if hit is None:
        hit = config.n_routed_experts * (1 - (1 - config.num_experts_per_tok / config.n_routed_experts) ** batch)
    keys_and_values = context * config.num_hidden_layers * 2 * config.kv_dim * 2
    return _layer_weights(config, hit) * bits / 8 + config.vocab_size * config.hidden_size * head_bits / 8 + keys_and_values


def prefill_flops(config: ModelConfig, tokens: int) -> float:
    """Operations of a prompt: two per weight and token, causal attention, and the head for the last token."""
    attention = 2 * config.num_hidden_layers * config.query_dim * tokens * tokens
    return 2 * _layer_weights(config, config.num_experts_per_tok) * tokens + attention + 2 * config.vocab_size * config.hidden_size


def _layer_weights(config: ModelConfig, routed: float) -> float:
    """Weights of all layers, with so many routed experts in each that has some."""
    experts = (routed + config.n_shared_experts) * config.expert_parameters
    mlps = (experts if config.is_moe_layer(i) else config.dense_mlp_parameters for i in range(config.num_hidden_layers))
    return config.num_hidden_layers * config.attention_parameters + sum(mlps)


def make_checkpoint(config: ModelConfig, directory: Path, *, progress: Callable[[str], None]) -> None:
    """Write random weights in bf16 unless they are there; a write that was cut off is begun anew."""
    if (directory / CONFIG_NAME).exists():
        if json.loads((directory / CONFIG_NAME).read_bytes()) != json.loads(json.dumps(config.to_hf())):
            raise ConfigError(f"{directory} holds a checkpoint of another shape; remove it or choose another --out")
        return
    directory.mkdir(parents=True, exist_ok=True)
    entries = sorted(NameTable(config).entries, key=lambda entry: not entry.always_f32)
    size = sum(_num_bytes(entry) for entry in entries)
    free = shutil.disk_usage(directory).free
    if free < size + (1 << 30):
        raise ConfigError(f"{directory}: the checkpoint needs {size / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")
    progress(f"writing {num_parameters(config) / 1e9:.2f} B random parameters, {size / 1e9:.1f} GB")
    partial = directory / f"{SINGLE_NAME}.partial"
    with partial.open("wb") as file:
        file.write(_header(entries))
        for values in _random_values(entries):
            file.write(values.view(torch.uint8).numpy().data)
    partial.rename(directory / SINGLE_NAME)
    (directory / CONFIG_NAME).write_text(json.dumps(config.to_hf(), indent=2), "utf-8")


def _rounded(width: int) -> int:
    return max(_UNIT, width // _UNIT * _UNIT)


def _num_bytes(entry: TensorEntry) -> int:
    count = 4 if entry.always_f32 else 2
    for size in entry.shape:
        count *= size
    return count


def _header(entries: list[TensorEntry]) -> bytes:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for entry in entries:
        begin, end = end, end + _num_bytes(entry)
        header[entry.name] = {"dtype": "F32" if entry.always_f32 else "BF16", "shape": list(entry.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _random_values(entries: list[TensorEntry]) -> Iterator[Tensor]:
    """Flat values of every tensor: matrices N(0, 1 / width), norms 1, biases 0."""
    rng = random.Random(0)
    pattern = torch.empty(_PATTERN).normal_(generator=torch.Generator().manual_seed(0))
    scaled: dict[int, Tensor] = {}
    for entry in entries:
        if len(entry.shape) == 1:
            value = 1.0 if "norm" in entry.name else 0.0
            yield torch.full(entry.shape, value, dtype=torch.float32 if entry.always_f32 else torch.bfloat16)
            continue
        width = entry.shape[1]
        if width not in scaled:
            scaled[width] = (pattern * width**-0.5).bfloat16()
        left, start = entry.shape[0] * width, rng.randrange(_PATTERN)
        while left:
            part = scaled[width][start : start + left]
            yield part
            left, start = left - len(part), 0
