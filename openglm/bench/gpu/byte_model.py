"""What a decoding step must read, and how many operations a prompt takes, from a model's shape alone.

    bytes = w (layers' attention + dense MLPs + shared experts) + 2 routers + 2 head + w * hit * experts + KV of every sequence

w is the size of a weight in the layers; head and router stay in bf16, as in the published FP8 checkpoints. Activations are left out: at
128 sequences of GLM-4.5-Air they add 1.5 %.
"""

from __future__ import annotations

from openglm.config import ModelConfig

_BF16 = 2


def expected_hit(num_experts: int, num_chosen: int, tokens: int) -> float:
    """Distinct experts of a layer that `tokens` tokens choose, if each takes `num_chosen` at random; skewed choices hit fewer."""
    return num_experts * (1 - (1 - num_chosen / num_experts) ** tokens)


def kv_bytes(config: ModelConfig, context: int, element_bytes: float) -> float:
    """KV of one sequence in the trunk's layers, without scales."""
    return context * config.num_hidden_layers * 2 * config.kv_dim * element_bytes


def step_bytes(
    config: ModelConfig,
    *,
    sequences: int,
    context: int,
    weight_bytes: float,
    kv_element_bytes: float,
    rows_each: int = 1,
    experts_hit: float | None = None,
) -> float:
    """Of a step in which every sequence of `context` tokens has `rows_each` new ones.

    `experts_hit` are the distinct routed experts per layer that were hit; None expects those of random and independent choices.
    """
    h, expert = config.hidden_size, 3 * config.hidden_size * config.moe_intermediate_size
    moe_layers = config.num_hidden_layers - config.first_k_dense_replace
    hit = experts_hit
    if hit is None:
        hit = expected_hit(config.n_routed_experts, config.num_experts_per_tok, sequences * rows_each)
    layers: float = config.num_hidden_layers * _attention_weights(config)
    layers += config.first_k_dense_replace * 3 * h * config.intermediate_size
    layers += moe_layers * expert * (hit + config.n_shared_experts)
    tables = moe_layers * config.n_routed_experts * h + config.vocab_size * h
    return layers * weight_bytes + tables * _BF16 + sequences * kv_bytes(config, context, kv_element_bytes)


def draft_bytes(config: ModelConfig, *, sequences: int, weight_bytes: float, experts_hit: float | None = None) -> float:
    """Of one pass of the MTP layer with the head, without its KV: attention, experts, the joined input in bf16 and the head."""
    h, expert = config.hidden_size, 3 * config.hidden_size * config.moe_intermediate_size
    hit = experts_hit
    if hit is None:
        hit = expected_hit(config.n_routed_experts, config.num_experts_per_tok, sequences)
    layer = _attention_weights(config) + expert * (hit + config.n_shared_experts)
    return layer * weight_bytes + (2 * h * h + config.n_routed_experts * h + config.vocab_size * h) * _BF16


def weight_bytes_total(config: ModelConfig, weight_bytes: float) -> float:
    """Of all weights of the trunk, and of the MTP layer where the model has one; embedding and head in bf16."""
    h, expert = config.hidden_size, 3 * config.hidden_size * config.moe_intermediate_size
    moe_layers = config.num_kv_layers - config.first_k_dense_replace
    layers = config.num_kv_layers * _attention_weights(config) + config.first_k_dense_replace * 3 * h * config.intermediate_size
    layers += moe_layers * expert * (config.n_routed_experts + config.n_shared_experts)
    tables = moe_layers * config.n_routed_experts * h + 2 * config.vocab_size * h + config.num_nextn_predict_layers * 2 * h * h
    return layers * weight_bytes + tables * _BF16


def prefill_flops(config: ModelConfig, tokens: int) -> tuple[float, float]:
    """Operations of a prompt without a head: in the weights, two per weight and token, and in causal attention."""
    h, expert = config.hidden_size, 3 * config.hidden_size * config.moe_intermediate_size
    moe_layers = config.num_hidden_layers - config.first_k_dense_replace
    weights = config.num_hidden_layers * _attention_weights(config) + config.first_k_dense_replace * 3 * h * config.intermediate_size
    weights += moe_layers * expert * (config.num_experts_per_tok + config.n_shared_experts)
    return 2.0 * weights * tokens, 2.0 * config.num_hidden_layers * config.query_dim * tokens * tokens


def _attention_weights(config: ModelConfig) -> int:
    return config.hidden_size * (2 * config.query_dim + 2 * config.kv_dim)
