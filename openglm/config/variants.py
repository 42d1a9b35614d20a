"""Named architectures: the published models, the embedded one, and small ones of both shapes for tests.

Values of the published models are those of their `config.json` files (zai-org/GLM-4.5, GLM-4.5-Air, GLM-4.6, GLM-4.7).
"""

from __future__ import annotations

from dataclasses import replace
from difflib import get_close_matches

from openglm.config.model import ModelConfig
from openglm.errors import ConfigError

_GLM_4_5 = ModelConfig(
    vocab_size=151552,
    hidden_size=5120,
    num_hidden_layers=92,
    num_attention_heads=96,
    num_key_value_heads=8,
    head_dim=128,
    intermediate_size=12288,
    moe_intermediate_size=1536,
    n_routed_experts=160,
    num_experts_per_tok=8,
    first_k_dense_replace=3,
    max_position_embeddings=131072,
    routed_scaling_factor=2.5,
    use_qk_norm=True,
)
_GLM_4_5_AIR = ModelConfig(
    vocab_size=151552,
    hidden_size=4096,
    num_hidden_layers=46,
    num_attention_heads=96,
    num_key_value_heads=8,
    head_dim=128,
    intermediate_size=10944,
    moe_intermediate_size=1408,
    n_routed_experts=128,
    num_experts_per_tok=8,
    first_k_dense_replace=1,
    max_position_embeddings=131072,
    routed_scaling_factor=1.0,
    use_qk_norm=False,
)
_GLM_4_6 = replace(_GLM_4_5, max_position_embeddings=202752)

# Heads are wider than hidden_size and MTP widths are distinct, as in the large models, so that a swapped shape fails at once.
_TINY_AIR = ModelConfig(
    vocab_size=384,
    hidden_size=48,
    num_hidden_layers=3,
    num_attention_heads=8,
    num_key_value_heads=2,
    head_dim=16,
    intermediate_size=80,
    moe_intermediate_size=24,
    n_routed_experts=8,
    num_experts_per_tok=3,
    first_k_dense_replace=1,
    max_position_embeddings=4096,
    eos_token_id=(381, 382, 383),
    pad_token_id=381,
    dtype="float32",
)
_TINY_355B = replace(
    _TINY_AIR,
    hidden_size=40,
    num_hidden_layers=5,
    num_attention_heads=6,
    first_k_dense_replace=3,
    routed_scaling_factor=2.5,
    use_qk_norm=True,
)
_NANO = ModelConfig(
    vocab_size=3072,
    hidden_size=256,
    num_hidden_layers=4,
    num_attention_heads=10,
    num_key_value_heads=2,
    head_dim=32,
    intermediate_size=640,
    moe_intermediate_size=128,
    n_routed_experts=16,
    num_experts_per_tok=2,
    first_k_dense_replace=1,
    max_position_embeddings=4096,
    rope_theta=10000.0,
    use_qk_norm=True,
    eos_token_id=(0,),
    pad_token_id=0,
)

VARIANTS: dict[str, ModelConfig] = {
    "glm-4.5": _GLM_4_5,
    "glm-4.5-air": _GLM_4_5_AIR,
    "glm-4.6": _GLM_4_6,
    "glm-4.7": _GLM_4_6,
    "glm-nano": _NANO,
    "tiny-air": _TINY_AIR,
    "tiny-355b": _TINY_355B,
}


def variant(name: str) -> ModelConfig:
    """The architecture called `name`; an unknown name raises `ConfigError` with the nearest match."""
    config = VARIANTS.get(name.lower())
    if config is None:
        near = get_close_matches(name.lower(), VARIANTS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"no variant is called {name!r}{hint} Known: {', '.join(VARIANTS)}")
    return config
