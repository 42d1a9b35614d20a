"""Compiles the kernels of linear layers at real shapes for GPUs that need not be here: `python compile_linear.py sm_90 air`."""

import sys

from compile_experts import build

from openglm.ops.triton import linear

WIDTHS = {"air": (4096, 14336), "glm-4.5": (5120, 14336)}  # K and N of qkv_proj


def main(target, model):
    inputs, outputs = WIDTHS[model]
    ends = {"SCALED": True, "ROW_SCALED": False, "BIASED": True, "RESIDUAL": False}
    tiles = {"BN": linear._COLUMNS, "BK": linear._INNER, "UPCAST": False, "N": outputs, "K": inputs}
    for fp8 in (False, True):
        stored, scaled = "*u8" if fp8 else "*bf16", {**ends, "SCALED": fp8, "FP8_CODES": fp8}
        pointers = {"weight": stored, "row_scales": "*fp32", "piece": "i32"}
        few = {"PIECES": 4, "B": linear._FEW_ROWS, **tiles, **scaled}
        build(f"few fp8={fp8}", linear._product_kernel, few, target, out="*fp32", **pointers)
        many = {"PIECES": 1, "B": linear._MANY_ROWS, **tiles, **scaled}
        build(f"many fp8={fp8}", linear._product_kernel, many, target, **pointers)
    join = {"PIECES": 4, "BN": 4 * linear._COLUMNS, "N": outputs, **ends}
    build("join", linear._join_kernel, join, target, partial="*fp32", row_scales="*fp32")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
