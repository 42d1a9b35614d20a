"""Muon against torch.optim.Muon and against the definition of what it must do."""

import torch

from openglm.config import variant
from openglm.config.train import TrainConfig
from openglm.model import GlmModel
from openglm.train.muon import MatrixParameter, Muon, orthogonalise
from openglm.train.optimizers import build_optimizers


def test_orthogonalised_matrices_have_singular_values_near_one():
    for shape in ((7, 16, 48), (3, 48, 16), (2, 32, 32)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(shape, generator=torch.Generator().manual_seed(1))))
        assert float(values.min()) > 0.3 and float(values.max()) < 1.3


def test_steps_equal_torch_muon_matrix_by_matrix():
    generator = torch.Generator().manual_seed(2)
    start = torch.randn(3, 24, 40, generator=generator)
    ours = torch.nn.Parameter(start.clone())
    theirs = [torch.nn.Parameter(start[e, rows].clone()) for e in range(3) for rows in (slice(0, 8), slice(8, 24))]
    settings = {"lr": 0.02, "momentum": 0.95, "weight_decay": 0.1}
    muon = Muon([MatrixParameter(ours, (8, 16))], update_rms=0.2, **settings)
    oracle = torch.optim.Muon(theirs, nesterov=True, adjust_lr_fn="match_rms_adamw", **settings)
    for _ in range(4):
        gradient = torch.randn(3, 24, 40, generator=generator)
        ours.grad = gradient.clone()
        pieces = [gradient[e, rows] for e in range(3) for rows in (slice(0, 8), slice(8, 24))]
        for parameter, piece in zip(theirs, pieces, strict=True):
            parameter.grad = piece.clone()
        muon.step()
        oracle.step()
    expected = torch.stack([torch.cat([theirs[2 * e], theirs[2 * e + 1]]) for e in range(3)])
    torch.testing.assert_close(ours.detach(), expected.detach(), atol=2e-3, rtol=0)  # both orthogonalise in bf16


def test_every_parameter_has_exactly_one_optimizer():
    model = GlmModel(variant("tiny-355b")).init_weights(0)
    muon, adam = build_optimizers(model, TrainConfig())
    owned = [id(p) for optimizer in (muon, adam) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(owned) == sorted(id(p) for p in model.parameters())
    under_muon = {id(p) for p in muon.param_groups[0]["params"]}
    by_name = {name: id(p) in under_muon for name, p in model.named_parameters()}
    assert by_name["mtp.eh_proj.weight"] and by_name["layers.3.mlp.experts.gate_up_proj"]
    assert not by_name["embed_tokens"] and not by_name["lm_head.weight"] and not by_name["layers.3.mlp.gate.weight"]


def test_fused_parameters_are_cut_as_in_the_checkpoint():
    config = variant("tiny-air")
    muon = build_optimizers(GlmModel(config).init_weights(0), TrainConfig())[0]
    assert isinstance(muon, Muon)
    blocks = {matrix.row_blocks for matrix in muon.matrices}
    assert (config.query_dim, config.kv_dim, config.kv_dim) in blocks
    assert (config.moe_intermediate_size, config.moe_intermediate_size) in blocks
