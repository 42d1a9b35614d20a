"""`DeviceWeights`: a model's matrices on their way to the GPU kernels.

`open_packed` gives every matrix memory in its final place and format; whoever reads a checkpoint fills it; `close` composes the layers of
`openglm.ops.triton` from it. `pack` does the three for a model in memory, dropping the original of each matrix before the next, so that no
more than one MLP exists twice.

The shared expert is the last of its layer's stack where it has the experts' format, else an MLP of its own. The last `host_experts[i]`
experts of KV layer i live in host memory as packed weights of the CPU kernels; the layer then keeps its shared expert apart as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from openglm import ops
from openglm.errors import ConfigError
from openglm.model.layers import MLP, DecoderLayer, Linear, MoE, drop_parameters
from openglm.ops.triton.host_experts import HostExperts
from openglm.ops.triton.matrix import DeviceMatrix

if TYPE_CHECKING:
    from openglm.model.transformer import GlmModel
    from openglm.ops.triton.experts import DeviceExperts
    from openglm.ops.triton.layer import DeviceLayer, DeviceMLP, DeviceMoE
    from openglm.ops.triton.linear import DeviceLinear

Target = DeviceMatrix | ops.PackedLinear
FormatOf = Callable[[str], ops.WeightFormat]
_GATE_UP, _DOWN = "experts.gate_up_proj", "experts.down_proj"
_SHARED_GATE_UP, _SHARED_DOWN = "shared_experts.gate_up_proj.weight", "shared_experts.down_proj.weight"


class DeviceWeights:
    """The matrices of one model; used once."""

    def __init__(self, model: GlmModel, *, host_experts: Sequence[int] | None = None, quantize_activations: bool = False) -> None:
        """host_experts: how many experts of each KV layer stay in host memory (default: none). The device is that of the embedding.

        quantize_activations: linear layers of e4m3 round many rows too, as an FP8 checkpoint may ask; experts and few rows never are.
        """
        config = model.config
        self._model = model
        self._quantize_activations = quantize_activations
        self._host = tuple(host_experts or (0,) * config.num_kv_layers)
        self._device, self._dtype = model.embed_tokens.device, model.embed_tokens.dtype
        self._matrices: dict[str, DeviceMatrix] = {}  # by parameter name; the shared expert in the stack has none
        self._packed: dict[str, tuple[ops.PackedLinear, ...]] = {}  # parts of experts on the host, expert after expert
        if config.n_group > 1 or config.n_shared_experts > 1:
            raise ConfigError("the GPU kernels choose experts from one group and have at most one shared expert")
        most = [config.n_routed_experts if config.is_moe_layer(i) else 0 for i in range(config.num_kv_layers)]
        if len(self._host) != len(most) or any(not 0 <= n <= limit for n, limit in zip(self._host, most, strict=True)):
            raise ConfigError(f"host_experts must say for each of {len(most)} layers how many of its experts stay in host memory")
        if any(self._host) and ops.cpu.available() is None:
            raise ConfigError("experts in host memory need the native CPU kernels, which were not built for this processor")

    def open_packed(self, format_of: FormatOf) -> dict[str, tuple[Target, ...]]:
        """By parameter name, the weights that take a matrix's rows, one behind the other. The parameters themselves are given up."""
        return {name: targets for unit in self._units() for name, targets in self._open(unit, format_of).items()}

    def pack(self, format_of: FormatOf) -> None:
        """Move the parameters of a model in memory, then `close`."""
        for unit in self._units():
            originals = {name: self._model.get_parameter(name) for name in self._names(unit)}
            for name, targets in self._open(unit, format_of).items():
                rows = originals.pop(name).detach().flatten(0, -2)
                for target, part in zip(targets, rows.split([t.out_features for t in targets]), strict=True):
                    if not target.fill(0, part.cpu() if isinstance(target, ops.PackedLinear) else part):
                        assert isinstance(target, ops.PackedLinear)
                        target.restart("float32")  # bf16 would lose bits
                        target.fill(0, part.cpu())
        self.close()

    def close(self) -> None:
        """Hand the filled matrices to the kernels and the layers to the model."""
        from openglm.ops.triton.layer import DeviceMTP, DeviceTrunk

        model, eps = self._model, self._model.config.rms_norm_eps
        layers = [self._layer(f"layers.{i}", layer) for i, layer in enumerate(model.layers) if isinstance(layer, DecoderLayer)]
        head = self._linear("lm_head", model.lm_head)
        model.lm_head.packed = head
        if model.mtp is not None:
            model.mtp.packed = DeviceMTP(
                eh=self._linear("mtp.eh_proj", model.mtp.eh_proj),
                layer=self._layer("mtp.layer", model.mtp.layer),
                head=head,
                embedding=model.embed_tokens,
                enorm=model.mtp.enorm.weight,
                hnorm=model.mtp.hnorm.weight,
                norm=model.mtp.norm.weight,
                eps=eps,
                rope=model.rope,
            )
        model.packed = DeviceTrunk(layers, embedding=model.embed_tokens, norm=model.norm.weight.detach(), eps=eps, rope=model.rope)

    def _units(self) -> list[tuple[str, nn.Module]]:
        """What is opened together: a whole MoE layer, or one matrix."""
        units: list[tuple[str, nn.Module]] = []
        inside: tuple[str, ...] = ()
        for name, module in self._model.named_modules():
            if isinstance(module, MoE):
                units.append((name, module))
                inside = (*inside, f"{name}.")
            elif isinstance(module, Linear) and not name.startswith(inside):
                units.append((name, module))
        return units

    @staticmethod
    def _names(unit: tuple[str, nn.Module]) -> list[str]:
        """The parameters of a unit."""
        name, module = unit
        if not isinstance(module, MoE):
            return [f"{name}.weight"]
        shared = [] if module.shared_experts is None else [_SHARED_GATE_UP, _SHARED_DOWN]
        return [f"{name}.{kind}" for kind in (_GATE_UP, _DOWN, *shared)]

    def _open(self, unit: tuple[str, nn.Module], format_of: FormatOf) -> dict[str, tuple[Target, ...]]:
        name, module = unit
        if isinstance(module, Linear):
            matrix = self._empty(f"{name}.weight", (module.weight.shape[0], module.weight.shape[1]), format_of(f"{name}.weight"))
            drop_parameters(module, "weight")
            return {f"{name}.weight": (matrix,)}
        assert isinstance(module, MoE)
        opened: dict[str, tuple[Target, ...]] = {}
        fused = self._fuses_shared(name, module, format_of)
        experts, shared = module.experts, module.shared_experts
        for kind, parts, shared_linear in (
            ("gate_up_proj", 2, None if shared is None else shared.gate_up_proj),
            ("down_proj", 1, None if shared is None else shared.down_proj),
        ):
            parameter, shared_name = f"{name}.experts.{kind}", f"{name}.shared_experts.{kind}.weight"
            count, rows, width = getattr(experts, kind).shape
            to, on_host = format_of(parameter), self._host[module.layer]
            local = (count - on_host) * rows
            targets: list[Target] = []
            if local or fused:
                stack = self._empty(parameter, (local + rows * fused, width), to)
                targets.append(stack.part(0, local))
                if fused:
                    opened[shared_name] = (stack.part(local, local + rows),)
            if on_host:
                begun: ops.WeightFormat = "fp8" if to == "fp8" else "bfloat16"
                self._packed[parameter] = tuple(ops.PackedLinear.empty(rows // parts, width, begun) for _ in range(on_host * parts))
                targets += self._packed[parameter]
            opened[parameter] = tuple(targets)
            drop_parameters(experts, kind)
            if shared_linear is not None:
                if not fused:
                    opened[shared_name] = (
                        self._empty(shared_name, (shared_linear.weight.shape[0], shared_linear.weight.shape[1]), format_of(shared_name)),
                    )
                drop_parameters(shared_linear, "weight")
        return opened

    def _fuses_shared(self, name: str, module: MoE, format_of: FormatOf) -> bool:
        if module.shared_experts is None or self._host[module.layer]:
            return False
        pairs = ((_GATE_UP, _SHARED_GATE_UP), (_DOWN, _SHARED_DOWN))
        return all(format_of(f"{name}.{routed}") == format_of(f"{name}.{shared}") for routed, shared in pairs)

    def _empty(self, name: str, shape: tuple[int, int], to: ops.WeightFormat) -> DeviceMatrix:
        """Memory for a matrix: e4m3, or the dtype of the activations."""
        if to not in ("fp8", "bfloat16", "float32"):
            raise ConfigError(f"quantization {to} is one of the CPU kernels'; a GPU has fp8")
        matrix = DeviceMatrix.empty(*shape, torch.float8_e4m3fn if to == "fp8" else self._dtype, self._device)
        self._matrices[name] = matrix
        return matrix

    def _linear(self, name: str, module: Linear) -> DeviceLinear:
        """Without its bias: only QKV has one, which is added where heads are turned."""
        from openglm.ops.triton.linear import DeviceLinear

        matrix = self._matrices.pop(f"{name}.weight")
        return DeviceLinear(
            matrix.data, scales=matrix.scales, quantize_activations=self._quantize_activations and matrix.scales is not None
        )

    def _mlp(self, name: str, module: MLP) -> DeviceMLP:
        from openglm.ops.triton.layer import DeviceMLP

        return DeviceMLP(self._linear(f"{name}.gate_up_proj", module.gate_up_proj), self._linear(f"{name}.down_proj", module.down_proj))

    def _moe(self, name: str, module: MoE) -> DeviceExperts | DeviceMoE:
        from openglm.ops.triton.experts import DeviceExperts
        from openglm.ops.triton.layer import DeviceMoE, RouterSettings

        config, on_host = module.gate.config, self._host[module.layer]
        router, bias = module.gate.weight.detach(), module.gate.e_score_correction_bias
        settings = RouterSettings(config.num_experts_per_tok, config.norm_topk_prob, config.routed_scaling_factor)
        num_local = config.n_routed_experts - on_host
        local, fused = None, False
        if num_local:
            gate_up, down = self._matrices.pop(f"{name}.{_GATE_UP}"), self._matrices.pop(f"{name}.{_DOWN}")
            fused = module.shared_experts is not None and f"{name}.{_SHARED_DOWN}" not in self._matrices
            local = DeviceExperts(
                _stacked(gate_up.data, num_local + fused),
                _stacked(down.data, num_local + fused),
                None if gate_up.scales is None else _stacked(gate_up.scales, num_local + fused),
                None if down.scales is None else _stacked(down.scales, num_local + fused),
                router=router[:num_local],
                router_bias=bias[:num_local],
                num_experts_per_tok=config.num_experts_per_tok,
                norm_topk_prob=config.norm_topk_prob,
                scaling=config.routed_scaling_factor,
                num_shared=int(fused),
            )
        shared = None
        if module.shared_experts is not None and not fused:
            shared = self._mlp(f"{name}.shared_experts", module.shared_experts)
        if local is not None and shared is None and not on_host:
            return local
        return DeviceMoE(local, host=self._host_part(name, num_local), shared=shared, router=router, router_bias=bias, settings=settings)

    def _host_part(self, name: str, first: int) -> HostExperts | None:
        gate_up, down = self._packed.pop(f"{name}.{_GATE_UP}", ()), self._packed.pop(f"{name}.{_DOWN}", ())
        experts = [ops.PackedMLP(*weights) for weights in zip(gate_up[::2], gate_up[1::2], down, strict=True)]
        return HostExperts(experts, first=first) if experts else None

    def _layer(self, name: str, module: DecoderLayer) -> DeviceLayer:
        from openglm.ops.triton.layer import DeviceLayer

        attention, config = module.self_attn, module.config
        mlp = self._moe(f"{name}.mlp", module.mlp) if isinstance(module.mlp, MoE) else self._mlp(f"{name}.mlp", module.mlp)
        bias = attention.qkv_proj.bias
        drop_parameters(attention.qkv_proj, "bias")
        return DeviceLayer(
            qkv_bias=None if bias is None else bias.detach(),
            qkv=self._linear(f"{name}.self_attn.qkv_proj", attention.qkv_proj),
            o=self._linear(f"{name}.self_attn.o_proj", attention.o_proj),
            mlp=mlp,
            input_norm=module.input_layernorm.weight.detach(),
            post_norm=module.post_attention_layernorm.weight.detach(),
            q_norm=None if attention.q_norm is None else attention.q_norm.weight.detach(),
            k_norm=None if attention.k_norm is None else attention.k_norm.weight.detach(),
            eps=config.rms_norm_eps,
            num_heads=config.num_attention_heads,
            head_dim=config.head_dim,
        )


def _stacked(rows: Tensor, count: int) -> Tensor:
    """Rows of `count` experts, one behind the other -> [count, rows of one, ...]."""
    return rows.view(count, -1, *rows.shape[1:])
