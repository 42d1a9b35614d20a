"""Compiles the kernels of router and experts at real shapes for GPUs that need not be here: `python compile_experts.py sm_90 air`."""

import sys

import compiling
import triton

from openglm.ops.triton import experts, router
from openglm.ops.triton.tuning import fitting

MODELS = {"air": (4096, 1408, 128), "glm-4.5": (5120, 1536, 160)}  # H, M, E
POINTERS = {
    "ids": "*i32",
    "weights": "*fp32",
    "scales": "*fp32",
    "logits": "*fp32",
    "bias": "*fp32",
    "pairs": "*i32",
    "tickets": "*i32",
    "block_experts": "*i64",
}


def build(name, kernel, constants, target, *, options=None, **types):
    """As `compiling.build`, with the types that parameters of these names have."""
    usual = {key: "fp32" if key == "scaling" else "i32" if key in {"experts", "rows"} else "*bf16" for key in kernel.arg_names}
    compiling.build(name, kernel, constants, target, options=options, **{**usual, **POINTERS, **types})


def main(target, model, *how):
    """Every tile, or with `best` the first of each kernel."""
    height, width, total = MODELS[model]
    device = compiling.LIMITS[target]
    choice = {"K": 8, "S": 1, "NORM": True, "BLOCK": triton.next_power_of_2(total)}
    build("route", router._route_kernel, choice, target)
    logits = {"H": height, "BN": router._FEW_EXPERTS, "BK": router._FEW_INNER}
    for stored in ("*bf16", "*fp32"):
        build(f"route few {stored}", router._few_kernel, {**logits, **choice}, target, router=stored)
    for fp8 in (False, True):
        stored = "*u8" if fp8 else "*bf16"
        for name, tiles in experts.TILES.items():
            path, kind = name.split()
            weight_bytes = (1 if fp8 else 2) * (2 if kind == "gate_up" else 1)
            fits = fitting(tiles, device, 0 if path == "few" else 2, weight_bytes)
            for tile in fits[:1] if how else fits:
                options, said = tile.options(device), f"{name} {tile[:5]} fp8={fp8}"
                meta = {"BN": tile.columns, "BK": tile.inner, "FP8_CODES": fp8}
                if path == "few":
                    meta |= {"SLOTS": 9, "H": height, "M": width, "STAGES": options["num_stages"]}
                    meta |= {"RESIDUAL": True} if kind == "down" else {}
                    kernel = experts._few_down_kernel if kind == "down" else experts._few_gate_up_kernel
                    build(said, kernel, meta, target, options=options, **{kind: stored})
                    continue
                meta |= {"B": tile.rows, "UPCAST": False, "GATED": kind == "gate_up"}
                meta |= {"SHARE": 9, "N": width, "K": height} if kind == "gate_up" else {"SHARE": 1, "N": height, "K": width}
                build(said, experts._many_kernel, meta, target, options=options, weight=stored)
    build("sum", experts._sum_kernel, {"SLOTS": 9, "H": height, "BN": experts._SUMMED, "RESIDUAL": True}, target, products="*bf16")


if __name__ == "__main__":
    main(*sys.argv[1:])
