"""Which optimizer trains which parameter: Muon for the matrices inside layers, AdamW for everything else.

AdamW takes the embedding, the head, the router (a classifier over experts, like the head), norms and biases; only its
matrices decay. The router's correction bias is a buffer that `balance` moves; no optimizer sees it.
"""

from __future__ import annotations

import torch
from torch import nn

from openglm.config import ModelConfig
from openglm.config.train import TrainConfig
from openglm.model import GlmModel
from openglm.train.muon import MatrixParameter, Muon


def build_optimizers(model: GlmModel, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """Muon and AdamW over all parameters of `model`, each parameter in exactly one."""
    matrices, decayed, plain = [], [], []
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            plain.append(parameter)
        elif name in ("embed_tokens", "lm_head.weight") or name.endswith("mlp.gate.weight"):
            decayed.append(parameter)
        else:
            matrices.append(MatrixParameter(parameter, _row_blocks(name, parameter, model.config)))
    muon = Muon(
        matrices,
        lr=config.learning_rate,
        momentum=config.muon_momentum,
        update_rms=config.muon_update_rms,
        weight_decay=config.weight_decay,
    )
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return [muon, torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.adam_betas, eps=1e-10)]


def _row_blocks(name: str, parameter: nn.Parameter, config: ModelConfig) -> tuple[int, ...]:
    rows = parameter.shape[-2]
    if name.endswith("qkv_proj.weight"):
        return config.query_dim, config.kv_dim, config.kv_dim
    if "gate_up_proj" in name:
        return rows // 2, rows // 2
    return (rows,)
