"""The parts of a decoder layer: projections, attention, dense MLP, mixture of experts.

Modules hold parameters and name the maths; the maths is in `openglm.ops`. Fused parameters stack the checkpoint's tensors
by rows: qkv_proj = q, k, v; gate_up_proj = gate, up. Shape legend: T tokens, H hidden, D head dim.

`pack()` hands a module's weights to `openglm.ops.cpu` and drops them here: from then on it only infers. It is told the format, or (None)
keeps bf16 or fp32, whichever is narrower without a loss. A checkpoint that goes straight into packed weights never has them here: the
model is made with `Placement.matrices_later`, `open_packed()` gives the empty packed weights of a matrix, and `pack()` closes them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from openglm import ops
from openglm.config import ModelConfig
from openglm.model.context import ForwardContext


@dataclass(frozen=True)
class Placement:
    """Where parameters are made, and in which dtype: a large model must never exist in another one first."""

    device: torch.device
    dtype: torch.dtype
    matrices_later: bool = False
    """Matrices have a shape and no memory: their values will go into packed weights."""

    def matrix(self, *shape: int) -> nn.Parameter:
        """An uninitialised parameter that packing replaces."""
        if not self.matrices_later:
            return self.parameter(*shape)
        return nn.Parameter(torch.empty(1, device=self.device, dtype=self.dtype).expand(shape))

    def parameter(self, *shape: int) -> nn.Parameter:
        """An uninitialised parameter."""
        return nn.Parameter(torch.empty(shape, device=self.device, dtype=self.dtype))


class Linear(nn.Module):
    """A weight [out, in] and an optional bias [out]. `parts` weights of equal size may be stacked in it; packed, each stands alone."""

    def __init__(self, in_features: int, out_features: int, place: Placement, *, bias: bool = False, parts: int = 1) -> None:
        super().__init__()
        self.weight = place.matrix(out_features, in_features)
        self.bias = place.parameter(out_features) if bias else None
        self.num_parts = parts
        self.parts: tuple[ops.PackedLinear, ...] = ()
        self.packed: ops.LinearKernel | None = None

    def forward(self, x: Tensor, ctx: ForwardContext, residual: Tensor | None = None) -> Tensor:
        """x [T, in] -> [T, out], plus `residual` [T, out] if given."""
        if self.packed is not None:
            return self.packed(x, residual)
        out = ops.linear(x, self.weight, self.bias, row_tile=ctx.row_tile)
        return out if residual is None else residual + out

    def open_packed(self, to: ops.WeightFormat) -> tuple[ops.PackedLinear, ...]:
        """Give up the weight and return the packed ones that take its rows, one behind the other."""
        rows, width = self.weight.shape
        self.parts = tuple(ops.PackedLinear.empty(rows // self.num_parts, width, to) for _ in range(self.num_parts))
        drop_parameters(self, "weight")
        return self.parts

    def pack_parts(self, to: ops.WeightFormat | None = None) -> tuple[ops.PackedLinear, ...]:
        """Move the weight into native layout, if that has not happened, part by part."""
        if not self.parts:
            self.parts = tuple(ops.PackedLinear(part, to=to) for part in self.weight.chunk(self.num_parts))
            drop_parameters(self, "weight")
        return self.parts

    def pack(self, to: ops.WeightFormat | None = None) -> ops.PackedLinear:
        """The same for a weight in one part, with its bias."""
        (packed,) = self.pack_parts(to)
        if self.bias is not None:
            packed.set_bias(self.bias)
            drop_parameters(self, "bias")
        self.packed = packed
        return packed


class RMSNorm(nn.Module):
    """Root-mean-square norm with a weight over the last dim."""

    def __init__(self, dim: int, eps: float, place: Placement) -> None:
        super().__init__()
        self.weight = place.parameter(dim)
        self.eps = eps

    def forward(self, x: Tensor, ctx: ForwardContext) -> Tensor:
        """x [T, dim] -> [T, dim]."""
        return ops.rms_norm(x, self.weight, self.eps, native=ctx.native)


class Attention(nn.Module):
    """Grouped-query attention with biases on q, k, v, optional per-head QK norm and partial RoPE."""

    def __init__(self, config: ModelConfig, layer: int, place: Placement) -> None:
        super().__init__()
        self.layer = layer
        self.num_heads, self.num_kv_heads, self.head_dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.scale = config.head_dim**-0.5
        self.eps = config.rms_norm_eps
        self.qkv_proj = Linear(config.hidden_size, config.query_dim + 2 * config.kv_dim, place, bias=config.attention_bias)
        self.o_proj = Linear(config.query_dim, config.hidden_size, place)
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps, place) if config.use_qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps, place) if config.use_qk_norm else None

    def forward(self, x: Tensor, residual: Tensor, rope: Tensor, ctx: ForwardContext) -> Tensor:
        """x [T, H] normed, rope [T, 2, rotary_dim / 2] (rows of the table for the positions) -> residual + attention [T, H]."""
        qkv = self.qkv_proj(x, ctx)
        batch = ctx.attention
        if isinstance(batch, ops.PagedBatch):
            out = ops.paged_attention(
                self._write(qkv, rope, batch, ctx),
                batch.kv[self.layer],
                query_starts=batch.query_starts,
                kv_lengths=batch.kv_lengths,
                page_table=batch.page_table,
                scale=self.scale,
                row_tile=ctx.row_tile,
            )
        else:
            q, k, v = ops.rope_heads(
                qkv,
                num_heads=self.num_heads,
                num_kv_heads=self.num_kv_heads,
                q_norm=None if self.q_norm is None else self.q_norm.weight,
                k_norm=None if self.k_norm is None else self.k_norm.weight,
                eps=self.eps,
                rope=rope,
            )
            out = ops.dense_attention(q, k, v, buckets=batch.buckets, scale=self.scale)
        projected: Tensor = self.o_proj(out.flatten(1), ctx, residual)
        return projected

    def write_kv(self, x: Tensor, rope: Tensor, ctx: ForwardContext) -> None:
        """Only store the keys and values of x [T, H], which are the same as in `forward`; nothing is attended to."""
        batch = ctx.attention
        assert isinstance(batch, ops.PagedBatch)
        self._write(self.qkv_proj(x, ctx), rope, batch, ctx)

    def _write(self, qkv: Tensor, rope: Tensor, batch: ops.PagedBatch, ctx: ForwardContext) -> Tensor:
        """Norm and turn qkv [T, (Hq + 2 Hkv) D], store keys and values; the queries [T, Hq, D]."""
        return ops.rope_and_write(
            qkv,
            num_heads=self.num_heads,
            q_norm=None if self.q_norm is None else self.q_norm.weight,
            k_norm=None if self.k_norm is None else self.k_norm.weight,
            eps=self.eps,
            rope=rope,
            slots=batch.slots,
            kv=batch.kv[self.layer],
            native=ctx.native,
        )


class MLP(nn.Module):
    """down(silu(gate(x)) * up(x)), without biases."""

    def __init__(self, hidden_size: int, width: int, place: Placement) -> None:
        super().__init__()
        self.gate_up_proj = Linear(hidden_size, 2 * width, place, parts=2)
        self.down_proj = Linear(width, hidden_size, place)

    def forward(self, x: Tensor, residual: Tensor, ctx: ForwardContext) -> Tensor:
        """x [T, H] normed -> residual + mlp(x) [T, H]."""
        out: Tensor = self.down_proj(ops.swiglu(self.gate_up_proj(x, ctx), exact=ctx.row_tile is not None), ctx, residual)
        return out

    def pack(self, to: ops.WeightFormat | None = None) -> ops.PackedMLP:
        """Move the three weights into native layout."""
        return ops.PackedMLP(*self.gate_up_proj.pack_parts(to), *self.down_proj.pack_parts(to))


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
        self.gate_up_proj = place.matrix(e, 2 * m, h)
        self.down_proj = place.matrix(e, h, m)
        self.parts: dict[str, tuple[ops.PackedLinear, ...]] = {}

    def forward(self, x: Tensor, routing: ops.Routing, ctx: ForwardContext) -> Tensor:
        """x [T, H] -> weighted sum of the chosen experts [T, H] in fp32."""
        return ops.experts_mlp(x, routing, self.gate_up_proj, self.down_proj, row_tile=ctx.row_tile)

    def open_packed(self, name: str, to: ops.WeightFormat) -> tuple[ops.PackedLinear, ...]:
        """Give up the parameter "gate_up_proj" or "down_proj" and return the packed weights that take its rows, expert after expert."""
        experts, rows, width = getattr(self, name).shape
        parts = 2 if name == "gate_up_proj" else 1
        self.parts[name] = tuple(ops.PackedLinear.empty(rows // parts, width, to) for _ in range(experts * parts))
        drop_parameters(self, name)
        return self.parts[name]

    def pack(self, to: ops.WeightFormat | None = None) -> list[ops.PackedMLP]:
        """Move the weights into native layout, if that has not happened."""
        if not self.parts:
            packed = ops.PackedExperts.pack(self.gate_up_proj, self.down_proj, to=to)
            drop_parameters(self, "gate_up_proj", "down_proj")
            return packed
        gate_up, down = self.parts["gate_up_proj"], self.parts["down_proj"]
        return [ops.PackedMLP(*weights) for weights in zip(gate_up[::2], gate_up[1::2], down, strict=True)]


class MoE(nn.Module):
    """Routed experts plus the shared expert on the same input; the shared output is neither gated nor scaled."""

    def __init__(self, config: ModelConfig, layer: int, place: Placement) -> None:
        super().__init__()
        self.layer = layer
        self.gate = Router(config, place)
        self.experts = Experts(config, place)
        width = config.moe_intermediate_size * config.n_shared_experts
        self.shared_experts = MLP(config.hidden_size, width, place) if config.n_shared_experts else None

    def forward(self, x: Tensor, residual: Tensor, ctx: ForwardContext) -> Tensor:
        """x [T, H] normed -> residual + moe(x) [T, H]."""
        routing = self.gate(x, ctx)
        if ctx.on_routing is not None:
            ctx.on_routing(self.layer, routing)
        routed: Tensor = self.experts(x, routing, ctx).to(x.dtype)
        return residual + routed if self.shared_experts is None else self.shared_experts(x, residual + routed, ctx)

    def pack(self, to: ops.WeightFormat | None = None) -> ops.PackedExperts:
        """Move router, experts and shared expert into native layout; the router stays fp32."""
        config = self.gate.config
        packed = ops.PackedExperts(
            self.experts.pack(to),
            router=self.gate.weight,
            router_bias=self.gate.e_score_correction_bias,
            shared=None if self.shared_experts is None else self.shared_experts.pack(to),
            num_experts_per_tok=config.num_experts_per_tok,
            norm_topk_prob=config.norm_topk_prob,
            scaling=config.routed_scaling_factor,
        )
        drop_parameters(self.gate, "weight")
        return packed


class DecoderLayer(nn.Module):
    """Pre-norm block: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: ModelConfig, layer: int, place: Placement) -> None:
        super().__init__()
        self.config = config
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, place)
        self.self_attn = Attention(config, layer, place)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, place)
        self.mlp = MoE(config, layer, place) if config.is_moe_layer(layer) else MLP(config.hidden_size, config.intermediate_size, place)
        self.packed: ops.PackedLayer | None = None

    def forward(self, x: Tensor, rope: Tensor, ctx: ForwardContext) -> Tensor:
        """x [T, H] -> [T, H]. Once packed, x itself is overwritten."""
        if self.packed is not None:
            return self._run_packed(self.packed, x, rope, ctx)
        x = self.self_attn(self.input_layernorm(x, ctx), x, rope, ctx)
        out: Tensor = self.mlp(self.post_attention_layernorm(x, ctx), x, ctx)
        return out

    def pack(self, to: ops.WeightFormat | None = None) -> ops.PackedLayer:
        """Move every matrix of the layer into native layout, one after another."""
        attention, config = self.self_attn, self.config
        self.packed = ops.PackedLayer(
            qkv=attention.qkv_proj.pack(to),
            o=attention.o_proj.pack(to),
            mlp=self.mlp.pack(to),
            input_norm=self.input_layernorm.weight,
            post_norm=self.post_attention_layernorm.weight,
            q_norm=None if attention.q_norm is None else attention.q_norm.weight,
            k_norm=None if attention.k_norm is None else attention.k_norm.weight,
            eps=config.rms_norm_eps,
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            rotary_dim=config.rotary_dim,
        )
        return self.packed

    def _run_packed(self, packed: ops.PackedLayer, x: Tensor, rope: Tensor, ctx: ForwardContext) -> Tensor:
        batch = ctx.pages
        return packed(x, batch, rope=rope, kv=batch.kv[self.self_attn.layer])


def drop_parameters(module: nn.Module, *names: str) -> None:
    """Forget parameters whose packed copy took over; their storage is freed with the last reference."""
    for name in names:
        setattr(module, name, None)
