"""Next-token loss of the trunk and of the MTP layer over one packed batch."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from openglm.model import ForwardContext, GlmModel
from openglm.train.data import Batch


class Losses(NamedTuple):
    """Weighted cross-entropies in nats per weighted token; `mtp` is 0 for a model without the layer."""

    trunk: Tensor
    mtp: Tensor


def pretrain_losses(model: GlmModel, batch: Batch, ctx: ForwardContext, weight_totals: Tensor) -> Losses:
    """Forward trunk and MTP layer; only positions with a loss weight reach the head.

    At position i the trunk predicts token i + 1; the MTP layer sees token i + 1 and the trunk's normed state and predicts
    token i + 2. Sums are divided by `weight_totals` [2], the loss weights of the whole step over all workers.
    """
    hidden = model(batch.tokens, ctx)
    trunk = weighted_sum(model, hidden, batch.targets[:, 0], batch.weights[:, 0]) / weight_totals[0].clamp(min=1e-6)
    if not model.has_mtp:
        return Losses(trunk, torch.zeros(()))
    drafted = model.mtp_forward(batch.next_tokens, hidden, ctx)
    mtp = weighted_sum(model, drafted, batch.targets[:, 1], batch.weights[:, 1]) / weight_totals[1].clamp(min=1e-6)
    return Losses(trunk, mtp)


def weighted_sum(model: GlmModel, hidden: Tensor, targets: Tensor, weights: Tensor, rows: Tensor | None = None) -> Tensor:
    """Sum over positions of weight times cross-entropy; hidden [T, H], targets and weights [T]. Only `rows` (those with a weight,
    found here if not given) reach the head."""
    rows = weights.nonzero().squeeze(1) if rows is None else rows
    losses = F.cross_entropy(model.logits(hidden.index_select(0, rows)), targets[rows], reduction="none")
    return (losses * weights[rows]).sum()
