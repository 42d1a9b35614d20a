"""The sampler for logits on a device: one kernel chooses every token, and one copy brings all answers of a step to the host.

Choosing and reading are two things: `DeviceSampler.start` gives the device all it has to do and returns a `Draw`, whose tokens another
step may use on the device long before the host reads them (`pipeline`).

What is answered, and in which order filters apply, is as in `sampler`; the kernel is given the same number u per row. It is
`openglm.ops.triton.sampling.sample` on a GPU, and anything that answers alike elsewhere.

Shape legend: N rows, A rows with log probabilities, K the most alternatives any of them wants, V tokens that may be sampled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from openglm.engine.request import SamplingParams, TokenLogprobs
from openglm.engine.sampler import Sampled, Sampler, SamplingRow, uniform
from openglm.ops.copies import Readback, read_back, to_device


class SampleKernel(Protocol):
    """Chooses one token per row without the host; all settings lie on the logits' device."""

    def __call__(
        self, logits: Tensor, *, temperatures: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, uniforms: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """logits [N, V] fp32 -> tokens [N] int64, finite [N] bool, log probabilities [N] fp32.

        temperatures [N] fp32 (0 is greedy), top_k [N] int32 (0 is off), top_p [N] fp64, min_p [N] fp32, uniforms [N] fp64.
        """
        ...


class Draw:
    """Tokens that the device is choosing, one per row: there at once for the next step, and after `wait` for the host."""

    def __init__(self, tokens: Tensor, read: Readback, params: Sequence[SamplingParams], num_top: int, width: int) -> None:
        """`read` gives columns of N: tokens, finite, allowed; then rows [A, 1 + 2 * num_top] of log probabilities."""
        self.tokens = tokens  # [N] int64
        self._read, self._params, self._num_top, self._width = read, params, num_top, width
        self._values: list[float] = []
        self._entries: dict[int, int] = {}  # where the log probabilities of a row begin

    def wait(self) -> None:
        """Wait for the device; what fails here is no single row's fault."""
        if self._values:
            return
        self._values = self._read()
        first = 3 * len(self._params)
        for row, params in enumerate(self._params):
            if params.logprobs is not None:
                self._entries[row] = first
                first += 1 + 2 * self._num_top

    def sampled(self, row: int) -> Sampled:
        """The answer for one row."""
        values, size = self._values, len(self._params)
        token, logprobs = int(values[row]), self._params[row].logprobs
        entry = None
        if logprobs is not None:
            first, count = self._entries[row], min(logprobs, self._width)
            top_ids = values[first + 1 : first + 1 + count]
            top_values = values[first + 1 + self._num_top : first + 1 + self._num_top + count]
            top = tuple((int(top_id), value) for top_id, value in zip(top_ids, top_values, strict=True))
            entry = TokenLogprobs(token, values[first], top)
        return Sampled(token, values[size + row] != 0, entry, values[2 * size + row] != 0)


class DeviceSampler(Sampler):
    """Stateless, like `Sampler`; logits that the kernel does not take are sampled by torch on their device."""

    def __init__(self, num_tokens: int, kernel: SampleKernel, read_back: Callable[[Tensor], Readback] = read_back) -> None:
        """`read_back` asks for a copy to the host (see `copies`)."""
        super().__init__(num_tokens)
        self._kernel = kernel
        self._read_back = read_back

    def sample(self, logits: Tensor, rows: Sequence[SamplingRow], adjusted: Tensor | None = None) -> list[Sampled]:
        """logits [N, >= V] -> one token per row, chosen from `adjusted` [N, V] where that is given."""
        draw = self.start(logits, rows, adjusted)
        if draw is None:
            return super().sample(logits, rows, adjusted)
        draw.wait()  # the only place where the host waits
        return [draw.sampled(row) for row in range(len(rows))]

    def start(self, logits: Tensor, rows: Sequence[SamplingRow], adjusted: Tensor | None = None) -> Draw | None:
        """As `sample`, without waiting for the answers; None for logits that the kernel does not take."""
        source = logits[:, : self.num_tokens] if adjusted is None else adjusted
        if source.dtype != torch.float32 or source.stride(1) != 1:
            return None
        logits = logits[:, : self.num_tokens]
        width = logits.shape[1]
        # fp64 holds every one of these exactly, so there is one copy; a row of it per setting needs no further one.
        settings = to_device(list(zip(*(_settings(row, width) for row in rows), strict=True)), torch.float64, logits.device)
        temperatures, top_k, top_p, min_p, uniforms = settings.unbind(0)
        tokens, allowed, _ = self._kernel(
            source, temperatures=temperatures.float(), top_k=top_k.int(), top_p=top_p, min_p=min_p.float(), uniforms=uniforms
        )
        finite = allowed if adjusted is None else logits.amax(-1).isfinite()  # of the model's own row; NaN wins the maximum
        answers = [tokens, finite, allowed]
        asked = [i for i, row in enumerate(rows) if row.params.logprobs is not None]
        num_top = max((min(rows[i].params.logprobs or 0, width) for i in asked), default=0)
        if asked:
            answers.append(_logprobs(logits, tokens, asked, num_top).flatten())
        # Whole numbers, or with log probabilities fp64, which holds all of them exactly: again one copy.
        return Draw(tokens, self._read_back(torch.cat(answers)), [row.params for row in rows], num_top, width)


def _settings(row: SamplingRow, width: int) -> tuple[float, ...]:
    params = row.params
    temperature = 0.0 if params.greedy else params.temperature
    return temperature, max(0, min(params.top_k, width)), params.top_p, params.min_p, uniform(row.seed, row.position)


def _logprobs(logits: Tensor, tokens: Tensor, asked: Sequence[int], most: int) -> Tensor:
    """For each of the asked rows the token's log probability, then the ids and the values of the `most` likely: [A, 1 + 2K] fp64."""
    if len(asked) < logits.shape[0]:
        index = to_device(asked, torch.int64, logits.device)
        logits, tokens = logits[index], tokens[index]
    logprobs = logits.log_softmax(-1)
    values, ids = logprobs.topk(most, dim=-1)
    return torch.cat((logprobs.gather(1, tokens.unsqueeze(1)).double(), ids.double(), values.double()), 1)
