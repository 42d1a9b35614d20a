"""Compiles the kernels of attention, RoPE, norms and sampling at real shapes for GPUs that need not be here: `python compile_attention.py
sm_90 air`."""

import sys

import triton
from compiling import build

from openglm.ops.triton import attention, norm, rope, sampling

HIDDEN = {"air": 4096, "glm-4.5": 5120}
HEADS, KV_HEADS, DIM, PAGE, VOCABULARY = 96, 8, 128, 64, 151552  # of both
GROUP = HEADS // KV_HEADS


def build_attention(target, *, fp8):
    meta = {"G": GROUP, "NUM_KV_HEADS": KV_HEADS, "D": DIM, "BLOCK_D": DIM, "PAGE": PAGE, "UPCAST": False, "FP8": fp8}
    types = {"queries": "*bf16", "kv": "*u8" if fp8 else "*bf16", "scales": "*fp32" if fp8 else "*bf16", "page_table": "*i64"}
    types |= {"offsets": "*i64", "means": "*fp32", "sums": "*fp32", "out": "*bf16", "num_requests": "i32", "scale": "fp32"}
    types |= dict.fromkeys(("kv_stride", "scale_stride", "table_stride"), "i32")
    whole, most = ("kv_stride", "scale_stride"), attention._MAX_SPLITS
    for short in (1, 2, 4, attention._SPLIT_ROWS // GROUP):
        rows = max(16, triton.next_power_of_2(short * GROUP))
        constants = {"SHORT": short, "M": rows, "SPLITS": most, "MAX_SPLITS": most, **meta}
        options = {"num_warps": 4, "num_stages": 3}
        build(f"split {short} fp8={fp8}", attention._split_kernel, constants, target, whole=whole, options=options, **types)
    most_rows, num_warps = attention._TILE_ON_HIP if target.startswith("gfx") else attention._TILE
    constants = {"SHORT": attention._SPLIT_ROWS // GROUP, "LONG": attention._SDPA_QUERIES, "M": most_rows, **meta}
    options = {"num_warps": num_warps, "num_stages": 2}
    build(f"tile fp8={fp8}", attention._tile_kernel, constants, target, whole=whole, options=options, **types)


def build_gather(target, *, fp8):
    types = {"kv": "*u8" if fp8 else "*bf16", "scales": "*fp32" if fp8 else "*bf16", "pages": "*i64", "out": "*bf16", "num_pages": "i32"}
    types |= dict.fromkeys(("kv_stride", "scale_stride"), "i32")
    constants = {"D": DIM, "BLOCK_D": DIM, "PAGE": PAGE, "FP8": fp8}
    build(f"gather fp8={fp8}", attention._gather_kernel, constants, target, whole=("kv_stride", "scale_stride"), **types)


def build_rope(target, *, fp8):
    types = dict.fromkeys(("x", "bias", "q_norm", "k_norm", "queries"), "*bf16")
    types |= {"table": "*fp32", "positions": "*i64", "slots": "*i64", "eps": "fp32"}
    types |= {"kv": "*u8" if fp8 else "*bf16", "scales": "*fp32" if fp8 else "*bf16"}
    types |= dict.fromkeys(("x_stride", "kv_stride", "scale_stride"), "i32")
    for heads, warps in ((1, 1), (rope._MAX_HEADS, 2)):
        constants = {"NUM_HEADS": HEADS, "NUM_KV_HEADS": KV_HEADS, "D": DIM, "HALF": DIM // 4, "PAGE": PAGE, "BLOCK_HEADS": heads}
        constants |= {"BLOCK_D": DIM, "BIAS": True, "Q_NORM": True, "K_NORM": True, "FP8": fp8}
        whole = ("x_stride", "kv_stride", "scale_stride")
        build(f"rope {heads} fp8={fp8}", rope._rope_kernel, constants, target, whole=whole, options={"num_warps": warps}, **types)


def build_join(target):
    most = attention._MAX_SPLITS
    types = {"means": "*fp32", "sums": "*fp32", "offsets": "*i64", "out": "*bf16", "num_requests": "i32", "num_tokens": "i32"}
    constants = {"SHORT": 2, "SPLITS": most, "MAX_SPLITS": most, "BLOCK_S": most, "NUM_HEADS": HEADS, "D": DIM, "BLOCK_D": DIM}
    build("join", attention._join_kernel, {**constants, "PAGE": PAGE}, target, options={"num_warps": 4}, **types)


def build_norm(target, hidden):
    types = {**dict.fromkeys(("x", "residual", "weight", "normed", "total"), "*bf16"), "width": "i32", "eps": "fp32"}
    for add in (False, True):
        constants = {"ADD": add, "BLOCK": triton.next_power_of_2(hidden)}
        build(f"norm add={add}", norm._norm_kernel, constants, target, whole=("width",), **types)


def build_sampling(target):
    types = {"logits": "*fp32", "temperatures": "*fp32", "top_ks": "*i32", "top_ps": "*fp64", "min_ps": "*fp32", "uniforms": "*fp64"}
    types |= {"tokens": "*i64", "finite": "*i1", "logprobs": "*fp32", "stride": "i32", "V": "i32"}
    constants = {"BLOCK": min(4096, triton.next_power_of_2(VOCABULARY))}
    build("sample", sampling._sample_kernel, constants, target, whole=("stride", "V"), options={"num_warps": 8}, **types)


def main(target, model):
    for fp8 in (False, True):
        build_attention(target, fp8=fp8)
        build_gather(target, fp8=fp8)
        build_rope(target, fp8=fp8)
    build_join(target)
    build_norm(target, HIDDEN[model])
    build_sampling(target)


if __name__ == "__main__":
    main(*sys.argv[1:])
