"""Compiles the kernels of router and experts at real shapes for GPUs that need not be here: `python compile_experts.py sm_90 air`."""

import sys

import compiling
import triton

from openglm.ops.triton import experts, router

MODELS = {"air": (4096, 1408, 128), "glm-4.5": (5120, 1536, 160)}  # H, M, E
POINTERS = {
    "ids": "*i32",
    "weights": "*fp32",
    "scales": "*fp32",
    "logits": "*fp32",
    "bias": "*fp32",
    "pairs": "*i32",
    "block_experts": "*i64",
}


def build(name, kernel, constants, target, **types):
    """As `compiling.build`, with the types that parameters of these names have."""
    usual = {key: "fp32" if key == "scaling" else "i32" if key in {"experts", "rows"} else "*bf16" for key in kernel.arg_names}
    compiling.build(name, kernel, constants, target, **{**usual, **POINTERS, **types})


def main(target, model):
    height, width, total = MODELS[model]
    build("route", router._route_kernel, {"K": 8, "S": 1, "NORM": True, "BLOCK": triton.next_power_of_2(total)}, target)
    logits = {"H": height, "BN": router._FEW_EXPERTS, "BK": router._FEW_INNER}
    build("logits", router._logits_kernel, logits, target, router="*fp32")
    for fp8 in (False, True):
        stored = "*u8" if fp8 else "*bf16"
        few = {"SLOTS": 9, "H": height, "M": width, "BN": experts._FEW_OUTPUTS, "BK": experts._FEW_INNER, "FP8_CODES": fp8}
        build(f"few gate_up fp8={fp8}", experts._few_gate_up_kernel, few, target, gate_up=stored)
        build(f"few down fp8={fp8}", experts._few_down_kernel, {**few, "RESIDUAL": True}, target, down=stored)
        many = {"B": experts._ROWS, "BN": experts._COLUMNS, "BK": experts._INNER, "FP8_CODES": fp8, "UPCAST": False}
        up, down = {"SHARE": 9, "N": width, "K": height, "GATED": True}, {"SHARE": 1, "N": height, "K": width, "GATED": False}
        build(f"many gate_up fp8={fp8}", experts._many_kernel, {**up, **many}, target, weight=stored)
        build(f"many down fp8={fp8}", experts._many_kernel, {**down, **many}, target, weight=stored)
    build("sum", experts._sum_kernel, {"SLOTS": 9, "H": height, "BN": experts._FEW_INNER, "RESIDUAL": True}, target, products="*bf16")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
