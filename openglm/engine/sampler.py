"""From logits to tokens: greedy, temperature, top-k, top-p, min-p, and log probabilities.

Every draw is the inverse of the cumulative distribution at one number u in [0, 1), and u depends on nothing but the request's
seed and the position of the token. So a seeded request gets the same tokens whatever else is in the batch, in whatever
chunks it is processed - and whether or not drafts are verified (see `speculation`).

Filters apply in the order temperature, top-k, top-p (of what top-k left), min-p, and each is a threshold on the probability: tokens
that tie with the last one kept are kept too, so no result depends on how a sort breaks ties. A full-vocabulary sort happens only
when the 256 most likely tokens do not hold top-p of the mass.

Log probabilities are of the model's own logits, whatever the token was chosen from. Refuses to own: how logits are adjusted
(see `adjust`), stopping.

Shape legend: N rows, V tokens that may be sampled (padding rows of the head are cut off).
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from openglm import ops
from openglm.engine.request import RequestFailure, SamplingParams, TokenLogprobs

_FIRST_NUCLEUS_WIDTH = 256
_UNIFORM_BITS = 48  # leaves room for u * total < total in float64


class SamplingRow(NamedTuple):
    """One row of logits: whose it is and which position it decides."""

    params: SamplingParams
    seed: int
    position: int


class Sampled(NamedTuple):
    """The token of one row. `finite` is False when the logits hold NaN or infinity; the token then means nothing."""

    token: int
    finite: bool
    logprobs: TokenLogprobs | None
    allowed: bool = True
    """False when the adjustments banned every token."""
    completes: bool = False
    """The request's constraint is fulfilled with this token, and nothing may follow it."""
    failure: RequestFailure | None = None
    """Why the request ends here instead of with a token."""


class Sampler:
    """Stateless; ids from `num_tokens` on are padding and never chosen."""

    def __init__(self, num_tokens: int) -> None:
        self.num_tokens = num_tokens

    def sample(self, logits: Tensor, rows: Sequence[SamplingRow], adjusted: Tensor | None = None) -> list[Sampled]:
        """logits [N, >= V] fp32 -> one token per row, chosen from `adjusted` [N, V] where that is given."""
        logits = logits[:, : self.num_tokens]
        best, tokens = ops.highest(logits)  # NaN wins, so `best` tells about the whole row
        finite = [math.isfinite(value) for value in best.tolist()]
        source, allowed = logits, [True] * len(rows)
        if adjusted is not None:
            source = adjusted
            best, tokens = ops.highest(source)
            allowed = [math.isfinite(value) for value in best.tolist()]
        drawn = [i for i, row in enumerate(rows) if not row.params.greedy]
        if len(drawn) == len(rows):
            tokens = draw(source, rows)
        elif drawn:
            index = torch.tensor(drawn, device=logits.device)
            tokens[index] = draw(source[index], [rows[i] for i in drawn])
        chosen: list[int] = tokens.tolist()
        logprobs = self._logprobs(logits, tokens, rows)
        return [Sampled(*row) for row in zip(chosen, finite, logprobs, allowed, strict=True)]

    def _logprobs(self, logits: Tensor, tokens: Tensor, rows: Sequence[SamplingRow]) -> list[TokenLogprobs | None]:
        result: list[TokenLogprobs | None] = [None] * len(rows)
        asked = [i for i, row in enumerate(rows) if row.params.logprobs is not None]
        if not asked:
            return result
        index = torch.tensor(asked, device=logits.device)
        logprobs = logits[index].log_softmax(-1)  # [asked, V]
        chosen: list[float] = logprobs.gather(1, tokens[index].unsqueeze(1)).squeeze(1).tolist()
        counts = [min(rows[i].params.logprobs or 0, logits.shape[1]) for i in asked]
        values, ids = logprobs.topk(max(counts), dim=-1)
        for i, count, logprob, top_ids, top_values in zip(asked, counts, chosen, ids.tolist(), values.tolist(), strict=True):
            top = tuple(zip(top_ids[:count], top_values[:count], strict=True))
            result[i] = TokenLogprobs(int(tokens[i]), logprob, top)
        return result


def draw(logits: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """logits [N, V] -> tokens [N] int64, drawn from each row's filtered distribution at the row's own u."""
    cumulative = filtered_probabilities(logits, [row.params for row in rows]).double().cumsum(-1)  # [N, V]
    uniforms = torch.tensor([[uniform(row.seed, row.position)] for row in rows], dtype=torch.float64, device=logits.device)
    # `right=True`: the first entry *above* u * total, so a token of probability zero is never hit.
    tokens = torch.searchsorted(cumulative, uniforms * cumulative[:, -1:], right=True).squeeze(1)
    return tokens.clamp_(max=logits.shape[1] - 1)  # rows that are not finite end past the last token


def filtered_probabilities(logits: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """logits [N, V] -> probabilities [N, V], zero where a filter cut; rows are not renormalised after top-p and min-p."""
    width, device = logits.shape[1], logits.device
    # Subtracting the maximum first keeps small temperatures from overflowing; the softmax is unchanged by it.
    scaled = (logits - logits.amax(-1, keepdim=True)) / torch.tensor([[p.temperature] for p in params], device=device)
    limits = [min(p.top_k, width) if p.top_k > 0 else width for p in params]
    narrowest = [limit for limit in limits if limit < width]
    if narrowest:
        top = scaled.topk(max(narrowest), dim=-1).values
        last = torch.tensor([[min(limit, top.shape[1]) - 1] for limit in limits], device=device)
        unlimited = torch.tensor([[limit == width] for limit in limits], device=device)
        scaled = scaled.masked_fill((scaled < top.gather(1, last)) & ~unlimited, float("-inf"))
    probabilities = scaled.softmax(-1)
    threshold = None
    if any(p.top_p < 1.0 for p in params):
        threshold = _nucleus_threshold(probabilities, torch.tensor([[p.top_p] for p in params], dtype=torch.float64, device=device))
    if any(p.min_p > 0.0 for p in params):
        floor = probabilities.amax(-1, keepdim=True) * torch.tensor([[p.min_p] for p in params], device=device)
        threshold = floor if threshold is None else torch.maximum(threshold, floor)
    return probabilities if threshold is None else probabilities.masked_fill(probabilities < threshold, 0.0)


def uniform(seed: int, position: int) -> float:
    """The number in [0, 1) that decides position `position` of a request with this seed."""
    digest = hashlib.blake2b(struct.pack("<qq", seed, position), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> (64 - _UNIFORM_BITS)) / (1 << _UNIFORM_BITS)


def _nucleus_threshold(probabilities: Tensor, top_p: Tensor) -> Tensor:
    """The smallest probability in the smallest set of most likely tokens that holds top_p of the mass: [N, 1]."""
    full = probabilities.shape[1]
    width = min(_FIRST_NUCLEUS_WIDTH, full)
    while True:
        top = probabilities.topk(width, dim=-1).values  # [N, width], descending
        mass = top.cumsum(-1, dtype=torch.float64)
        if width == full or bool((mass[:, -1:] >= top_p).all()):
            break
        width = full
    last = (mass < top_p).sum(-1, keepdim=True).clamp(max=width - 1)
    threshold = top.gather(1, last)
    return threshold.masked_fill(top_p >= 1.0, 0.0)
