"""The operations of the model, behind one dispatch point.

Every op has a plain torch version in `ops.reference` that is its specification. `ops.cpu` holds native kernels for the ops of a
decoder layer; whoever has packed a model's weights (`GlmModel.pack`) asks for them with `native`. Everything above imports from
this package only.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from openglm.ops import cpu, reference
from openglm.ops.cpu import PackedExperts, PackedLayer, PackedLinear, PackedMLP, PackedMTP, PackedTrunk, WeightFormat
from openglm.ops.paged_batch import PagedBatch
from openglm.ops.reference.attention import PAGE_SIZE, Bucket, KVLayer, dense_attention, kv_tensors, paged_attention, write_kv
from openglm.ops.reference.experts import Routing, balance_loss, experts_mlp, route
from openglm.ops.reference.fp8_kv import FP8, Fp8KV, dequantize_kv, quantize_kv
from openglm.ops.reference.linear import linear
from openglm.ops.reference.rope import apply_rope, rope_heads, rope_table
from openglm.ops.reference.swiglu import swiglu


class LinearKernel(Protocol):
    """A weight that was handed to kernels: `PackedLinear` on the CPU, `DeviceLinear` on a GPU."""

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x [T, K] -> [T, N] in the dtype of x, plus `residual` [T, N] if given."""

    def logits(self, x: Tensor) -> Tensor:
        """x [T, K] -> [T, N] fp32."""


def highest(x: Tensor) -> tuple[Tensor, Tensor]:
    """See `reference.highest.highest`; exact, so the kernel runs wherever there is one."""
    native = cpu.available() is not None and x.dtype == torch.float32 and x.device.type == "cpu"
    return cpu.highest(x) if native else reference.highest.highest(x)


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, native: bool = False) -> Tensor:
    """See `reference.norm.rms_norm`."""
    return cpu.rms_norm(x, weight, eps) if native else reference.norm.rms_norm(x, weight, eps)


def rope_and_write(
    qkv: Tensor,
    *,
    num_heads: int,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
    rope: Tensor,
    slots: Tensor,
    kv: KVLayer,
    native: bool = False,
) -> Tensor:
    """See `reference.rope.rope_and_write`."""
    run = cpu.rope_and_write if native else reference.rope.rope_and_write
    return run(qkv, num_heads=num_heads, q_norm=q_norm, k_norm=k_norm, eps=eps, rope=rope, slots=slots, kv=kv)


__all__ = [
    "FP8",
    "PAGE_SIZE",
    "Bucket",
    "Fp8KV",
    "KVLayer",
    "LinearKernel",
    "PackedExperts",
    "PackedLayer",
    "PackedLinear",
    "PackedMLP",
    "PackedMTP",
    "PackedTrunk",
    "PagedBatch",
    "Routing",
    "WeightFormat",
    "apply_rope",
    "balance_loss",
    "cpu",
    "dense_attention",
    "dequantize_kv",
    "experts_mlp",
    "highest",
    "kv_tensors",
    "linear",
    "paged_attention",
    "quantize_kv",
    "rms_norm",
    "rope_and_write",
    "rope_heads",
    "rope_table",
    "route",
    "swiglu",
    "write_kv",
]
