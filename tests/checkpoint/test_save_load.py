"""What is saved loads again, bit for bit; what transformers saves loads; what we save loads in transformers."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from random_models import file_bytes, random_model, same_weights
from safetensors.torch import load_file, save_file

from openglm.checkpoint import check_checkpoint, load_config, load_model, save_model
from openglm.config import variant
from openglm.errors import CheckpointError
from openglm.model import ForwardContext, GlmModel

INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize(
    ("dtype", "max_shard_bytes"),
    [
        (torch.float32, 10**9),
        (torch.bfloat16, 10**9),
        (torch.float16, 10**9),
        (torch.float32, 100_000),
        (torch.bfloat16, 100_000),
        (torch.float32, 1),
    ],
)
def test_save_load_save_is_byte_identical(model, tmp_path, dtype, max_shard_bytes):
    options = {"max_shard_bytes": max_shard_bytes, "metadata": {"step": "12", "author": "é"}}
    save_model(model, tmp_path / "first", dtype=dtype, **options)
    loaded = load_model(tmp_path / "first")
    save_model(loaded, tmp_path / "second", **options)
    assert file_bytes(tmp_path / "first") == file_bytes(tmp_path / "second")
    assert loaded.config == replace(model.config, dtype=str(dtype).removeprefix("torch."))
    if dtype == torch.float32:
        assert same_weights(loaded, model)


def test_shards_respect_their_limit_and_the_index_lists_them(sharded):
    index = json.loads((sharded / INDEX).read_text())
    shards = sorted(set(index["weight_map"].values()))
    assert len(shards) > 2
    assert shards == sorted(path.name for path in sharded.glob("*.safetensors"))
    assert all((sharded / name).stat().st_size < 150_000 + 20_000 for name in shards)
    tensors = {name: tensor for shard in shards for name, tensor in load_file(sharded / shard).items()}
    assert tensors.keys() == index["weight_map"].keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())


def test_the_correction_bias_stays_fp32_in_a_bf16_checkpoint(model, tmp_path):
    save_model(model, tmp_path / "low", dtype=torch.bfloat16)
    for name, tensor in load_file(tmp_path / "low" / "model.safetensors").items():
        assert tensor.dtype == (torch.float32 if name.endswith("e_score_correction_bias") else torch.bfloat16), name
    loaded = load_model(tmp_path / "low")
    for name, buffer in model.named_buffers():
        assert torch.equal(loaded.get_buffer(name), buffer)


def test_weights_are_cast_once_when_another_dtype_is_asked_for(model, tmp_path):
    save_model(model, tmp_path / "full")
    loaded = load_model(tmp_path / "full", dtype=torch.bfloat16)
    for name, parameter in model.named_parameters():
        assert torch.equal(loaded.get_parameter(name), parameter.bfloat16()), name


def test_progress_counts_every_byte_once(checkpoint):
    calls: list[tuple[int, int]] = []
    load_model(checkpoint, progress=lambda done, total: calls.append((done, total)))
    total = sum(tensor.nbytes for tensor in load_file(checkpoint / "model.safetensors").values())
    assert [count for count, _ in calls] == sorted({count for count, _ in calls})
    assert {whole for _, whole in calls} == {total}
    assert calls[-1] == (total, total)


def test_the_check_reads_no_weights(checkpoint):
    checked = check_checkpoint(checkpoint)
    assert checked.config == load_config(checkpoint) == variant("tiny-air")
    assert checked.num_bytes == sum(tensor.nbytes for tensor in load_file(checkpoint / "model.safetensors").values())


def test_loading_needs_little_more_memory_than_the_weights(tmp_path):
    clear = Path("/proc/self/clear_refs")
    if not os.access(clear, os.W_OK):
        pytest.skip("the kernel does not let the peak memory counter be reset")
    config = replace(variant("tiny-air"), hidden_size=512, moe_intermediate_size=512, n_routed_experts=24, dtype="bfloat16")
    model = GlmModel(config, dtype=torch.bfloat16)
    for parameter in model.parameters():
        torch.nn.init.ones_(parameter)
    save_model(model, tmp_path / "big")
    weights = check_checkpoint(tmp_path / "big").num_bytes
    assert weights > 100 * 2**20
    del model, parameter

    def resident(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

    clear.write_text("5")
    before = resident("VmRSS")
    loaded = load_model(tmp_path / "big")
    peak = resident("VmHWM") - before
    assert loaded.has_mtp
    assert peak < 1.25 * weights + 32 * 2**20


# MTP layer


def split_off_mtp(directory: Path, *, in_index: bool) -> None:
    """Move the MTP tensors of a sharded checkpoint to `mtp.safetensors`, as GLM-4.7 has them."""
    index = json.loads((directory / INDEX).read_text())
    mtp = {}
    for shard in sorted(set(index["weight_map"].values())):
        tensors = load_file(directory / shard)
        mine = {name: tensors.pop(name) for name in list(tensors) if name.startswith("model.layers.3.")}
        mtp |= mine
        (directory / shard).unlink()
        if tensors:
            save_file(tensors, directory / shard)
    save_file(mtp, directory / "mtp.safetensors")
    for name in mtp:
        if in_index:
            index["weight_map"][name] = "mtp.safetensors"
        else:
            del index["weight_map"][name]
    (directory / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize("in_index", [True, False])
def test_the_mtp_layer_is_found_in_a_file_of_its_own(sharded, in_index):
    expected = load_model(sharded)
    split_off_mtp(sharded, in_index=in_index)
    assert same_weights(load_model(sharded), expected)


def test_the_mtp_file_may_stand_beside_a_single_file(checkpoint):
    expected = load_model(checkpoint)
    tensors = load_file(checkpoint / "model.safetensors")
    save_file({n: t for n, t in tensors.items() if n.startswith("model.layers.3.")}, checkpoint / "mtp.safetensors")
    save_file({n: t for n, t in tensors.items() if not n.startswith("model.layers.3.")}, checkpoint / "model.safetensors")
    assert same_weights(load_model(checkpoint), expected)


def test_the_copies_of_embedding_and_head_in_the_mtp_layer_are_ignored(checkpoint):
    expected = load_model(checkpoint)
    tensors = load_file(checkpoint / "model.safetensors")
    copies = (
        "model.layers.3.embed_tokens.weight",
        "model.layers.3.shared_head.head.weight",
        "model.layers.3.shared_head.head.weight_scale",
    )
    save_file(tensors | {name: torch.full((384, 48), 9.0) for name in copies}, checkpoint / "model.safetensors")
    assert same_weights(load_model(checkpoint), expected)


def drop_mtp(directory: Path) -> None:
    tensors = load_file(directory / "model.safetensors")
    save_file({n: t for n, t in tensors.items() if not n.startswith("model.layers.3.")}, directory / "model.safetensors")


def test_a_dropped_mtp_layer_is_refused_unless_allowed(checkpoint):
    drop_mtp(checkpoint)
    with pytest.raises(CheckpointError, match=r"none of the 42 tensors model\.layers\.3\.\* .*num_nextn_predict_layers 0"):
        load_model(checkpoint)
    model = load_model(checkpoint, allow_missing_mtp=True)
    assert not model.has_mtp
    assert model.config == replace(variant("tiny-air"), num_nextn_predict_layers=0)


def test_a_config_without_mtp_never_drops_one_silently(checkpoint):
    (checkpoint / "config.json").write_text(json.dumps(variant("tiny-air").to_hf() | {"num_nextn_predict_layers": 0}))
    with pytest.raises(CheckpointError, match=r"unexpected MTP layer: 42 tensors .* set it to 1"):
        load_model(checkpoint)
    drop_mtp(checkpoint)
    assert not load_model(checkpoint).has_mtp


def test_a_model_without_mtp_survives_the_round_trip(tmp_path):
    model = random_model(replace(variant("tiny-355b"), num_nextn_predict_layers=0))
    save_model(model, tmp_path / "model")
    assert same_weights(load_model(tmp_path / "model"), model)


# Overwriting


def test_overwriting_replaces_the_weights_and_keeps_the_files_beside_them(sharded):
    (sharded / "tokenizer.json").write_text("{}")
    (sharded / "logs").mkdir()
    (sharded / "logs" / "run.jsonl").write_text("1")
    model = random_model(variant("tiny-air"), seed=5)
    save_model(model, sharded)
    assert sorted(path.name for path in sharded.iterdir()) == ["config.json", "logs", "model.safetensors", "tokenizer.json"]
    assert (sharded / "logs" / "run.jsonl").read_text() == "1"
    assert same_weights(load_model(sharded), model)
    assert list(sharded.parent.iterdir()) == [sharded]


def test_a_directory_that_is_no_checkpoint_is_never_overwritten(tmp_path, model):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("do not lose me")
    with pytest.raises(CheckpointError, match="not empty"):
        save_model(model, tmp_path / "home")
    with pytest.raises(CheckpointError, match="is a file"):
        save_model(model, tmp_path / "home" / "thesis.txt")
    assert (tmp_path / "home" / "thesis.txt").read_text() == "do not lose me"


def test_a_link_to_a_directory_stays_a_link(tmp_path, model):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    for _ in range(2):
        save_model(model, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert same_weights(load_model(tmp_path / "real"), model)


def test_files_may_be_links_as_in_a_download_cache(checkpoint, tmp_path):
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for path in checkpoint.iterdir():
        (snapshot / path.name).symlink_to(Path("..") / checkpoint.name / path.name)
    assert same_weights(load_model(snapshot), load_model(checkpoint))


# transformers

transformers = pytest.importorskip("transformers")
transformers.utils.logging.disable_progress_bar()


def their_model(name: str, **changes: object) -> torch.nn.Module:
    config = transformers.Glm4MoeConfig.from_dict(
        variant(name).to_hf() | changes, attn_implementation="eager", experts_implementation="eager"
    )
    torch.manual_seed(1)
    return transformers.Glm4MoeForCausalLM(config).eval()


@torch.no_grad()
def largest_difference(theirs: torch.nn.Module, ours: GlmModel) -> float:
    tokens = torch.arange(30)
    want = theirs(input_ids=tokens[None], use_cache=False).logits[0].float()
    got = ours.logits(ours(tokens, ForwardContext.dense([30])))
    return float((got - want).abs().max())


@pytest.mark.parametrize("name", ["tiny-air", "tiny-355b"])
@pytest.mark.parametrize(
    "options", [{}, {"max_shard_size": "60KB"}, {"save_original_format": False}, {"save_original_format": False, "max_shard_size": "60KB"}]
)
def test_what_transformers_saves_loads(name, options, tmp_path):
    theirs = their_model(name)
    theirs.save_pretrained(tmp_path, **options)
    with pytest.raises(CheckpointError, match="missing MTP layer"):
        load_model(tmp_path)
    assert largest_difference(theirs, load_model(tmp_path, allow_missing_mtp=True)) < 1e-5


def test_what_transformers_saves_in_bf16_loads(tmp_path):
    their_model("tiny-air", num_nextn_predict_layers=0).save_pretrained(tmp_path / "full")
    theirs = transformers.Glm4MoeForCausalLM.from_pretrained(tmp_path / "full", dtype=torch.bfloat16)
    theirs.save_pretrained(tmp_path / "low")
    ours = load_model(tmp_path / "low")
    assert ours.lm_head.weight.dtype == torch.bfloat16
    assert ours.layers[1].mlp.gate.e_score_correction_bias.dtype == torch.float32
    assert torch.equal(ours.lm_head.weight, theirs.lm_head.weight)


@pytest.mark.parametrize("name", ["tiny-air", "tiny-355b"])
@pytest.mark.parametrize("max_shard_bytes", [10**9, 60_000])
def test_what_we_save_loads_in_transformers(name, max_shard_bytes, tmp_path):
    ours = GlmModel(variant(name)).init_weights(3)
    save_model(ours, tmp_path / "model", max_shard_bytes=max_shard_bytes)
    theirs, report = transformers.Glm4MoeForCausalLM.from_pretrained(
        tmp_path / "model", attn_implementation="eager", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["mismatched_keys"]
    layer = ours.config.num_hidden_layers
    assert all(key.startswith(f"model.layers.{layer}.") for key in report["unexpected_keys"])
    assert largest_difference(theirs, ours) < 1e-5


def test_their_checkpoint_becomes_complete_by_adding_an_mtp_file(tmp_path):
    """The remedy that the error message names."""
    their_model("tiny-air").save_pretrained(tmp_path / "theirs")
    save_model(random_model(variant("tiny-air")), tmp_path / "original")
    tensors = load_file(tmp_path / "original" / "model.safetensors")
    save_file({n: t for n, t in tensors.items() if n.startswith("model.layers.3.")}, tmp_path / "theirs" / "mtp.safetensors")
    assert load_model(tmp_path / "theirs").has_mtp


def test_an_unrelated_safetensors_file_is_left_alone(sharded):
    expected = load_model(sharded)
    save_file({"lora_a": torch.ones(2)}, sharded / "adapter.safetensors")
    assert same_weights(load_model(sharded), expected)
    save_model(expected, sharded)
    assert load_file(sharded / "adapter.safetensors")["lora_a"].tolist() == [1, 1]
    assert same_weights(load_model(sharded), expected)
