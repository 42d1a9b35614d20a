"""The sampler for logits on a device: one kernel chooses every token, and one copy brings all answers of a step to the host.

What is answered, and in which order filters apply, is as in `sampler`; the kernel is given the same number u per row. It is
`openglm.ops.triton.sampling.sample` on a GPU, and anything that answers alike elsewhere.

Shape legend: N rows, A rows with log probabilities, K the most alternatives any of them wants, V tokens that may be sampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from openglm.engine.request import TokenLogprobs
from openglm.engine.sampler import Sampled, Sampler, SamplingRow, uniform


class SampleKernel(Protocol):
    """Chooses one token per row without the host; all settings lie on the logits' device."""

    def __call__(
        self, logits: Tensor, *, temperatures: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, uniforms: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """logits [N, V] fp32 -> tokens [N] int64, finite [N] bool, log probabilities [N] fp32.

        temperatures [N] fp32 (0 is greedy), top_k [N] int32 (0 is off), top_p [N] fp64, min_p [N] fp32, uniforms [N] fp64.
        """
        ...


class DeviceSampler(Sampler):
    """Stateless, like `Sampler`; logits that the kernel does not take are sampled by torch on their device."""

    def __init__(self, num_tokens: int, kernel: SampleKernel) -> None:
        super().__init__(num_tokens)
        self._kernel = kernel

    def sample(self, logits: Tensor, rows: Sequence[SamplingRow], adjusted: Tensor | None = None) -> list[Sampled]:
        """logits [N, >= V] -> one token per row, chosen from `adjusted` [N, V] where that is given."""
        source = logits[:, : self.num_tokens] if adjusted is None else adjusted
        if source.dtype != torch.float32 or source.stride(1) != 1:
            return super().sample(logits, rows, adjusted)
        logits = logits[:, : self.num_tokens]
        width = logits.shape[1]
        # fp64 holds every one of these, and the answers below, exactly: so there is one copy each way.
        settings = _on_device([_settings(row, width) for row in rows], torch.float64, logits.device).unbind(1)
        temperatures, top_k, top_p, min_p, uniforms = (setting.contiguous() for setting in settings)
        tokens, allowed, _ = self._kernel(
            source, temperatures=temperatures.float(), top_k=top_k.int(), top_p=top_p, min_p=min_p.float(), uniforms=uniforms
        )
        finite = allowed if adjusted is None else logits.amax(-1).isfinite()  # of the model's own row; NaN wins the maximum
        answers = [torch.stack((tokens.double(), finite.double(), allowed.double()), 1).flatten()]
        asked = [i for i, row in enumerate(rows) if row.params.logprobs is not None]
        counts = [min(rows[i].params.logprobs or 0, width) for i in asked]
        if asked:
            answers.append(_logprobs(logits, tokens, asked, max(counts)).flatten())
        values: list[float] = torch.cat(answers).tolist()  # the only place where the host waits
        logprobs: list[TokenLogprobs | None] = [None] * len(rows)
        most = max(counts, default=0)
        first = 3 * len(rows)
        for i, count in zip(asked, counts, strict=True):
            top_ids = values[first + 1 : first + 1 + count]
            top_values = values[first + 1 + most : first + 1 + most + count]
            top = tuple((int(token), value) for token, value in zip(top_ids, top_values, strict=True))
            logprobs[i] = TokenLogprobs(int(values[3 * i]), values[first], top)
            first += 1 + 2 * most
        return [
            Sampled(int(values[3 * i]), values[3 * i + 1] != 0, entry, adjusted is None or values[3 * i + 2] != 0)
            for i, entry in enumerate(logprobs)
        ]


def _settings(row: SamplingRow, width: int) -> tuple[float, ...]:
    params = row.params
    temperature = 0.0 if params.greedy else params.temperature
    return temperature, max(0, min(params.top_k, width)), params.top_p, params.min_p, uniform(row.seed, row.position)


def _logprobs(logits: Tensor, tokens: Tensor, asked: Sequence[int], most: int) -> Tensor:
    """For each of the asked rows the token's log probability, then the ids and the values of the `most` likely: [A, 1 + 2K] fp64."""
    if len(asked) < logits.shape[0]:
        index = _on_device(asked, torch.int64, logits.device)
        logits, tokens = logits[index], tokens[index]
    logprobs = logits.log_softmax(-1)
    values, ids = logprobs.topk(most, dim=-1)
    return torch.cat((logprobs.gather(1, tokens.unsqueeze(1)).double(), ids.double(), values.double()), 1)


def _on_device(values: Sequence[int] | Sequence[tuple[float, ...]], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor whose copy to the device nobody waits for."""
    if device.type == "cpu":
        return torch.tensor(values, dtype=dtype)
    return torch.tensor(values, dtype=dtype, pin_memory=True).to(device, non_blocking=True)
