"""Routing to experts and the experts' MLPs.

Shape legend: T tokens, H hidden, E experts, K experts per token, M expert width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from openglm.ops.reference.linear import linear
from openglm.ops.reference.swiglu import swiglu


class Routing(NamedTuple):
    """Which experts each token visits. `scores` are the sigmoids of all experts, unbiased."""

    experts: Tensor  # [T, K] int64
    weights: Tensor  # [T, K] fp32
    scores: Tensor  # [T, E] fp32


def route(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    num_experts_per_tok: int,
    n_group: int = 1,
    topk_group: int = 1,
    norm_topk_prob: bool = True,
    scaling: float = 1.0,
    row_tile: int | None = None,
) -> Routing:
    """Choose K experts per token by sigmoid score plus bias; weigh them by the score without the bias.

    x [T, H] any dtype, weight [E, H], bias [E] fp32. Everything is fp32, also under autocast: a router in bf16 picks other
    experts. Order of steps: transformers' `Glm4MoeTopkRouter`, but groups outside the choice are masked with -inf (as vLLM
    and SGLang do), which a negative bias cannot revive.
    """
    with torch.autocast(x.device.type, enabled=False):
        logits = linear(x.float(), weight.float(), row_tile=row_tile)
    scores = logits.sigmoid() if row_tile is None else logits.double().sigmoid().float()
    choice = scores.detach() + bias
    if n_group > 1:
        grouped = choice.unflatten(1, (n_group, -1))
        kept = grouped.topk(2, dim=-1).values.sum(-1).topk(topk_group, dim=-1).indices  # [T, topk_group]
        mask = torch.ones(choice.shape[0], n_group, dtype=torch.bool, device=x.device).scatter_(1, kept, False)
        choice = grouped.masked_fill(mask.unsqueeze(-1), float("-inf")).flatten(1)
    experts = choice.topk(num_experts_per_tok, dim=-1, sorted=False).indices.sort(dim=-1).values
    weights = scores.gather(1, experts)
    if norm_topk_prob:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return Routing(experts, weights * scaling, scores)


def experts_mlp(x: Tensor, routing: Routing, gate_up: Tensor, down: Tensor, *, row_tile: int | None = None) -> Tensor:
    """Weighted sum of the chosen experts: x [T, H], gate_up [E, 2M, H], down [E, H, M] -> [T, H] fp32.

    Token-expert pairs are sorted by expert and each expert that was hit runs once. The sum over K is taken in fp32 in the
    order of expert ids, whatever else is in the batch.
    """
    num_tokens, num_chosen = routing.experts.shape
    order = routing.experts.flatten().argsort(stable=True)
    counts = torch.bincount(routing.experts.flatten(), minlength=gate_up.shape[0]).tolist()
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, gate_up, down = x.to(dtype), gate_up.to(dtype), down.to(dtype)
    rows = x.index_select(0, order // num_chosen).split(counts)  # index_select: its backward is a plain add
    outputs = [
        linear(swiglu(linear(tokens, gate_up[e], row_tile=row_tile), exact=row_tile is not None), down[e], row_tile=row_tile)
        for e, tokens in enumerate(rows)
        if counts[e]
    ]
    by_pair = torch.cat(outputs).index_select(0, order.argsort()).view(num_tokens, num_chosen, -1)
    total = by_pair[:, 0].float() * routing.weights[:, 0:1]
    for k in range(1, num_chosen):
        total = total + by_pair[:, k].float() * routing.weights[:, k : k + 1]
    return total


def balance_loss(routing: Routing, document_of_token: Tensor, num_documents: int) -> Tensor:
    """Sequence-level balance loss of one layer, mean over documents (DeepSeek-V3 report, eq. 17-20; weight 1e-4 in GLM-4.5).

    document_of_token [T] int64. For each document: sum over experts of (fraction of its choices that fell on the expert,
    scaled so that uniform is 1) times (its mean normalised score).
    """
    num_experts = routing.scores.shape[1]
    num_chosen = routing.experts.shape[1]
    chosen = F.one_hot(routing.experts, num_experts).sum(1).to(routing.scores.dtype)  # [T, E]
    share = routing.scores / routing.scores.sum(-1, keepdim=True)
    lengths = torch.bincount(document_of_token, minlength=num_documents).clamp(min=1).unsqueeze(1)
    zeros = torch.zeros(num_documents, num_experts, dtype=share.dtype, device=share.device)
    load = zeros.index_add(0, document_of_token, chosen) / lengths * (num_experts / num_chosen)
    return (load * zeros.index_add(0, document_of_token, share) / lengths).sum(-1).mean()
