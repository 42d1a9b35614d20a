"""Loading straight into packed weights gives the same model as packing a loaded one, and never holds a second copy of it."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from random_models import random_model
from safetensors.torch import load_file, save_file

from openglm.checkpoint import load_model, load_packed_model, save_model
from openglm.config import variant
from openglm.errors import CheckpointError
from openglm.model import ForwardContext, GlmModel, PagedBatch, allocate_kv
from openglm.ops import PAGE_SIZE, cpu

pytestmark = pytest.mark.skipif(cpu.available() is None, reason="no native kernels on this machine")

FORMATS = (None, "fp8", "int8", "int4", "w8a8")


@torch.inference_mode()
def logits(model: GlmModel) -> torch.Tensor:
    """Of trunk and MTP layer for ninety tokens."""
    tokens, positions = torch.arange(91) * 3, torch.arange(90)
    table = torch.tensor([[1, 0]])
    slots = table[0][positions // PAGE_SIZE] * PAGE_SIZE + positions % PAGE_SIZE
    batch = PagedBatch((0, 90), (90,), table, slots, allocate_kv(model.config, 2, model.embed_tokens.dtype))
    ctx = ForwardContext(positions, batch, native=model.is_packed)
    hidden = model(tokens[:-1], ctx)
    return torch.cat([model.logits(hidden), model.logits(model.mtp_forward(tokens[1:], hidden, ctx))])


@pytest.mark.parametrize("to", [None, "int8"])
def test_what_only_drafts_is_rounded_and_leaves_the_rest_as_it_was(tmp_path, to):
    save_model(GlmModel(variant("tiny-air")).init_weights(7), tmp_path / "model", dtype=torch.bfloat16)
    drafting = load_packed_model(tmp_path / "model", to=to, only_drafts=True)
    other = load_packed_model(tmp_path / "model", to=to)
    assert torch.equal(logits(drafting)[:90], logits(other)[:90])  # the trunk's
    assert drafting.mtp.layer.self_attn.qkv_proj.packed.format == (to or "w8a8")
    assert drafting.mtp.packed.head.format == (to or "w8a8")
    assert drafting.lm_head.packed.format == other.lm_head.packed.format


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["tiny-air", "tiny-355b"])
def test_it_is_the_model_that_was_loaded_and_then_packed(tmp_path, monkeypatch, name, dtype, to):
    monkeypatch.setattr("openglm.checkpoint.load_packed.BLOCK_BYTES", 3000)
    save_model(GlmModel(variant(name)).init_weights(7), tmp_path / "model", dtype=dtype, max_shard_bytes=150_000)
    direct = load_packed_model(tmp_path / "model", dtype=dtype, to=to, threads=3)
    assert direct.is_packed and direct.layers[-1].mlp.experts.gate_up_proj is None
    assert torch.equal(logits(direct), logits(load_model(tmp_path / "model", dtype=dtype).pack(to)))


def test_experts_stored_as_one_tensor_are_cut_apart(checkpoint, monkeypatch):
    monkeypatch.setattr("openglm.checkpoint.load_packed.BLOCK_BYTES", 2000)
    expected = logits(load_packed_model(checkpoint))
    tensors = load_file(checkpoint / "model.safetensors")
    config = variant("tiny-air")
    for layer in range(config.first_k_dense_replace, config.num_hidden_layers + 1):
        stem = f"model.layers.{layer}.mlp.experts"
        parts = [[tensors.pop(f"{stem}.{e}.{kind}_proj.weight") for kind in ("gate", "up", "down")] for e in range(config.n_routed_experts)]
        tensors[f"{stem}.gate_up_proj"] = torch.stack([torch.cat([gate, up]) for gate, up, _ in parts])
        tensors[f"{stem}.down_proj"] = torch.stack([down for _, _, down in parts])
    save_file(tensors, checkpoint / "model.safetensors")
    assert torch.equal(logits(load_packed_model(checkpoint, threads=2)), expected)


def test_only_weights_that_bf16_cannot_hold_are_kept_in_fp32(tmp_path):
    model = GlmModel(variant("tiny-air")).init_weights(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
        model.layers[1].mlp.experts.down_proj[3, 5, 7] += 1e-6
    save_model(model, tmp_path / "model", dtype=torch.float32)
    packed = load_packed_model(tmp_path / "model", dtype=torch.float32, threads=2)
    formats = [part.format for part in packed.layers[1].mlp.experts.parts["down_proj"]]
    assert formats[3] == "float32" and set(formats[:3] + formats[4:]) == {"bfloat16"}
    assert torch.equal(logits(packed), logits(model.pack()))


def test_progress_counts_every_byte_once_and_in_the_callers_thread(sharded):
    calls: list[tuple[int, int]] = []
    load_packed_model(sharded, threads=3, progress=lambda done, total: calls.append((done, total)))
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    assert calls[-1][0] == calls[-1][1] and len({total for _, total in calls}) == 1


def test_mismatches_are_all_listed_before_a_weight_is_read(checkpoint):
    tensors = load_file(checkpoint / "model.safetensors")
    del tensors["model.layers.1.self_attn.q_proj.weight"]
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:-1].clone()
    save_file(tensors, checkpoint / "model.safetensors")
    calls: list[int] = []
    with pytest.raises(CheckpointError, match=r"(?s)missing tensor.*wrong shape|wrong shape.*missing tensor"):
        load_packed_model(checkpoint, progress=lambda done, total: calls.append(done))
    assert not calls


def test_a_file_that_shrinks_while_it_is_read_is_named(sharded, monkeypatch):
    original, victim = load_packed_model.__globals__["_fill_one"], sorted(sharded.glob("*.safetensors"))[-1]

    def shrink_first(*arguments):
        victim.write_bytes(b"")
        return original(*arguments)

    monkeypatch.setattr("openglm.checkpoint.load_packed._fill_one", shrink_first)
    with pytest.raises(CheckpointError, match=victim.name):
        load_packed_model(sharded, threads=2)


_MEASURE = """
import json, sys
from pathlib import Path
import torch
from openglm.checkpoint import load_packed_model

def rss(field):
    line = next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith(field))
    return int(line.split()[1]) * 1024

directory, small, to = sys.argv[1:]
load_packed_model(small, to=to, threads=2)  # what the first load of a process costs is not of this model
Path("/proc/self/clear_refs").write_text("5")
before = rss("VmRSS")
model = load_packed_model(directory, to=to, threads=2)
packed = [m for m in model.modules() if hasattr(m, "parts")]
weights = sum(p.num_bytes for m in packed for part in [m.parts] for p in (
    [x for parts in part.values() for x in parts] if isinstance(part, dict) else part))
kept = sum(p.nbytes for p in model.parameters())
print(json.dumps({"peak": rss("VmHWM") - before, "kept": weights + kept}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("to", ["fp8", "int4"])
def test_the_peak_of_memory_is_the_packed_weights(tmp_path, to):
    config = replace(
        variant("glm-nano"), hidden_size=1024, num_hidden_layers=3, moe_intermediate_size=512, n_routed_experts=32, intermediate_size=2048
    )
    save_model(random_model(variant("tiny-air")), tmp_path / "small")
    model = GlmModel(config, dtype=torch.bfloat16)
    pattern = torch.randn(1 << 16).bfloat16()
    with torch.no_grad():
        for parameter in model.parameters():
            flat = parameter.view(-1)
            for start in range(0, len(flat), len(pattern)):
                part = flat[start : start + len(pattern)]
                part.copy_(pattern[: len(part)])
    save_model(model, tmp_path / "model")
    command = [sys.executable, "-c", _MEASURE, str(tmp_path / "model"), str(tmp_path / "small"), to]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    unpacked = sum(parameter.nbytes for parameter in model.parameters())
    assert unpacked > 300e6 and found["kept"] < 0.6 * unpacked
    assert found["peak"] <= 1.15 * found["kept"], found
