"""Models of random weights, made where they are measured: a checkpoint of 110 GB takes seconds and no file.

e4m3 codes are random bytes with the two NaN patterns taken out, and scales such that a row has length one; other matrices are
N(0, 1 / K). Values stay in range through all layers, and every router sees another direction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from openglm.bench.gpu.byte_model import weight_bytes_total
from openglm.config import ModelConfig
from openglm.errors import ConfigError
from openglm.model import GlmModel
from openglm.model.transformer import packed_format
from openglm.ops import FP8, Fp8KV, KVLayer, PackedLinear, kv_tensors
from openglm.ops.triton.matrix import DeviceMatrix

_CHUNK = 1 << 28  # elements that are made at once
_NAN_CODE = 0x7F


def random_codes(out: Tensor, generator: torch.Generator) -> None:
    """Fill e4m3 memory with codes that are numbers, each as likely."""
    for part in out.view(torch.uint8).view(-1).split(_CHUNK):
        part.random_(0, 256, generator=generator)
        part.sub_(((part & 0x7F) == _NAN_CODE).to(torch.uint8))


def code_deviation() -> float:
    """Root mean square of such a code."""
    codes = torch.arange(256, dtype=torch.uint8)
    codes -= ((codes & 0x7F) == _NAN_CODE).to(torch.uint8)
    return float(codes.view(FP8).double().square().mean().sqrt())


def random_matrix(matrix: DeviceMatrix, generator: torch.Generator) -> None:
    """Fill a weight whose rows have K inputs, so that outputs are about as large as inputs."""
    deviation = matrix.data.shape[1] ** -0.5
    if matrix.scales is None:
        for part in matrix.data.view(-1).split(_CHUNK):
            part.normal_(0.0, deviation, generator=generator)
        return
    random_codes(matrix.data, generator)
    matrix.scales.uniform_(0.8, 1.2, generator=generator).mul_(deviation / code_deviation())


def random_model(config: ModelConfig, device: torch.device, *, fp8: bool, seed: int = 0) -> GlmModel:
    """A model on the GPU kernels, in bf16 or as an FP8 checkpoint has it."""
    generator = torch.Generator(device).manual_seed(seed)

    def fill(model: GlmModel, targets: dict[str, tuple[DeviceMatrix | PackedLinear, ...]]) -> None:
        for parts in targets.values():
            for part in parts:
                assert isinstance(part, DeviceMatrix)
                random_matrix(part, generator)
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 1.0 if name == "embed_tokens" else parameter.shape[1] ** -0.5, generator=generator)
            elif name.endswith("bias"):
                parameter.normal_(0.0, 0.02, generator=generator)
            else:
                parameter.fill_(1.0)

    return filled_model(config, device, fp8=fp8, fill=fill)


@torch.no_grad()
def filled_model(
    config: ModelConfig,
    device: torch.device,
    *,
    fp8: bool,
    fill: Callable[[GlmModel, dict[str, tuple[DeviceMatrix | PackedLinear, ...]]], None],
) -> GlmModel:
    """A model whose matrices and remaining parameters `fill` has given values."""
    model = GlmModel(config, device=device, dtype=torch.bfloat16, matrices_later=True)
    weights = model.on_device(quantize_activations=fp8)  # as the published FP8 checkpoints ask
    fill(model, weights.open_packed(lambda name: packed_format(name, "fp8" if fp8 else None) or "bfloat16"))
    weights.close()
    return model


def random_kv(layers: list[KVLayer], generator: torch.Generator) -> None:
    """Keys and values of about N(0, 1) in every page."""
    for layer in layers:
        if isinstance(layer, Fp8KV):
            random_codes(layer.data, generator)
            layer.scales.fill_(1.0 / code_deviation())
        else:
            for tensor in kv_tensors(layer):
                tensor.normal_(generator=generator)


def fitting(config: ModelConfig, free_bytes: int, *, weight_bytes: float, beside: int) -> ModelConfig:
    """The model, or so many of its first layers as leave `beside` bytes free. Raises `ConfigError` where not even one of each kind fits."""
    room = free_bytes - beside
    layers = config.num_hidden_layers
    while weight_bytes_total(replace(config, num_hidden_layers=layers), weight_bytes) > room:
        layers -= 1
        if layers <= config.first_k_dense_replace:
            raise ConfigError(f"{free_bytes / 1e9:.1f} GB of the GPU are free, and not even a few layers fit beside {beside / 1e9:.1f} GB")
    return replace(config, num_hidden_layers=layers)
