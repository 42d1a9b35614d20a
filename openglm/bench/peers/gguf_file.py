"""A checkpoint of random weights as GGUF: `python -m openglm.bench.peers.gguf_file CHECKPOINT FILE FORMAT THREADS`.

Runs in llama.cpp's environment: the `gguf` package writes BF16, matrix by matrix, and llama.cpp's own quantizer makes the other formats
of that file. There is no vocabulary in it; tokens are numbers here.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

FORMATS = {"BF16": None, "Q8_0": 7, "Q4_0": 2, "Q4_K_M": 15}  # llama_ftype
_PARTS = {
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "post_attention_norm.weight",
    **{f"self_attn.{kind}_proj.{part}": f"attn_{kind}.{part}" for kind in "qkv" for part in ("weight", "bias")},
    "self_attn.o_proj.weight": "attn_output.weight",
    "self_attn.q_norm.weight": "attn_q_norm.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight",
    "mlp.gate.weight": "ffn_gate_inp.weight",
    "mlp.gate.e_score_correction_bias": "exp_probs_b.bias",
    **{f"mlp.{kind}_proj.weight": f"ffn_{kind}.weight" for kind in ("gate", "up", "down")},
    **{f"mlp.shared_experts.{kind}_proj.weight": f"ffn_{kind}_shexp.weight" for kind in ("gate", "up", "down")},
}
_TOP = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight", "lm_head.weight": "output.weight"}


def write_gguf(checkpoint: Path, target: Path) -> None:
    """The checkpoint in BF16; norms, biases and routers in F32, as llama.cpp's own converter has them."""
    import gguf  # type: ignore[import-not-found]  # of the environment this runs in

    config = json.loads((checkpoint / "config.json").read_bytes())
    tensors = _mapped(checkpoint / "model.safetensors")
    writer = gguf.GGUFWriter(target, "glm4moe")
    _describe(writer, config, gguf.ExpertGatingFuncType.SIGMOID)
    plan = list(_plan(config, tensors))
    for name, sources in plan:
        first = tensors[sources[0]]
        shape = (len(sources), *first.shape) if len(sources) > 1 else first.shape
        if _is_wide(name, first):
            size = 4 * int(np.prod(shape))
            writer.add_tensor_info(name, shape, np.dtype(np.float32), size)
        else:
            size = 2 * int(np.prod(shape))
            in_bytes = (*shape[:-1], 2 * shape[-1])
            writer.add_tensor_info(name, in_bytes, np.dtype(np.uint8), size, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, sources in plan:
        values = [tensors[source] for source in sources]
        if _is_wide(name, values[0]):
            writer.write_tensor_data(_widened(values[0]))
        else:
            writer.write_tensor_data(np.stack(values) if len(values) > 1 else np.ascontiguousarray(values[0]))
    writer.close()


def quantize(source: Path, target: Path, ftype: int, threads: int) -> None:
    """Another format of a BF16 file, by llama.cpp's rules for which tensor gets what."""
    import llama_cpp  # type: ignore[import-not-found]  # of the environment this runs in

    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.nthread = threads
    parameters.ftype = ftype
    code = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), parameters)
    if code:
        raise RuntimeError(f"llama.cpp could not quantize {source} to type {ftype}: code {code}")


def _describe(writer: Any, config: dict[str, Any], gating: Any) -> None:
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(int(config["head_dim"] * config["partial_rotary_factor"]))
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_expert_count(config["n_routed_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_expert_shared_count(config["n_shared_experts"])
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_leading_dense_block_count(config["first_k_dense_replace"])
    writer.add_expert_gating_func(gating)
    writer.add_expert_weights_scale(config["routed_scaling_factor"])
    writer.add_expert_weights_norm(config["norm_topk_prob"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(32)  # mostly BF16


def _plan(config: dict[str, Any], tensors: dict[str, np.ndarray[Any, Any]]) -> Iterator[tuple[str, list[str]]]:
    """(name in GGUF, tensors of the checkpoint that it is made of)."""
    for name, other in _TOP.items():
        yield other, [name]
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        for part, other in _PARTS.items():
            if f"{prefix}.{part}" in tensors:
                yield f"blk.{layer}.{other}", [f"{prefix}.{part}"]
        for kind in ("gate", "up", "down"):
            names = [f"{prefix}.mlp.experts.{expert}.{kind}_proj.weight" for expert in range(config["n_routed_experts"])]
            if names[0] in tensors:
                yield f"blk.{layer}.ffn_{kind}_exps.weight", names


def _mapped(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Tensors of a safetensors file of this package's making; bf16 numbers as their bits."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    for name, entry in header.items():
        kind = np.float32 if entry["dtype"] == "F32" else np.uint16
        tensors[name] = np.memmap(path, kind, "r", 8 + length + entry["data_offsets"][0], tuple(entry["shape"]))
    return tensors


def _is_wide(name: str, tensor: np.ndarray[Any, Any]) -> bool:
    return tensor.ndim == 1 or name.endswith("ffn_gate_inp.weight")


def _widened(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if values.dtype == np.float32:
        return np.ascontiguousarray(values)
    return (values.astype(np.uint32) << 16).view(np.float32)


def main() -> None:
    """Make one file; it appears only when it is whole."""
    checkpoint, target, format, threads = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    partial = target.with_suffix(".partial")
    ftype = FORMATS[format]
    if ftype is None:
        write_gguf(checkpoint, partial)
    else:
        quantize(target.with_name("BF16.gguf"), partial, ftype, threads)
    partial.rename(target)


if __name__ == "__main__":
    main()
