"""`ModelConfig`: both spellings of a config.json, what is refused, and that nothing but `ConfigError` ever comes out."""

import dataclasses
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from openglm.config import VARIANTS, ModelConfig, variant
from openglm.errors import ConfigError

BASE = variant("tiny-air").to_hf()
UNHURRIED = settings(
    deadline=None, suppress_health_check=[HealthCheck.too_slow]
)  # neither says anything on a machine that is busy elsewhere


def in_new_spelling(data: dict) -> dict:
    """The same config as transformers 5 writes it."""
    data = {key: value for key, value in data.items() if key not in ("rope_scaling", "torch_dtype", "rope_theta", "partial_rotary_factor")}
    old = BASE | data
    return data | {
        "dtype": old["torch_dtype"],
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": old["rope_theta"],
            "partial_rotary_factor": old["partial_rotary_factor"],
        },
    }


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_survives_the_round_trip(name):
    config = variant(name)
    assert ModelConfig.from_hf(json.loads(json.dumps(config.to_hf()))) == config


@pytest.mark.parametrize("name", ["tiny-air", "tiny-355b"])
def test_new_and_old_spelling_mean_the_same(name):
    assert ModelConfig.from_hf(in_new_spelling(variant(name).to_hf())) == variant(name)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("GLM-4.5.config.json", "glm-4.5"),
        ("GLM-4.5-Air.config.json", "glm-4.5-air"),
        ("GLM-4.6.config.reconstructed.json", "glm-4.6"),
        ("GLM-4.6.config.reconstructed.json", "glm-4.7"),
    ],
)
def test_published_configs_equal_the_named_variants(shared, file, name):
    assert ModelConfig.from_file(shared / "configs" / file) == variant(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope_parameters": {"rope_theta": 5.0}}, "rope_theta is given twice"),
        ({"rope_parameters": {"partial_rotary_factor": 0.25}}, "partial_rotary_factor is given twice"),
        ({"dtype": "bfloat16"}, "dtype and torch_dtype"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rope_type is 'yarn'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type is 'linear'"),
        ({"rope_parameters": "default"}, "rope_parameters must be an object"),
        ({"model_type": "llama"}, "model_type is 'llama'"),
        ({"model_type": None}, "model_type is None"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings"),
        ({"hidden_size": "48"}, "hidden_size must be int"),
        ({"hidden_size": 48.5}, "hidden_size must be int"),
        ({"hidden_size": True}, "hidden_size must be int"),
        ({"hidden_size": float("inf")}, "hidden_size must be int"),
        ({"hidden_size": float("nan")}, "hidden_size must be int"),
        ({"rope_theta": float("nan")}, "rope_theta must be float"),
        ({"rope_theta": 10**400}, "rope_theta must be float"),
        ({"use_qk_norm": 1}, "use_qk_norm must be bool"),
        ({"eos_token_id": [1, "2"]}, "eos_token_id must be a list of integers"),
        ({"eos_token_id": []}, "eos_token_id"),
        ({"eos_token_id": 384}, "eos_token_id must hold ids below vocab_size"),
        ({"torch_dtype": "int8"}, "dtype must be one of"),
        ({"num_nextn_predict_layers": 2}, "num_nextn_predict_layers must be 0 or 1"),
        ({"num_attention_heads": 7}, "multiple of num_key_value_heads"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok exceeds"),
        ({"first_k_dense_replace": 4}, "first_k_dense_replace"),
        ({"n_group": 3}, "multiple of n_group"),
        ({"n_group": 8, "topk_group": 8}, "at least two experts"),
        ({"n_group": 4}, "exceeds the experts of topk_group groups"),
        ({"head_dim": 10**400}, "head_dim must be int"),
        ({"partial_rotary_factor": 1.5}, "partial_rotary_factor"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be at least 1"),
        ({"max_position_embeddings": 10**9}, "max_position_embeddings must be at most"),
        ({"vocab_size": -1}, "vocab_size must be at least 1"),
    ],
)
def test_a_wrong_value_is_refused_by_name(change, message):
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        ModelConfig.from_hf(BASE | change)


def test_the_same_fact_in_both_spellings_is_accepted():
    both = in_new_spelling(BASE) | BASE
    assert ModelConfig.from_hf(both) == variant("tiny-air")


def test_one_end_of_sequence_id_may_be_a_plain_number():
    assert ModelConfig.from_hf(BASE | {"eos_token_id": 5}).eos_token_id == (5,)


def test_a_missing_field_is_named():
    required = [
        field.name for field in dataclasses.fields(ModelConfig) if field.default is dataclasses.MISSING and field.name != "head_dim"
    ]
    for name in required:
        with pytest.raises(ConfigError, match=f"lacks {name}"):
            ModelConfig.from_hf({key: value for key, value in BASE.items() if key != name})


def test_code_named_by_a_config_is_never_imported(tmp_path, monkeypatch):
    canary = tmp_path / "canary"
    (tmp_path / "evil.py").write_text(f"open({str(canary)!r}, 'w').close()")
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(BASE | {"auto_map": {"AutoConfig": "evil.Config"}, "custom_pipelines": {"x": "evil"}}))
    assert ModelConfig.from_file(tmp_path / "config.json") == variant("tiny-air")
    assert not canary.exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '"x"', "[" * 100_000, '{"model_type": ' + "9" * 5000 + "}", "\xff\xfe"])
def test_a_file_that_is_not_a_config_is_named(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"config\.json"):
        ModelConfig.from_file(path)


def test_an_absent_file_or_a_directory_is_named(tmp_path):
    for path in (tmp_path / "config.json", tmp_path):
        with pytest.raises(ConfigError, match=str(path)):
            ModelConfig.from_file(path)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from([10**400, -1, 0, 2**63, "default"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from([*BASE, "dtype", "rope_parameters", "head_dim"])


@UNHURRIED
@given(st.dictionaries(KEYS, JSON_VALUES, max_size=4))
def test_any_values_give_a_config_or_a_config_error(changes):
    try:
        config = ModelConfig.from_hf(BASE | changes)
    except ConfigError:
        return
    assert ModelConfig.from_hf(json.loads(json.dumps(config.to_hf()))) == config


@UNHURRIED
@given(JSON_VALUES, st.dictionaries(st.sampled_from(["rope_type", "type", "rope_theta", "partial_rotary_factor"]), JSON_VALUES))
def test_any_document_gives_a_config_or_a_config_error(document, rope):
    for data in (document, BASE | {"rope_parameters": rope}, {"model_type": "glm4_moe", "hidden_size": document}):
        try:
            ModelConfig.from_hf(data)
        except ConfigError:
            continue


def test_an_unknown_variant_suggests_the_nearest():
    with pytest.raises(ConfigError, match=r"glm-4\.5-air"):
        variant("glm-4.5-airr")


def test_parameter_counts_of_the_published_models():
    for name, billions in (("glm-4.5", 355), ("glm-4.5-air", 106)):
        c = variant(name)
        attention = c.hidden_size * (2 * c.query_dim + 2 * c.kv_dim)
        expert = 3 * c.hidden_size * c.moe_intermediate_size
        moe = (c.n_routed_experts + c.n_shared_experts) * expert + c.n_routed_experts * c.hidden_size
        dense = 3 * c.hidden_size * c.intermediate_size
        layers = sum(attention + (moe if c.is_moe_layer(i) else dense) for i in range(c.num_hidden_layers))
        assert abs((layers + 2 * c.vocab_size * c.hidden_size) / 1e9 - billions) < 2.5
