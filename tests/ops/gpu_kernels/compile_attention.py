"""Compiles the kernels of rope and attention at real shapes for GPUs that need not be here: `python compile_attention.py sm_90
rope,split,tile`.

Prints one JSON line per kernel: name, target, shared memory in bytes.
"""

import json
import sys

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from openglm.ops.triton import attention, rope

TARGETS = {"sm_90": GPUTarget("cuda", 90, 32), "gfx942": GPUTarget("hip", "gfx942", 64)}
REAL = {"G": 12, "NUM_KV_HEADS": 8, "D": 128, "BLOCK_D": 128, "PAGE": 64, "UPCAST": False}


def build(name, kernel, types, constants, target, **options):
    types = {**types, **dict.fromkeys(constants, "constexpr")}
    source = ASTSource(fn=kernel, signature={key: types[key] for key in kernel.arg_names}, constexprs=constants)
    compiled = compile(source, target=TARGETS[target], options=options)
    print(json.dumps({"kernel": name, "target": target, "shared": compiled.metadata.shared}), flush=True)


def main(target, parts):
    for fp8 in (False, True):
        native = fp8 and target == "sm_90"
        cache = "*u8" if fp8 else "*bf16"
        pointers = {"queries": "*bf16", "kv": cache, "scales": "*fp32" if fp8 else "*bf16", "offsets": "*i64", "page_table": "*i64"}
        strides = {"num_requests": "i32", "kv_stride": "i32", "scale_stride": "i32", "table_stride": "i32", "scale": "fp32"}
        meta = {**REAL, "FP8": fp8, "NATIVE": native}
        if "split" in parts:
            for short, rows in ((1, 16), (2, 32), (4, 64)):
                types = {**pointers, "means": "*fp32", "sums": "*fp32", **strides}
                constants = {"SHORT": short, "M": rows, "SPLITS": 32, "MAX_SPLITS": 32, **meta}
                build(f"split {rows} fp8={fp8}", attention._split_kernel, types, constants, target, num_warps=4, num_stages=3)
        if "tile" in parts:
            types = {**pointers, "out": "*bf16", **strides}
            build(f"tile fp8={fp8}", attention._tile_kernel, types, {"SHORT": 5, "M": 128, **meta}, target, num_warps=8, num_stages=2)
        if "rope" in parts:
            types = dict.fromkeys(("x", "bias", "q_norm", "k_norm", "queries"), "*bf16")
            types |= {"table": "*fp32", "positions": "*i64", "slots": "*i64", "kv": cache, "scales": "*fp32" if fp8 else "*bf16"}
            types |= {"x_stride": "i32", "kv_stride": "i32", "scale_stride": "i32", "eps": "fp32"}
            for heads, warps in ((1, 1), (4, 2)):
                constants = {"NUM_HEADS": 96, "NUM_KV_HEADS": 8, "D": 128, "HALF": 32, "PAGE": 64, "BLOCK_HEADS": heads, "BLOCK_D": 128}
                constants |= {"BIAS": True, "Q_NORM": True, "K_NORM": True, "FP8": fp8}
                build(f"rope {heads} fp8={fp8}", rope._rope_kernel, types, constants, target, num_warps=warps)
    if "split" in parts:
        types = {"means": "*fp32", "sums": "*fp32", "offsets": "*i64", "out": "*bf16", "num_requests": "i32", "num_tokens": "i32"}
        constants = {"SHORT": 2, "SPLITS": 32, "MAX_SPLITS": 32, "BLOCK_S": 32, "NUM_HEADS": 96, "D": 128, "BLOCK_D": 128, "PAGE": 64}
        build("join", attention._join_kernel, types, constants, target, num_warps=4)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2].split(","))
