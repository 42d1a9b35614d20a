"""The name table covers a model exactly, and the published models have the published tensors."""

import json
from dataclasses import replace

import pytest
import torch

from openglm.checkpoint.names import NameTable
from openglm.config import VARIANTS, variant
from openglm.model import GlmModel

TINY = [
    variant("tiny-air"),
    variant("tiny-355b"),
    replace(variant("tiny-air"), attention_bias=False, n_shared_experts=0, num_nextn_predict_layers=0),
    replace(variant("tiny-355b"), n_shared_experts=2, first_k_dense_replace=5),
]


@pytest.mark.parametrize("config", TINY)
def test_every_element_of_every_parameter_is_filled_exactly_once(config):
    model, table = GlmModel(config), NameTable(config)
    parameters = dict(model.named_parameters()) | {n: b for n, b in model.named_buffers() if n != "rope"}
    filled = {name: torch.zeros(parameter.shape, dtype=torch.int32) for name, parameter in parameters.items()}
    for entry in table.entries:
        part = entry.part_of(filled[entry.parameter])
        assert tuple(part.shape) == entry.shape and part.is_contiguous(), entry.name
        part += 1
    assert all(bool((count == 1).all()) for count in filled.values())
    assert len(table.by_name) == len(table.entries)
    for name, entry in table.packed.items():
        assert entry.shape == tuple(parameters[entry.parameter].shape)
        assert name not in table.by_name


@pytest.mark.parametrize(("name", "trunk", "mtp"), [("glm-4.5", 44_189, 500), ("glm-4.6", 44_189, 500), ("glm-4.5-air", 17_925, 402)])
def test_published_models_have_the_published_number_of_tensors(name, trunk, mtp):
    table = NameTable(variant(name))
    of_mtp = sum(table.is_mtp(entry.name) for entry in table.entries)
    assert (len(table.entries) - of_mtp, of_mtp) == (trunk, mtp)
    assert len([stem for stem in table.ignored if stem.endswith(".weight")]) == 2


@pytest.mark.parametrize("name", VARIANTS)
def test_shapes_fit_the_model_without_allocating_it(name):
    config = variant(name)
    model = GlmModel(config, device="meta", dtype=torch.bfloat16)
    table = NameTable(config)
    parameters = dict(model.named_parameters()) | dict(model.named_buffers())
    assert set(table.by_parameter) == set(parameters) - {"rope"}
    for parameter, entries in table.by_parameter.items():
        for entry in (*entries[:3], *entries[-3:]):
            assert tuple(entry.part_of(parameters[parameter]).shape) == entry.shape, entry.name


@pytest.mark.parametrize("name", ["glm-4.5", "glm-4.5-air"])
def test_the_linear_weights_are_those_the_published_fp8_checkpoints_quantize(shared, name):
    """The ignore list of an FP8 checkpoint names the stem of every tensor that is not FP8."""
    file = {"glm-4.5": "GLM-4.5-FP8", "glm-4.5-air": "GLM-4.5-Air-FP8"}[name]
    data = json.loads((shared / "fp8" / f"{file}.quantization_config.reconstructed.json").read_text())
    (ignored,) = (value["ignore"] for key, value in data.items() if not key.startswith("_"))
    table = NameTable(variant(name))
    names = {entry.name for entry in table.entries if not entry.is_linear} | {f"{table.mtp_prefix}embed_tokens.weight"}
    assert {stem.removesuffix(".weight") for stem in names} == set(ignored)


def test_a_layer_number_is_matched_as_a_number():
    table = NameTable(replace(variant("tiny-air"), num_hidden_layers=4))
    assert table.is_mtp("model.layers.4.enorm.weight")
    assert not table.is_mtp("model.layers.46.enorm.weight")
    assert not table.is_mtp("model.layers.40.input_layernorm.weight")
    assert "model.layers.46.embed_tokens.weight" in NameTable(variant("glm-4.5-air")).ignored
    assert "model.layers.46.embed_tokens.weight" not in NameTable(variant("glm-4.5")).ignored
    assert (
        NameTable(variant("glm-4.5")).by_name["model.layers.46.self_attn.q_proj.weight"].parameter == "layers.46.self_attn.qkv_proj.weight"
    )


def test_only_the_correction_bias_is_always_fp32():
    table = NameTable(variant("tiny-355b"))
    assert {entry.name.rsplit(".", 1)[1] for entry in table.entries if entry.always_f32} == {"e_score_correction_bias"}
