"""Loss-free router balance: after each step an expert that was chosen too often becomes a little less attractive.

The bias steers only the choice of experts, never their weights, so balance costs no gradient (DeepSeek-V3 report section
2.1.2; GLM-4.5 uses rate 0.001, then 0).
"""

from __future__ import annotations

import torch
from torch import Tensor

from openglm import ops
from openglm.model import GlmModel
from openglm.model.layers import MoE
from openglm.train.workers import Workers


class RouterBalance:
    """Collects the routing of one step (pass `record` as `on_routing`) and moves the biases by it."""

    def __init__(self, model: GlmModel) -> None:
        self.routers = {module.layer: module.gate for module in model.modules() if isinstance(module, MoE)}
        self.routings: dict[int, ops.Routing] = {}

    def record(self, layer: int, routing: ops.Routing) -> None:
        """Remember what layer `layer` chose."""
        self.routings[layer] = routing

    def loss(self, document_of_token: Tensor, num_documents: int) -> Tensor:
        """Sum over layers of the sequence-level balance loss of the recorded step."""
        return torch.stack([ops.balance_loss(r, document_of_token, num_documents) for r in self.routings.values()]).sum()

    @torch.no_grad()
    def update(self, rate: float, workers: Workers = Workers()) -> float:
        """Move every bias by `rate` toward balance over all workers, forget the step, and return the worst overload.

        Overload (MaxVio) is max over experts of load / mean load - 1, averaged over layers.
        """
        overloads = []
        num_experts = len(next(iter(self.routers.values())).e_score_correction_bias)
        loads = torch.stack([torch.bincount(r.experts.flatten(), minlength=num_experts) for r in self.routings.values()])
        for layer, load in zip(self.routings, workers.sum(loads.float()), strict=True):
            bias = self.routers[layer].e_score_correction_bias
            bias.add_(torch.sign(load.mean() - load), alpha=rate)
            overloads.append(float(load.max() / load.mean() - 1))
        self.routings.clear()
        return sum(overloads) / max(1, len(overloads))
