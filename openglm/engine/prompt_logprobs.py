"""Log probabilities of the prompt itself: for every prompt token but the first, how likely it was after the tokens before it.

They are computed while the prompt is processed, chunk by chunk, from the hidden states of the step. The head runs over blocks of
`ROW_BLOCK` rows, so memory is bounded by the block however long the prompt and however large the vocabulary; what is kept per
token is a few numbers. A request that asks for them starts without prefix hits (a cached page holds no hidden states), but its own
pages are published as usual. After a preemption scoring goes on where it stood.

Each request is scored for itself: an error, or a row that is not finite, is kept as that request's failure and reported when its
prompt is complete.

Refuses to own: which rows are processed when (`scheduler`), what was chosen next (`sampler`).
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from openglm.engine.request import RequestFailure, TokenLogprobs
from openglm.engine.runner import Batch, Runner, Span
from openglm.engine.sequence import Sequence

logger = logging.getLogger(__name__)

ROW_BLOCK = 64  # rows of logits at a time: 39 MB at the 151k vocabulary of GLM-4.5; a multiple of every row tile


class PromptScorer:
    """The prompts that are being scored; requests that did not ask are not known here and cost nothing."""

    def __init__(self, runner: Runner, num_tokens: int) -> None:
        """Ids from `num_tokens` on are padding and take no part in the distribution."""
        self._runner = runner
        self._num_tokens = num_tokens
        self._scored: dict[str, list[TokenLogprobs]] = {}
        self._failures: dict[str, RequestFailure] = {}

    def add(self, sequence: Sequence) -> None:
        """Take note of a new request."""
        if sequence.params.prompt_logprobs is not None:
            self._scored[sequence.id] = []

    def score(self, batch: Batch, hidden: Tensor) -> None:
        """hidden [T, H] of the step: score the prompt tokens behind its rows, as far as they have not been scored before."""
        if not self._scored:
            return
        for span in batch.spans:
            if span.sequence.scores_prompt and span.sequence.id not in self._failures:
                try:
                    self._score(span, hidden)
                except Exception as error:
                    logger.exception("scoring the prompt of request %s failed", span.sequence.id)
                    message = f"the prompt could not be scored ({type(error).__name__})"
                    self._failures[span.sequence.id] = RequestFailure("internal", message, "prompt_logprobs")

    def failure(self, sequence: Sequence) -> RequestFailure | None:
        """Why the prompt could not be scored, if it could not."""
        return self._failures.get(sequence.id) if self._failures else None

    def take(self, sequence: Sequence) -> list[TokenLogprobs] | None:
        """The entries of a prompt that is scored completely, once; None before, afterwards, and for requests that did not ask."""
        if sequence.scores_prompt or not self._scored:
            return None
        return self._scored.pop(sequence.id, None)

    def remove(self, request_id: str) -> None:
        """Forget a request."""
        self._scored.pop(request_id, None)
        self._failures.pop(request_id, None)

    def _score(self, span: Span, hidden: Tensor) -> None:
        sequence = span.sequence
        entries = self._scored[sequence.id]
        # The row at position p decides the token at p + 1; `entries[p]` is that token's.
        end = min(span.start + span.num_rows, sequence.num_prompt - 1)
        for start in range(len(entries), end, ROW_BLOCK):
            stop = min(start + ROW_BLOCK, end)
            first_row = span.first_row + start - span.start
            rows = hidden[first_row : first_row + stop - start]
            found = self._entries(rows, sequence.tokens[start + 1 : stop + 1], sequence.params.prompt_logprobs or 0)
            if found is None:
                self._failures[sequence.id] = RequestFailure("not_finite", "the model's output is not finite (NaN or infinity)")
                return
            entries += found
        sequence.scores_prompt = len(entries) < sequence.num_prompt - 1

    def _entries(self, hidden: Tensor, tokens: list[int], num_top: int) -> list[TokenLogprobs] | None:
        """hidden [N, H] and the tokens that followed -> their log probabilities; None when a row is not finite."""
        logits = self._runner.logits(hidden)[:, : self._num_tokens]  # [N, V]
        if not bool(logits.amax(-1).isfinite().all()):
            return None
        logprobs = logits.log_softmax(-1)
        index = torch.tensor(tokens, device=logits.device).unsqueeze(1)
        chosen: list[float] = logprobs.gather(1, index).squeeze(1).tolist()
        if not num_top:
            return [TokenLogprobs(token, logprob) for token, logprob in zip(tokens, chosen, strict=True)]
        values, ids = logprobs.topk(min(num_top, logits.shape[1]), dim=-1)
        tops = (tuple(zip(*row, strict=True)) for row in zip(ids.tolist(), values.tolist(), strict=True))
        return [TokenLogprobs(*entry) for entry in zip(tokens, chosen, tops, strict=True)]
