"""`ModelConfig`: the architecture of one GLM-4.5-family model, read from and written to a Hugging Face `config.json`.

Field names are those of `Glm4MoeConfig` in transformers, so a reader who knows the family knows this file. Two spellings
of the same fact exist in the wild (flat `rope_theta` / `partial_rotary_factor` or `rope_parameters`, `torch_dtype` or `dtype`);
both are read, and a file that uses both must say the same thing twice.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openglm.errors import ConfigError

ARCHITECTURE = "Glm4MoeForCausalLM"
MODEL_TYPE = "glm4_moe"
DTYPES = ("bfloat16", "float16", "float32")


@dataclass(frozen=True)
class ModelConfig:
    """Every number that shapes the model. Widths are in elements; the MTP layer is not counted in `num_hidden_layers`."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    moe_intermediate_size: int
    n_routed_experts: int
    num_experts_per_tok: int
    first_k_dense_replace: int
    max_position_embeddings: int
    n_shared_experts: int = 1
    n_group: int = 1
    topk_group: int = 1
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 1.0
    num_nextn_predict_layers: int = 1
    use_qk_norm: bool = False
    attention_bias: bool = True
    partial_rotary_factor: float = 0.5
    rope_theta: float = 1_000_000.0
    rms_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    eos_token_id: tuple[int, ...] = (151329, 151336, 151338)
    pad_token_id: int = 151329
    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        """Refuse values with which no model can be built, naming the field."""
        for name in _POSITIVE:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        checks = (
            (
                self.num_attention_heads % self.num_key_value_heads == 0,
                "num_attention_heads must be a multiple of num_key_value_heads",
            ),
            (
                self.rotary_dim % 2 == 0 and 0 < self.rotary_dim <= self.head_dim,
                "head_dim * partial_rotary_factor must be an even number of at most head_dim",
            ),
            (self.num_experts_per_tok <= self.n_routed_experts, "num_experts_per_tok exceeds n_routed_experts"),
            (
                0 <= self.first_k_dense_replace <= self.num_hidden_layers,
                "first_k_dense_replace must lie between 0 and num_hidden_layers",
            ),
            (self.n_routed_experts % self.n_group == 0, "n_routed_experts must be a multiple of n_group"),
            (1 <= self.topk_group <= self.n_group, "topk_group must lie between 1 and n_group"),
            (
                self.n_group == 1 or self.n_routed_experts >= 2 * self.n_group,
                "n_routed_experts must give every one of several groups (n_group) at least two experts",
            ),
            (
                self.num_experts_per_tok <= self.topk_group * (self.n_routed_experts // self.n_group),
                "num_experts_per_tok exceeds the experts of topk_group groups",
            ),
            (
                self.num_nextn_predict_layers in (0, 1),
                "num_nextn_predict_layers must be 0 or 1 (the family has one MTP layer)",
            ),
            (self.n_shared_experts >= 0, "n_shared_experts must not be negative"),
            (self.dtype in DTYPES, f"dtype must be one of {', '.join(DTYPES)}"),
            (
                bool(self.eos_token_id) and all(0 <= i < self.vocab_size for i in self.eos_token_id),
                "eos_token_id must hold ids below vocab_size",
            ),
            (0 <= self.pad_token_id < self.vocab_size, "pad_token_id must lie below vocab_size"),
            (self.max_position_embeddings <= 2**22, "max_position_embeddings must be at most 4194304"),
            (self.num_hidden_layers * self.n_routed_experts <= 2**18, "num_hidden_layers times n_routed_experts must be at most 262144"),
            (0.0 < self.rms_norm_eps < 1.0, "rms_norm_eps must lie between 0 and 1"),
        )
        for holds, message in checks:
            if not holds:
                raise ConfigError(message)

    @property
    def rotary_dim(self) -> int:
        """Number of leading dims of each head that RoPE turns."""
        return int(self.head_dim * self.partial_rotary_factor)

    @property
    def query_dim(self) -> int:
        """Width of all query heads together; larger than `hidden_size` in the published models."""
        return self.num_attention_heads * self.head_dim

    @property
    def kv_dim(self) -> int:
        """Width of all key (or value) heads together."""
        return self.num_key_value_heads * self.head_dim

    @property
    def attention_parameters(self) -> int:
        """Of the four projections of one layer."""
        return self.hidden_size * 2 * (self.query_dim + self.kv_dim)

    @property
    def expert_parameters(self) -> int:
        """Of one routed or shared expert."""
        return 3 * self.hidden_size * self.moe_intermediate_size

    @property
    def dense_mlp_parameters(self) -> int:
        """Of the MLP of a layer without experts."""
        return 3 * self.hidden_size * self.intermediate_size

    @property
    def has_mtp(self) -> bool:
        """Whether the model carries the multi-token-prediction layer."""
        return self.num_nextn_predict_layers == 1

    @property
    def num_kv_layers(self) -> int:
        """Layers with a KV cache: the trunk's and, last, the MTP layer."""
        return self.num_hidden_layers + self.num_nextn_predict_layers

    def is_moe_layer(self, layer: int) -> bool:
        """Whether trunk layer `layer` (or the MTP layer, index `num_hidden_layers`) routes to experts."""
        return layer >= self.first_k_dense_replace

    @classmethod
    def from_hf(cls, data: dict[str, Any]) -> ModelConfig:
        """Read the parsed `config.json` of a checkpoint; unknown keys are ignored, wrong ones raise `ConfigError`."""
        if not isinstance(data, dict):
            raise ConfigError(f"config.json must hold an object, got {type(data).__name__}")
        if data.get("model_type") != MODEL_TYPE:
            raise ConfigError(f"model_type is {data.get('model_type')!r}; openglm reads {MODEL_TYPE!r} (GLM-4.5, 4.5-Air, 4.6, 4.7)")
        values = dict(data)
        rope = _either(values, "rope_parameters", "rope_scaling") or {}
        if not isinstance(rope, dict):
            raise ConfigError("rope_parameters must be an object")
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default":
            raise ConfigError(f"rope_parameters.rope_type is {kind!r}; the family uses plain RoPE ('default')")
        for key in ("rope_theta", "partial_rotary_factor"):
            if key in rope:
                if values.get(key) is not None and values[key] != rope[key]:
                    raise ConfigError(f"{key} is given twice with different values: {values[key]} and rope_parameters.{key} {rope[key]}")
                values[key] = rope[key]
        values["dtype"] = _either(values, "dtype", "torch_dtype") or "bfloat16"
        if isinstance(values.get("eos_token_id"), int):
            values["eos_token_id"] = [values["eos_token_id"]]
        for key, wanted in (("hidden_act", "silu"), ("tie_word_embeddings", False)):
            if values.get(key, wanted) != wanted:
                raise ConfigError(f"{key} is {values[key]!r}; the family has {wanted!r}")
        if "head_dim" not in values and isinstance(values.get("hidden_size"), int) and isinstance(values.get("num_attention_heads"), int):
            values["head_dim"] = values["hidden_size"] // max(1, values["num_attention_heads"])
        fields = {}
        for field in dataclasses.fields(cls):
            if values.get(field.name) is not None:
                fields[field.name] = _typed(field.name, str(field.type), values[field.name])
            elif field.default is dataclasses.MISSING:
                raise ConfigError(f"config.json lacks {field.name}")
        return cls(**fields)

    @classmethod
    def from_file(cls, path: Path) -> ModelConfig:
        """Read a `config.json`; a missing or malformed file raises `ConfigError` naming it."""
        try:
            data = json.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            raise ConfigError(f"{path}: no such file; a model directory holds config.json, tokenizer.json and *.safetensors") from None
        except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
            raise ConfigError(f"{path}: cannot be read as JSON: {error}") from None
        try:
            return cls.from_hf(data)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None

    def to_hf(self) -> dict[str, Any]:
        """The `config.json` of this model in the spelling of the published checkpoints (flat keys), which every engine reads."""
        data: dict[str, Any] = {"architectures": [ARCHITECTURE], "model_type": MODEL_TYPE}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            data["torch_dtype" if field.name == "dtype" else field.name] = list(value) if isinstance(value, tuple) else value
        data |= {
            "hidden_act": "silu",
            "attention_dropout": 0.0,
            "rope_scaling": None,
            "tie_word_embeddings": False,
            "use_cache": True,
        }
        return data


_POSITIVE = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "moe_intermediate_size",
    "n_routed_experts",
    "num_experts_per_tok",
    "max_position_embeddings",
    "n_group",
    "rope_theta",
    "routed_scaling_factor",
)


def _either(values: dict[str, Any], first: str, second: str) -> Any:
    a, b = values.get(first), values.get(second)
    if a is not None and b is not None and a != b:
        raise ConfigError(f"{first} and {second} are both given and differ: {a!r}, {b!r}")
    return a if a is not None else b


def _typed(name: str, kind: str, value: Any) -> Any:
    """Check a JSON value against the annotation of its field."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 2**63  # False for NaN as well
    if kind == "int" and number and value == int(value):
        return int(value)
    if kind == "float" and number:
        return float(value)
    if kind == "bool" and isinstance(value, bool):
        return value
    if kind == "str" and isinstance(value, str):
        return value
    if kind.startswith("tuple") and isinstance(value, list) and all(isinstance(i, int) and not isinstance(i, bool) for i in value):
        return tuple(value)
    raise ConfigError(f"{name} must be {'a list of integers' if kind.startswith('tuple') else kind}, got {value!r:.60}")
