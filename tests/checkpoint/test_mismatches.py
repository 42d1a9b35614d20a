"""A checkpoint that does not fit is refused before any weight is read, with one message that lists everything."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from openglm.checkpoint import load_config, load_model
from openglm.checkpoint.names import NameTable
from openglm.checkpoint.report import MAX_LINES
from openglm.config import variant
from openglm.errors import CheckpointError, ConfigError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def message_of(directory: Path) -> str:
    """The refusal, which comes before any weight is read."""
    with pytest.raises(CheckpointError) as caught, pytest.MonkeyPatch.context() as patch:
        patch.setattr("openglm.checkpoint.load.Reader", None)
        load_model(directory)
    assert str(caught.value).startswith(str(directory))
    return str(caught.value)


def test_every_kind_of_mismatch_is_listed_at_once(checkpoint):
    tensors = load_file(checkpoint / SINGLE)
    del tensors["model.layers.2.mlp.experts.5.up_proj.weight"]
    tensors["model.layers.9.input_layernorm.weight"] = torch.ones(48)
    tensors["model.norm.weight"] = torch.ones(49)
    tensors["model.layers.0.self_attn.k_proj.bias"] = torch.ones(32, dtype=torch.bfloat16)
    tensors["model.layers.1.mlp.gate.e_score_correction_bias"] = torch.ones(8, dtype=torch.bfloat16)
    tensors["model.layers.3.eh_proj.weight"] = torch.ones(96, 48)
    save_file(tensors, checkpoint / SINGLE)
    message = message_of(checkpoint)
    for line in (
        "2 x wrong shape",
        "2 x wrong dtype",
        "missing tensor: model.layers.2.mlp.experts.5.up_proj.weight F32 [24, 48]",
        "extra tensor: 'model.layers.9.input_layernorm.weight' F32 [48] in model.safetensors",
        "wrong shape: model.norm.weight: expected [48], found [49] in model.safetensors",
        "wrong dtype: model.layers.0.self_attn.k_proj.bias: expected F32, found BF16 in model.safetensors",
        "wrong dtype: model.layers.1.mlp.gate.e_score_correction_bias: expected F32, found BF16",
        "wrong shape: model.layers.3.eh_proj.weight: expected [48, 96], found [96, 48]",
    ):
        assert line in message
    assert len(message.splitlines()) == 7


def test_the_dtype_of_the_config_is_binding(checkpoint):
    config = replace(variant("tiny-air"), dtype="bfloat16")
    (checkpoint / "config.json").write_text(json.dumps(config.to_hf()))
    message = message_of(checkpoint)
    assert "wrong dtype: model.embed_tokens.weight: expected BF16, found F32" in message
    assert f"({sum(not e.always_f32 for e in NameTable(config).entries)} x wrong dtype)" in message


def test_another_architecture_gives_a_message_of_readable_length(checkpoint):
    (checkpoint / "config.json").write_text(json.dumps(variant("tiny-355b").to_hf() | {"num_hidden_layers": 40}))
    message = message_of(checkpoint)
    assert len(message.splitlines()) == MAX_LINES + 2
    assert "and 1" in message.splitlines()[-1]
    assert len(message) < 6000


def test_a_config_with_absurd_sizes_costs_no_more_than_a_message(checkpoint):
    for changes in ({"num_hidden_layers": 10**12}, {"n_routed_experts": 10**12}):
        (checkpoint / "config.json").write_text(json.dumps(variant("tiny-air").to_hf() | changes))
        with pytest.raises(ConfigError, match=r"config\.json: num_hidden_layers"):
            load_model(checkpoint)
    (checkpoint / "config.json").write_text(json.dumps(variant("tiny-air").to_hf() | {"hidden_size": 2**60, "vocab_size": 2**60}))
    assert "expected [1152921504606846976, 1152921504606846976]" in message_of(checkpoint)


def test_truncated_shards_are_named_with_expected_and_actual_bytes(sharded):
    sizes = {}
    for name in ("model-00002", "model-00003"):
        path = next(sharded.glob(f"{name}-*"))
        sizes[path] = path.stat().st_size
        os.truncate(path, sizes[path] - 301)
    message = message_of(sharded)
    assert "(2 x damaged file)" in message
    for path, size in sizes.items():
        assert f"damaged file: {path}: truncated: expected {size} bytes, file has {size - 301} bytes" in message


def test_an_absent_shard_is_named_once(sharded):
    path = next(sharded.glob("model-00002-*"))
    path.unlink()
    message = message_of(sharded)
    assert f"damaged file: {path}: cannot be read: No such file or directory" in message
    assert len(message.splitlines()) == 2


def test_a_pointer_of_git_lfs_is_recognised(checkpoint):
    (checkpoint / SINGLE).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1234\nsize 200\n")
    assert "run `git lfs pull`" in message_of(checkpoint)


def change_index(directory: Path, change) -> None:
    index = json.loads((directory / INDEX).read_text())
    change(index)
    (directory / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize(
    "name", ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "model.bin", ".hidden.safetensors", "x\0.safetensors"]
)
def test_a_file_name_that_could_leave_the_directory_is_refused(sharded, name):
    change_index(sharded, lambda index: index["weight_map"].update({"lm_head.weight": name}))
    message = message_of(sharded)
    assert "refused file name" in message and "expected a plain name" in message
    assert len(message.splitlines()) == 2


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"weight_map": {}}', '{"weight_map": {"a": 3}}', '{"weight_map": []}', "{}", '{"a": 1, "a": 2}', "[" * 10**5, "\xff"],
)
def test_a_damaged_index_is_named(sharded, text):
    (sharded / INDEX).write_bytes(text.encode("latin-1"))
    message = message_of(sharded)
    assert f"damaged file: {sharded / INDEX}" in message
    assert len(message.splitlines()) == 2


def test_an_index_that_contradicts_the_files_is_listed(sharded):
    first, second = sorted(path.name for path in sharded.glob("model-*"))[:2]

    def change(index):
        weight_map = index["weight_map"]
        of_first = [name for name, file in weight_map.items() if file == first]
        weight_map[of_first[0]] = second
        del weight_map[of_first[1]]
        weight_map["ghost"] = first

    change_index(sharded, change)
    message = message_of(sharded)
    assert f"is in {first}, {INDEX} says {second}" in message
    assert f"is in {first}, {INDEX} does not list it" in message
    assert f"puts 'ghost' in {first}, which lacks it" in message


def test_a_tensor_in_two_files_is_refused(checkpoint):
    save_file({"lm_head.weight": torch.zeros(384, 48)}, checkpoint / "mtp.safetensors")
    assert "tensor stored twice: 'lm_head.weight' in model.safetensors and in mtp.safetensors" in message_of(checkpoint)


def test_two_checkpoints_in_one_directory_are_refused(sharded, saved):
    shutil.copy(saved / SINGLE, sharded / SINGLE)
    assert "ambiguous" in message_of(sharded)


def test_packed_and_separate_experts_at_once_are_refused(checkpoint):
    tensors = load_file(checkpoint / SINGLE)
    tensors["model.layers.1.mlp.experts.down_proj"] = torch.zeros(8, 48, 24)
    save_file(tensors, checkpoint / SINGLE)
    assert "extra tensor: 'model.layers.1.mlp.experts.down_proj'" in message_of(checkpoint)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt", "model-Q4.gguf", "w.pkl"])
def test_pickled_and_foreign_formats_are_never_opened(tmp_path, name):
    (tmp_path / "config.json").write_text(json.dumps(variant("tiny-air").to_hf()))
    os.mkfifo(tmp_path / name)  # opening it would wait for ever
    message = message_of(tmp_path)
    assert name in message and "convert to safetensors" in message
    assert len(message.splitlines()) == 2


def test_nothing_there_is_said_plainly(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        load_config(tmp_path / "absent")
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="is a file"):
        load_config(tmp_path / "file")
    with pytest.raises(ConfigError, match=r"config\.json: no such file"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(variant("tiny-air").to_hf()))
    assert f"expected {INDEX} or {SINGLE}; neither is in {tmp_path}" in message_of(tmp_path)


@UNHURRIED
@given(st.data())
def test_a_damaged_checkpoint_loads_or_gives_a_typed_error(saved_shards, tmp_path_factory, data):
    directory = tmp_path_factory.mktemp("fuzzed") / "model"
    shutil.copytree(saved_shards, directory)
    for _ in range(data.draw(st.integers(1, 3))):
        files = sorted(directory.iterdir())
        path = data.draw(st.sampled_from(files))
        content = bytearray(path.read_bytes())
        reach = len(content) if path.suffix == ".json" else min(len(content), 3000)  # the header; flips in the data go unnoticed
        if not reach:
            continue
        at = data.draw(st.integers(0, reach - 1))
        match data.draw(st.sampled_from(["flip", "truncate", "append", "remove", "swap"])):
            case "flip":
                content[at] ^= data.draw(st.integers(1, 255))
                path.write_bytes(content)
            case "truncate":
                os.truncate(path, data.draw(st.integers(0, len(content) - 1)))
            case "append":
                path.write_bytes(content + data.draw(st.binary(min_size=1, max_size=4)))
            case "remove":
                path.unlink()
            case "swap":
                other = data.draw(st.sampled_from(files))
                path.write_bytes(other.read_bytes())
                other.write_bytes(content)
    try:
        load_model(directory)
    except (CheckpointError, ConfigError) as error:
        assert str(directory) in str(error)
        assert len(str(error)) < 20_000
    finally:
        shutil.rmtree(directory.parent)
