"""Checkpoints in the published FP8 format load, dequantized exactly; other formats are refused by name."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from openglm.checkpoint import load_model, load_packed_model, save_model
from openglm.checkpoint.fp8 import rounds_activations
from openglm.checkpoint.names import NameTable
from openglm.config import variant
from openglm.errors import CheckpointError
from openglm.model import ForwardContext, PagedBatch, allocate_kv
from openglm.ops import PAGE_SIZE, cpu


def quantize(directory, *, scale_dtype=torch.bfloat16, flat=False):
    """Turn a checkpoint into a compressed-tensors FP8 one; returns what its weights now stand for."""
    table = NameTable(variant("tiny-air"))
    tensors, expected = load_file(directory / "model.safetensors"), {}
    for name, tensor in list(tensors.items()):
        if not table.by_name[name].is_linear:
            expected[name] = tensor
            continue
        scale = (tensor.abs().amax(1, keepdim=True) / 448).to(scale_dtype)
        tensors[name] = (tensor / scale.float()).to(torch.float8_e4m3fn)
        tensors[f"{name}_scale"] = scale.flatten() if flat else scale
        expected[name] = tensors[name].float() * scale.float()
    save_file(tensors, directory / "model.safetensors")
    return tensors, expected


def add_scheme(directory, **changes):
    weights = {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": False, "strategy": "channel"} | changes
    scheme = {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }
    write_scheme(directory, scheme)


def write_scheme(directory, scheme):
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"quantization_config": scheme}))


DYNAMIC = {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": True, "strategy": "token"}


@pytest.mark.parametrize(
    ("inputs", "rounds"),
    [
        ([DYNAMIC], True),
        ([DYNAMIC, DYNAMIC], True),
        ([None], False),
        ([DYNAMIC, None], False),
        ([DYNAMIC | {"dynamic": False}], False),
        ([DYNAMIC | {"strategy": "tensor"}], False),
        ([DYNAMIC | {"num_bits": 4}], False),
        (["fp8"], False),
        ([], False),
    ],
)
def test_activations_are_rounded_if_every_group_asks(inputs, rounds):
    scheme = {"config_groups": {f"group_{i}": {"input_activations": each} for i, each in enumerate(inputs)}}
    assert rounds_activations(scheme) is rounds
    assert not rounds_activations(None) and not rounds_activations({"config_groups": []})


@pytest.mark.parametrize("scale_dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_scaled_in_fp32_and_rounded_once(checkpoint, tmp_path, monkeypatch, scale_dtype, flat, dtype):
    monkeypatch.setattr("openglm.checkpoint.reader.CHUNK_BYTES", 200)
    _, expected = quantize(checkpoint, scale_dtype=scale_dtype, flat=flat)
    add_scheme(checkpoint)
    model = load_model(checkpoint, dtype=dtype)
    parameters = dict(model.named_parameters()) | dict(model.named_buffers())
    for entry in NameTable(model.config).entries:
        got = entry.part_of(parameters[entry.parameter])
        assert torch.equal(got, expected[entry.name].to(got.dtype)), entry.name
    save_model(model, tmp_path / "plain")
    assert "quantization_config" not in (tmp_path / "plain" / "config.json").read_text()
    assert load_model(tmp_path / "plain").has_mtp


@pytest.mark.skipif(cpu.available() is None, reason="no native kernels on this machine")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_packed_weights_stay_the_codes_and_scales_of_the_file(checkpoint, dtype):
    """Half the bytes, and nothing rounded: as close to the exact model as fp32 is, also when the weights were bf16 in between."""
    quantize(checkpoint)
    add_scheme(checkpoint)
    exact = load_model(checkpoint, dtype=torch.float32)
    packed = load_packed_model(checkpoint, dtype=dtype)
    layer = packed.layers[1]
    assert {part.format for part in layer.mlp.experts.parts["gate_up_proj"]} == {layer.self_attn.qkv_proj.packed.format} == {"fp8"}
    tokens = torch.arange(90)
    table, positions = torch.tensor([[1, 0]]), torch.arange(90)
    slots = table[0][positions // PAGE_SIZE] * PAGE_SIZE + positions % PAGE_SIZE

    def logits(model):
        kv = allocate_kv(model.config, 2, next(model.parameters()).dtype)
        return model.logits(model(tokens, ForwardContext(positions, PagedBatch((0, 90), (90,), table, slots, kv), native=model.is_packed)))

    truth, found = logits(exact), logits(packed)
    if dtype == torch.float32:
        assert float((found - truth).abs().max()) <= 1e-4 * float(truth.abs().max())
    else:  # bf16 rounds activations, and may choose other experts: as far from the truth as the reference is, not farther
        plain = logits(load_model(checkpoint, dtype=dtype))
        assert float((found - truth).square().mean()) <= 1.2 * float((plain - truth).square().mean())


@pytest.mark.skipif(cpu.available() is None, reason="no native kernels on this machine")
@pytest.mark.parametrize("to", ["int8", "int4"])
def test_fp8_weights_can_be_rounded_again(checkpoint, to):
    quantize(checkpoint)
    add_scheme(checkpoint)
    direct = load_packed_model(checkpoint, dtype=torch.bfloat16, to=to, threads=2).layers[1].self_attn
    plain = load_model(checkpoint, dtype=torch.bfloat16).pack(to).layers[1].self_attn
    x = torch.randn(5, direct.o_proj.packed.in_features).bfloat16()
    assert direct.o_proj.packed.format == to
    assert torch.equal(direct.o_proj.packed(x), plain.o_proj.packed(x))


@pytest.mark.parametrize("file", ["GLM-4.5-Air-FP8", "GLM-4.5-FP8"])
def test_the_published_scheme_is_accepted(checkpoint, shared, file):
    quantize(checkpoint)
    data = json.loads((shared / "fp8" / f"{file}.quantization_config.reconstructed.json").read_text())
    (scheme,) = (value for key, value in data.items() if not key.startswith("_"))
    write_scheme(checkpoint, scheme)
    assert load_model(checkpoint).has_mtp


def test_a_missing_misshapen_or_mistyped_scale_is_listed(checkpoint):
    tensors, _ = quantize(checkpoint)
    stem = "model.layers.1.self_attn"
    del tensors[f"{stem}.q_proj.weight_scale"]
    tensors[f"{stem}.k_proj.weight_scale"] = torch.ones(1)
    tensors[f"{stem}.v_proj.weight_scale"] = torch.ones(32, 1, dtype=torch.int32)
    tensors[f"{stem}.o_proj.input_scale"] = torch.ones(1)
    save_file(tensors, checkpoint / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        load_model(checkpoint)
    message = str(caught.value)
    assert f"missing tensor: {stem}.q_proj.weight_scale [128, 1]" in message
    assert f"wrong shape: {stem}.k_proj.weight_scale: expected [32, 1] or [32], found [1]" in message
    assert f"wrong dtype: {stem}.v_proj.weight_scale" in message
    assert f"extra tensor: '{stem}.o_proj.input_scale'" in message
    assert len(message.splitlines()) == 5


def test_fp8_where_no_quantized_weight_belongs_is_refused(checkpoint):
    tensors = load_file(checkpoint / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.float8_e4m3fn)
    tensors["lm_head.weight"] = tensors["lm_head.weight"].to(torch.float8_e5m2)
    save_file(tensors, checkpoint / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"(?s)2 x wrong dtype.*lm_head.*F8_E5M2|2 x wrong dtype"):
        load_model(checkpoint)


def test_a_scale_without_its_fp8_weight_is_extra(checkpoint):
    tensors = load_file(checkpoint / "model.safetensors")
    tensors["model.layers.1.self_attn.q_proj.weight_scale"] = torch.ones(128, 1)
    save_file(tensors, checkpoint / "model.safetensors")
    with pytest.raises(CheckpointError, match="1 x extra tensor"):
        load_model(checkpoint)


@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "quant_method 'fp8'"),
        ({"quant_method": "awq"}, "quant_method 'awq'"),
        ("int4", "quant_method 'int4'"),
        ({}, "quant_method None"),
        ({"quant_method": "compressed-tensors"}, "weights are None"),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"g": {"weights": {"num_bits": 4, "type": "int", "strategy": "group"}}},
            },
            "'num_bits': 4",
        ),
        ({"quant_method": "compressed-tensors", "config_groups": {"g": 5}}, "weights are None"),
    ],
)
def test_another_scheme_is_refused_by_name(checkpoint, scheme, message):
    write_scheme(checkpoint, scheme)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_model(checkpoint)
    assert "compressed-tensors with 8-bit float weights" in str(caught.value)
