"""The operations of the model, behind one dispatch point.

Every op has a plain torch version in `ops.reference` that is its specification. A device with a faster kernel overrides
the op here; everything above imports from this package only.
"""

from openglm.ops.reference.attention import PAGE_SIZE, Bucket, KVLayer, dense_attention, kv_tensors, paged_attention, write_kv
from openglm.ops.reference.experts import Routing, balance_loss, experts_mlp, route
from openglm.ops.reference.fp8_kv import FP8, Fp8KV, dequantize_kv, quantize_kv
from openglm.ops.reference.linear import linear
from openglm.ops.reference.norm import rms_norm
from openglm.ops.reference.rope import apply_rope, rope_table
from openglm.ops.reference.swiglu import swiglu

__all__ = [
    "FP8",
    "PAGE_SIZE",
    "Bucket",
    "Fp8KV",
    "KVLayer",
    "Routing",
    "apply_rope",
    "balance_loss",
    "dense_attention",
    "dequantize_kv",
    "experts_mlp",
    "kv_tensors",
    "linear",
    "paged_attention",
    "quantize_kv",
    "rms_norm",
    "rope_table",
    "route",
    "swiglu",
    "write_kv",
]
