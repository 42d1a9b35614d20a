"""The composition of the GPU path, on stand-ins for its kernels: the same model as the reference, also with experts in host memory."""

import pytest
import torch
from device_stand_ins import stand_ins  # noqa: F401
from device_steps import Steps, run_steps

from openglm.checkpoint import load_packed_model, save_model
from openglm.config import variant
from openglm.errors import ConfigError
from openglm.model import GlmModel
from openglm.ops import FP8, PackedLinear, cpu

needs_native = pytest.mark.skipif(cpu.available() is None, reason="no native kernels on this machine")


def plain(architecture: str = "tiny-air") -> GlmModel:
    model = GlmModel(variant(architecture)).init_weights(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))) * 0.1)
            else:
                parameter.mul_(8)
    for layer in model.modules():
        if hasattr(layer, "e_score_correction_bias"):
            layer.e_score_correction_bias.copy_(torch.linspace(-0.2, 0.2, model.config.n_routed_experts))
    return model


def on_device(model: GlmModel, to: str = "float32", host_experts=None) -> GlmModel:
    model.on_device(host_experts=host_experts).pack(lambda name: "float32" if "lm_head" in name or "eh_proj" in name else to)
    return model


def assert_same(found, expected, tolerance=2e-4):
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.isfinite(ours).all()
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance * float(theirs.std()))


@pytest.mark.parametrize("name", ["tiny-air", "tiny-355b"])
@pytest.mark.parametrize("static", [False, True])
@pytest.mark.usefixtures("stand_ins")
def test_every_step_is_that_of_the_reference(name, static):
    assert_same(run_steps(on_device(plain(name)), static=static), run_steps(plain(name)))


@pytest.mark.usefixtures("stand_ins")
def test_fp8_pages_are_those_of_the_reference():
    assert_same(run_steps(on_device(plain()), kv_dtype=FP8), run_steps(plain(), kv_dtype=FP8), 5e-2)


@pytest.mark.usefixtures("stand_ins")
def test_packing_leaves_no_matrix_behind():
    model = on_device(plain())
    assert model.is_packed and model.packed.capturable
    kept = {name for name, parameter in model.named_parameters() if parameter.dim() > 1}
    assert kept == {"embed_tokens"} | {name for name in kept if name.endswith("gate.weight")}


@needs_native
@pytest.mark.parametrize("to", ["float32", "fp8"])
@pytest.mark.parametrize("host_experts", [(0, 8, 3, 8), (0, 1, 0, 0)])
@pytest.mark.usefixtures("stand_ins")
def test_experts_in_host_memory_change_no_more_than_rounding(to, host_experts):
    model = on_device(plain(), to, host_experts)
    assert not model.packed.capturable
    assert_same(run_steps(model), run_steps(on_device(plain(), to)), 2e-4 if to == "float32" else 3e-2)


@needs_native
@pytest.mark.parametrize("host_experts", [(1, 0, 0, 0), (0, 9, 0, 0), (0, -1, 0, 0), (0, 1)])
def test_experts_that_do_not_exist_cannot_stay_in_host_memory(host_experts):
    with pytest.raises(ConfigError, match="host_experts"):
        plain().on_device(host_experts=host_experts)


@pytest.mark.usefixtures("stand_ins")
def test_integer_formats_are_refused():
    with pytest.raises(ConfigError, match="int4"):
        on_device(plain(), "int4")


@needs_native
@pytest.mark.parametrize("to", [None, "fp8"])
@pytest.mark.parametrize("host_experts", [(0, 0, 0, 0), (0, 8, 3, 0)])
@pytest.mark.usefixtures("stand_ins")
def test_loading_fills_what_packing_fills(tmp_path, monkeypatch, to, host_experts):
    monkeypatch.setattr("openglm.checkpoint.load_packed.BLOCK_BYTES", 3000)
    save_model(plain(), tmp_path / "model", dtype=torch.float32)
    loaded = load_packed_model(tmp_path / "model", dtype=torch.float32, to=to, host_experts=host_experts, threads=2)
    packed = on_device(plain(), to or "float32", host_experts)
    for ours, theirs in zip(run_steps(loaded), run_steps(packed), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.usefixtures("stand_ins")
@torch.inference_mode()
def test_a_chain_of_drafts_is_what_single_steps_give():
    model = on_device(plain())
    steps, alone = Steps(model, torch.float32), Steps(model, torch.float32)
    hidden = torch.randn(7, model.config.hidden_size, generator=torch.Generator().manual_seed(1))
    tokens = [5, 9, 13, 200, 201]
    settings = {"first_rows": [4, 0], "counts": [3, 2], "positions": [62, 0], "depths": [3, 1]}
    chains, values = model.mtp.packed.draft(hidden, tokens=tokens, page_table=steps.table, kv=steps.kv[-1], num_tokens=300, **settings)
    chains, values = chains.tolist(), values.tolist()
    out = model.mtp_forward(torch.tensor(tokens), hidden[[4, 5, 6, 0, 1]], alone.context([62, 0], [3, 2]))
    best, states = model.logits(out[[2, 4]])[:, :300].max(-1), out[[2]]
    assert [chains[0][0], chains[1][0]] == best.indices.tolist()
    torch.testing.assert_close(torch.tensor([values[0][0], values[1][0]]), best.values)
    for step in (1, 2):
        alone_table = alone.table
        alone.table = alone_table[:1]
        states = model.mtp_forward(torch.tensor([chains[0][step - 1]]), states, alone.context([64 + step], [1]))
        alone.table = alone_table
        assert chains[0][step] == int(model.logits(states)[0, :300].argmax())
    torch.testing.assert_close(steps.kv[-1][3], alone.kv[-1][3])


@pytest.mark.usefixtures("stand_ins")
def test_the_norm_adds_the_residual_where_the_product_of_rounded_rows_does_not():
    """With stand-ins that round nothing, only who adds differs, and so do the logits by no more than an addition's order."""
    model = plain()
    model.on_device(quantize_activations=True).pack(lambda name: "float32" if "lm_head" in name or "eh_proj" in name else "fp8")
    assert model.packed.layers[0]._o.rounds(5, torch.float32) and not model.lm_head.packed.quantize
    assert_same(run_steps(model), run_steps(on_device(plain(), "fp8")))


def test_native_linears_are_still_what_a_cpu_gets():
    if cpu.available() is not None:
        assert isinstance(plain().pack().lm_head.packed, PackedLinear)
