"""The parts of a decoder layer: projections, attention, dense MLP, mixture of experts.

Modules hold parameters and name the maths; the maths is in `openglm.ops`. Fused parameters stack the checkpoint's tensors
by rows: qkv_proj = q, k, v; gate_up_proj = gate, up. Shape legend: T tokens, H hidden, D head dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from openglm import ops
from openglm.config import ModelConfig
from openglm.model.context import ForwardContext, PagedBatch


@dataclass(frozen=True)
class Placement:
    """Where parameters are made, and in which dtype: a large model must never exist in another one first."""

    device: torch.device
    dtype: torch.dtype

    def parameter(self, *shape: int) -> nn.Parameter:
        """An uninitialised parameter."""
        return nn.Parameter(torch.empty(shape, device=self.device, dtype=self.dtype))


class Linear(nn.Module):
    """A weight [out, in] and an optional bias [out]."""

    def __init__(self, in_features: int, out_features: int, place: Placement, *, bias: bool = False) -> None:
        super().__init__()
        self.weight = place.parameter(out_features, in_features)
        self.bias = place.parameter(out_features) if bias else None

    def forward(self, x: Tensor, ctx: ForwardContext) -> Tensor:
        """x [T, in] -> [T, out]."""
        return ops.linear(x, self.weight, self.bias, row_tile=ctx.row_tile)


class RMSNorm(nn.Module):
    """Root-mean-square norm with a weight over the last dim."""

    def __init__(self, dim: int, eps: float, place: Placement) -> None:
        super().__init__()
        self.weight = place.parameter(dim)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x [..., dim] -> [..., dim]."""
        return ops.rms_norm(x, self.weight, self.eps)


class Attention(nn.Module):
    """Grouped-query attention with biases on q, k, v, optional per-head QK norm and partial RoPE."""

    def __init__(self, config: ModelConfig, layer: int, place: Placement) -> None:
        super().__init__()
        self.layer = layer
        self.num_heads, self.num_kv_heads, self.head_dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.scale = config.head_dim**-0.5
        self.qkv_proj = Linear(config.hidden_size, config.query_dim + 2 * config.kv_dim, place, bias=config.attention_bias)
        self.o_proj = Linear(config.query_dim, config.hidden_size, place)
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps, place) if config.use_qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps, place) if config.use_qk_norm else None

    def forward(self, x: Tensor, rope: Tensor, ctx: ForwardContext) -> Tensor:
        """x [T, H], rope [T, 2, rotary_dim / 2] (rows of the table for the positions) -> [T, H]."""
        q, k, v = self._heads(x, rope, ctx)
        batch = ctx.attention
        if isinstance(batch, PagedBatch):
            kv = batch.kv[self.layer]
            ops.write_kv(kv, batch.slots, k, v)
            out = ops.paged_attention(
                q,
                kv,
                query_starts=batch.query_starts,
                kv_lengths=batch.kv_lengths,
                page_table=batch.page_table,
                scale=self.scale,
                row_tile=ctx.row_tile,
            )
        else:
            out = ops.dense_attention(q, k, v, buckets=batch.buckets, scale=self.scale)
        projected: Tensor = self.o_proj(out.flatten(1), ctx)
        return projected

    def write_kv(self, x: Tensor, rope: Tensor, ctx: ForwardContext) -> None:
        """Only store the keys and values of x [T, H], which are the same as in `forward`; nothing is attended to."""
        batch = ctx.attention
        assert isinstance(batch, PagedBatch)
        _, k, v = self._heads(x, rope, ctx)
        ops.write_kv(batch.kv[self.layer], batch.slots, k, v)

    def _heads(self, x: Tensor, rope: Tensor, ctx: ForwardContext) -> tuple[Tensor, Tensor, Tensor]:
        """x [T, H] -> queries [T, Hq, D], keys and values [T, Hkv, D], normed and turned."""
        heads = self.qkv_proj(x, ctx).unflatten(-1, (-1, self.head_dim))  # [T, Hq + 2 Hkv, D]
        q, k, v = heads.split([self.num_heads, self.num_kv_heads, self.num_kv_heads], dim=1)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return ops.apply_rope(q, rope), ops.apply_rope(k, rope), v


class MLP(nn.Module):
    """down(silu(gate(x)) * up(x)), without biases."""

    def __init__(self, hidden_size: int, width: int, place: Placement) -> None:
        super().__init__()
        self.gate_up_proj = Linear(hidden_size, 2 * width, place)
        self.down_proj = Linear(width, hidden_size, place)

    def forward(self, x: Tensor, ctx: ForwardContext) -> Tensor:
        """x [T, H] -> [T, H]."""
        out: Tensor = self.down_proj(ops.swiglu(self.gate_up_proj(x, ctx), exact=ctx.row_tile is not None), ctx)
        return out


class Router(nn.Module):
    """Scores of all experts and the bias that steers the choice (never the weights)."""

    e_score_correction_bias: Tensor

    def __init__(self, config: ModelConfig, place: Placement) -> None:
        super().__init__()
        self.config = config
        self.weight = place.parameter(config.n_routed_experts, config.hidden_size)
        self.register_buffer("e_score_correction_bias", torch.zeros(config.n_routed_experts, device=place.device))

    def forward(self, x: Tensor, ctx: ForwardContext) -> ops.Routing:
        """x [T, H] -> the routing of every token."""
        c = self.config
        return ops.route(
            x,
            self.weight,
            self.e_score_correction_bias,
            num_experts_per_tok=c.num_experts_per_tok,
            n_group=c.n_group,
            topk_group=c.topk_group,
            norm_topk_prob=c.norm_topk_prob,
            scaling=c.routed_scaling_factor,
            row_tile=ctx.row_tile,
        )


class Experts(nn.Module):
    """The routed experts' weights, stacked over experts."""

    def __init__(self, config: ModelConfig, place: Placement) -> None:
        super().__init__()
        e, m, h = config.n_routed_experts, config.moe_intermediate_size, config.hidden_size
        self.gate_up_proj = place.parameter(e, 2 * m, h)
        self.down_proj = place.parameter(e, h, m)

    def forward(self, x: Tensor, routing: ops.Routing, ctx: ForwardContext) -> Tensor:
        """x [T, H] -> weighted sum of the chosen experts [T, H] in fp32."""
        return ops.experts_mlp(x, routing, self.gate_up_proj, self.down_proj, row_tile=ctx.row_tile)


class MoE(nn.Module):
    """Routed experts plus the shared expert on the same input; the shared output is neither gated nor scaled."""

    def __init__(self, config: ModelConfig, layer: int, place: Placement) -> None:
        super().__init__()
        self.layer = layer
        self.gate = Router(config, place)
        self.experts = Experts(config, place)
        width = config.moe_intermediate_size * config.n_shared_experts
        self.shared_experts = MLP(config.hidden_size, width, place) if config.n_shared_experts else None

    def forward(self, x: Tensor, ctx: ForwardContext) -> Tensor:
        """x [T, H] -> [T, H]."""
        routing = self.gate(x, ctx)
        if ctx.on_routing is not None:
            ctx.on_routing(self.layer, routing)
        routed: Tensor = self.experts(x, routing, ctx).to(x.dtype)
        return routed if self.shared_experts is None else routed + self.shared_experts(x, ctx)


class DecoderLayer(nn.Module):
    """Pre-norm block: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: ModelConfig, layer: int, place: Placement) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, place)
        self.self_attn = Attention(config, layer, place)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, place)
        self.mlp = MoE(config, layer, place) if config.is_moe_layer(layer) else MLP(config.hidden_size, config.intermediate_size, place)

    def forward(self, x: Tensor, rope: Tensor, ctx: ForwardContext) -> Tensor:
        """x [T, H] -> [T, H]."""
        x = x + self.self_attn(self.input_layernorm(x), rope, ctx)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x), ctx)
        return out
