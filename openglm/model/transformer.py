"""`GlmModel`: embedding, decoder layers, final norm, head, and the MTP layer.

The model is a plain single-device module. It reads nothing but its weights, the tokens and the `ForwardContext`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openglm import ops
from openglm.config import ModelConfig
from openglm.model.context import ForwardContext
from openglm.model.device_weights import DeviceWeights
from openglm.model.layers import DecoderLayer, Experts, Linear, Placement, RMSNorm, Router

if TYPE_CHECKING:
    from openglm.ops.triton.layer import DeviceMTP, DeviceTrunk

_UNROUNDED: Final = (None, "float32", "bfloat16")

DRAFT_FORMAT: Final[ops.WeightFormat] = "w8a8"
"""Of the MTP layer and a second head where they only draft: drafts are checked, so rounding costs a few of them and changes no token."""


def packed_format(parameter: str, to: ops.WeightFormat | None, *, only_drafts: bool = False) -> ops.WeightFormat | None:
    """The format of one matrix in a model that is packed `to`; None is bf16, or fp32 where that would lose bits.

    With `only_drafts` the MTP layer's matrices are in `DRAFT_FORMAT`, unless all are rounded anyway.

    The head keeps its dtype beside fp8, as in the published FP8 checkpoints, and is int8 beside the integer formats (in w8a8 as its
    layers are): it is a tenth of what one token of GLM-4.5-Air reads, and weighs every logit alike. `eh_proj`, where both inputs of the
    MTP layer meet, is never rounded.
    """
    if only_drafts and parameter.startswith("mtp.layer.") and to in _UNROUNDED:
        return DRAFT_FORMAT
    if parameter == "lm_head.weight":
        return "int8" if to in ("int8", "int4") else None if to == "fp8" else to
    return None if parameter == "mtp.eh_proj.weight" and to not in ("float32", "bfloat16") else to


class MTPLayer(nn.Module):
    """Multi-token prediction: one more MoE decoder layer that turns (hidden of t_i, token t_{i+1}) into a guess of t_{i+2}.

    Forward of one step (vLLM `glm4_moe_mtp.py`, SGLang `glm4_moe_nextn.py`): eh_proj(concat(enorm(embedding), hnorm(hidden)))
    through the layer, then its own final norm. Embedding and head are the trunk's.
    """

    def __init__(self, config: ModelConfig, place: Placement) -> None:
        super().__init__()
        h, eps = config.hidden_size, config.rms_norm_eps
        self.enorm = RMSNorm(h, eps, place)
        self.hnorm = RMSNorm(h, eps, place)
        self.eh_proj = Linear(2 * h, h, place)
        self.layer = DecoderLayer(config, config.num_hidden_layers, place)
        self.norm = RMSNorm(h, eps, place)
        self.packed: ops.PackedMTP | DeviceMTP | None = None

    def forward(self, embedded: Tensor, hidden: Tensor, rope: Tensor, ctx: ForwardContext) -> Tensor:
        """embedded [T, H] of the next tokens, hidden [T, H] of the present ones -> [T, H] after the layer's own norm."""
        out: Tensor = self.norm(self.layer(self._input(embedded, hidden, ctx), rope, ctx), ctx)
        return out

    def write_kv(self, embedded: Tensor, hidden: Tensor, rope: Tensor, ctx: ForwardContext) -> None:
        """Only store the layer's keys and values, which depend on nothing but its input: no attention, no experts."""
        self.layer.self_attn.write_kv(self.layer.input_layernorm(self._input(embedded, hidden, ctx), ctx), rope, ctx)

    def _input(self, embedded: Tensor, hidden: Tensor, ctx: ForwardContext) -> Tensor:
        joined: Tensor = self.eh_proj(torch.cat([self.enorm(embedded, ctx), self.hnorm(hidden, ctx)], dim=-1), ctx)
        return joined


class GlmModel(nn.Module):
    """A GLM-4.5-family model. Parameters are uninitialised until loaded or `init_weights` is called."""

    rope: Tensor

    def __init__(
        self,
        config: ModelConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        matrices_later: bool = False,
    ) -> None:
        """`matrices_later`: matrices have no memory; their values go into what `open_packed` returns."""
        super().__init__()
        self.config = config
        place = Placement(torch.device(device or "cpu"), dtype, matrices_later)
        self.embed_tokens = place.parameter(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, i, place) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, place)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, place)
        self.mtp = MTPLayer(config, place) if config.has_mtp else None
        table = ops.rope_table(config.max_position_embeddings, config.rotary_dim, config.rope_theta, place.device)
        self.register_buffer("rope", table, persistent=False)
        self.packed: ops.PackedTrunk | DeviceTrunk | None = None

    @property
    def has_mtp(self) -> bool:
        """Whether the model can draft."""
        return self.mtp is not None

    def forward(self, tokens: Tensor, ctx: ForwardContext) -> Tensor:
        """tokens [T] int64 -> hidden states [T, H] after the final norm."""
        if self.packed is not None:
            return self.packed(tokens, ctx.pages, positions=ctx.positions)
        x = F.embedding(tokens, self.embed_tokens)
        rope = self.rope[ctx.positions]
        for layer in self.layers:
            x = layer(x, rope, ctx)
        out: Tensor = self.norm(x, ctx)
        return out

    def mtp_forward(self, next_tokens: Tensor, hidden: Tensor, ctx: ForwardContext) -> Tensor:
        """Draft step: token t_{i+1} [T] and hidden state h_i [T, H] at position i -> [T, H], whose logits guess t_{i+2}.

        `hidden` is the trunk's normed output or, when chaining, this method's own; positions and slots are those of t_i.
        """
        if self.mtp is None:
            raise ValueError("this model has no MTP layer")
        packed = self.mtp.packed
        if packed is not None and not isinstance(packed, ops.PackedMTP):
            return packed(next_tokens, hidden, ctx.pages, positions=ctx.positions)
        out: Tensor = self.mtp(F.embedding(next_tokens, self.embed_tokens), hidden, self.rope[ctx.positions], ctx)
        return out

    def mtp_write_kv(self, next_tokens: Tensor, hidden: Tensor, ctx: ForwardContext) -> None:
        """The part of `mtp_forward` that later positions depend on: the KV entries of positions that draft nothing themselves."""
        if self.mtp is None:
            raise ValueError("this model has no MTP layer")
        batch = ctx.attention
        if self.mtp.packed is not None and isinstance(batch, ops.PagedBatch):
            self.mtp.packed.write_kv(next_tokens, hidden, ctx.positions, batch.slots, batch.kv[self.mtp.layer.self_attn.layer])
            return
        self.mtp.write_kv(F.embedding(next_tokens, self.embed_tokens), hidden, self.rope[ctx.positions], ctx)

    def logits(self, hidden: Tensor, *, row_tile: int | None = None) -> Tensor:
        """hidden [N, H] (normed, from the trunk or the MTP layer) -> [N, vocab] fp32."""
        if self.lm_head.packed is not None:
            return self.lm_head.packed.logits(hidden)
        return ops.linear(hidden, self.lm_head.weight, row_tile=row_tile).float()

    @property
    def is_packed(self) -> bool:
        """Whether the weights were handed to kernels, of the CPU or of a device, so that the model can only infer."""
        return self.packed is not None

    @property
    def capturable(self) -> bool:
        """Whether a step of the trunk can be captured in a CUDA graph: device kernels run it and no layer waits for host memory."""
        return self.packed is not None and not isinstance(self.packed, ops.PackedTrunk) and self.packed.capturable

    def on_device(self, *, host_experts: Sequence[int] | None = None, quantize_activations: bool = False) -> DeviceWeights:
        """The way to the kernels of a GPU (`openglm.ops.triton`), for `pack` or a loader; needs Triton to be closed.

        `host_experts`: how many experts of each KV layer stay in host memory and are computed there; `quantize_activations`: see
        `DeviceWeights`.
        """
        return DeviceWeights(self, host_experts=host_experts, quantize_activations=quantize_activations)

    def open_packed(self, format_of: Callable[[str], ops.WeightFormat]) -> dict[str, tuple[ops.PackedLinear, ...]]:
        """For every matrix that packing replaces, by parameter name: the packed weights that take its rows, one behind the other.

        `format_of` says in which format each is made; see `packed_format` for what is usual.
        """
        opened: dict[str, tuple[ops.PackedLinear, ...]] = {}
        for name, module in self.named_modules():
            if isinstance(module, Linear):
                opened[f"{name}.weight"] = module.open_packed(format_of(f"{name}.weight"))
            elif isinstance(module, Experts):
                for kind in ("gate_up_proj", "down_proj"):
                    opened[f"{name}.{kind}"] = module.open_packed(kind, format_of(f"{name}.{kind}"))
        return opened

    @torch.no_grad()
    def pack(self, to: ops.WeightFormat | None = None, *, only_drafts: bool = False) -> GlmModel:
        """Move every matrix but the embedding to the kernels of the model's device, dropping the original of each before the next.

        `to` is the format of the layers' matrices; see `packed_format` for the rest. `only_drafts` says that the MTP layer's output is
        of use for nothing but drafts, which may then be made with rounded weights and a rounded copy of the head. What `open_packed`
        opened keeps what it was given. Whether the kernels cover this model is for `config.engine.resolve` to say. Returns the model.
        """
        if self.embed_tokens.device.type != "cpu":
            self.on_device().pack(lambda name: packed_format(name, to) or "bfloat16")
            return self
        layers = []
        for layer in self.layers:
            assert isinstance(layer, DecoderLayer)
            layers.append(layer.pack(to))
        head = self.lm_head.pack(packed_format("lm_head.weight", to))
        if self.mtp is not None:
            self.mtp.packed = ops.PackedMTP(
                eh=self.mtp.eh_proj.pack(packed_format("mtp.eh_proj.weight", to)),
                layer=self.mtp.layer.pack(packed_format("mtp.layer.", to, only_drafts=only_drafts)),
                head=head.rounded(DRAFT_FORMAT) if only_drafts and head.format in _UNROUNDED else head,
                embedding=self.embed_tokens,
                enorm=self.mtp.enorm.weight,
                hnorm=self.mtp.hnorm.weight,
                norm=self.mtp.norm.weight,
                rope=self.rope,
            )
        self.packed = ops.PackedTrunk(layers, embedding=self.embed_tokens, norm=self.norm.weight, rope=self.rope)
        return self

    @torch.no_grad()
    def init_weights(self, seed: int) -> GlmModel:
        """Fill with a seeded normal start: matrices N(0, initializer_range), norms 1, biases 0. Returns the model."""
        generator = torch.Generator(device="cpu").manual_seed(seed)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif parameter.dim() == 1:
                parameter.fill_(1.0)
            else:
                parameter.copy_(torch.empty(parameter.shape).normal_(0.0, self.config.initializer_range, generator=generator))
        for module in self.modules():
            if isinstance(module, Router):
                module.e_score_correction_bias.zero_()
        return self
