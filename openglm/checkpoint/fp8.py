"""The published FP8 checkpoints: compressed-tensors, E4M3 weights with one scale per output channel.

Every quantized `X.weight` [N, K] is F8_E4M3 and has an `X.weight_scale` [N, 1] (or [N]) in BF16, F16 or F32; W = weight * scale.
Which weights are quantized is decided from the tensors that are there, not from the ignore list of the config. Activation scales are
dynamic, so nothing else is stored. Here such weights become ordinary ones while they are read: multiplied in fp32, then rounded once.
"""

from __future__ import annotations

from typing import Any

from openglm.checkpoint.names import TensorEntry
from openglm.checkpoint.reader import StoredTensor
from openglm.checkpoint.report import Mismatches

WEIGHT_DTYPE = "F8_E4M3"
SCALE_DTYPES = ("BF16", "F16", "F32")
_SUPPORTED = "supported is compressed-tensors with 8-bit float weights and one scale per output channel"


def scale_name(weight_name: str) -> str:
    """Name of the scale that belongs to a quantized weight."""
    return f"{weight_name}_scale"


def check_scheme(quantization: Any, mismatches: Mismatches) -> None:
    """Note why the `quantization_config` of a config.json (None where it has none) cannot be read, if so."""
    if quantization is None:
        return
    kind = "quantization"
    if not isinstance(quantization, dict) or quantization.get("quant_method") != "compressed-tensors":
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
        mismatches.add(kind, f"config.json quantization_config has quant_method {method!r:.60}; {_SUPPORTED}")
        return
    groups = quantization.get("config_groups")
    for name, group in groups.items() if isinstance(groups, dict) else [("config_groups", None)]:
        weights = group.get("weights") if isinstance(group, dict) else None
        scheme = {key: weights.get(key) for key in ("num_bits", "type", "strategy")} if isinstance(weights, dict) else weights
        if scheme != {"num_bits": 8, "type": "float", "strategy": "channel"}:
            mismatches.add(kind, f"config.json quantization_config.{name!s:.60}: weights are {scheme!r:.120}; {_SUPPORTED}")


def rounds_activations(quantization: Any) -> bool:
    """Whether a `quantization_config` that `check_scheme` accepts asks for activations in e4m3, with a dynamic scale per token."""
    groups = quantization.get("config_groups") if isinstance(quantization, dict) else None
    asked = [group.get("input_activations") for group in groups.values()] if isinstance(groups, dict) else []
    wanted = {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True}
    return bool(asked) and all(isinstance(inputs, dict) and {key: inputs.get(key) for key in wanted} == wanted for inputs in asked)


def find_scale(entry: TensorEntry, tensors: dict[str, StoredTensor], mismatches: Mismatches) -> StoredTensor | None:
    """The scale of the FP8 weight `entry`; a missing or misshapen one is noted."""
    name, rows = scale_name(entry.name), entry.shape[0]
    scale = tensors.get(name)
    if scale is None:
        mismatches.add("missing tensor", f"{name} [{rows}, 1]: {entry.name} is {WEIGHT_DTYPE} and needs its scale")
        return None
    if scale.shape not in ((rows, 1), (rows,)):
        mismatches.add("wrong shape", f"{name}: expected [{rows}, 1] or [{rows}], found {list(scale.shape)} in {scale.file.name}")
    if scale.dtype not in SCALE_DTYPES:
        mismatches.add("wrong dtype", f"{name}: expected one of {', '.join(SCALE_DTYPES)}, found {scale.dtype} in {scale.file.name}")
    return scale
