"""Compiles the kernels of linear layers at real shapes for GPUs that need not be here: `python compile_linear.py sm_90 air`.

N and K are arguments at run time, and all of these shapes are multiples of 16, so a shape decides two things: in how many pieces K is cut,
and which tile was chosen. Every pair of them that can occur for the model is compiled, unless a third argument says `best`: first tiles.
"""

import sys

from compiling import LIMITS, build

from openglm.ops.triton import linear
from openglm.ops.triton.tuning import fitting

SHAPES = {  # N, K of qkv_proj, o_proj and lm_head
    "air": ((14336, 4096), (4096, 12288), (151552, 4096)),
    "glm-4.5": ((14336, 5120), (5120, 12288), (151552, 5120)),
}
TYPES = {"x": "*bf16", "scales": "*fp32", "bias": "*bf16", "residual": "*bf16"}
TYPES |= dict.fromkeys(("rows", "N", "K", "piece"), "i32")
WHOLE = ("N", "K", "piece")


def main(target, model, *how):
    device = LIMITS[target]
    pieces = sorted({-(-k // linear.piece_of(n, k, device)) for n, k in SHAPES[model]})
    for fp8 in (False, True):
        for path, tiles in linear.TILES.items():
            fits = fitting(tiles, device, 2, 1 if fp8 else 2)
            for tile in fits[:1] if how else fits:
                for count in pieces if path == "few" else (1,):
                    ends = {"SCALED": fp8, "BIASED": count == 1, "RESIDUAL": count == 1}
                    constants = {"PIECES": count, "B": tile.rows, "BN": tile.columns, "BK": tile.inner, "SWAPPED": tile.swapped, **ends}
                    constants |= {"BAND": linear._BAND, "FP8_CODES": fp8, "UPCAST": False}
                    types = {**TYPES, "weight": "*u8" if fp8 else "*bf16", "out": "*bf16" if count == 1 else "*fp32"}
                    name = f"{path}{' swapped' if tile.swapped else ''} {tile[:5]} pieces={count} fp8={fp8}"
                    build(name, linear._product_kernel, constants, target, whole=WHOLE, options=tile.options(device), **types)
    for count in (count for count in pieces if count > 1):
        ends = {"SCALED": True, "BIASED": True, "RESIDUAL": True}
        types = {**TYPES, "partial": "*fp32", "out": "*bf16"}
        build(f"join {count}", linear._join_kernel, {"PIECES": count, "BN": linear._JOINED, **ends}, target, whole=("N",), **types)
    for width in sorted({k for _, k in SHAPES[model]}):
        types = {"x": "*bf16", "codes": "*u8", "scales": "*fp32", "K": "i32"}
        block = 1 << (width - 1).bit_length()
        options = {"num_warps": 8 if block > 4096 else 4}
        build(f"round {width}", linear._round_kernel, {"BLOCK": block}, target, whole=("K",), options=options, **types)


if __name__ == "__main__":
    main(*sys.argv[1:])
