"""Logit adjustments: what a request adds to, subtracts from or bans in the model's logits before a token is chosen.

Definitions are vLLM's, in its order: biases and bans (`logit_bias`, `bad_words`, stop ids before `min_tokens`), then the repetition
penalty over prompt and generated tokens (positive logits are divided by it, others multiplied), then frequency (times the count)
and presence penalty over generated tokens. A token that the thinking budget forces replaces all of it. Log probabilities that a
client sees are those of the logits before any of this.

Every row is adjusted for the tokens in front of it: the request's own, and in a step that verifies drafts the drafts before the row,
as if they had been generated. Where they were not right, the row is thrown away. So the tokens are those of decoding without drafts.

The work is vectorised over the batch and elementwise in each row, so no row depends on its company, bit for bit. Counts are kept per
request and updated by the tokens that are new: nothing grows with the context's length. Without an adjusted row nothing is done.

Shape legend: N rows, A adjusted rows with penalties, S slots of the count table, V tokens that may be sampled.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Seq
from typing import NamedTuple

import torch
from torch import Tensor

from openglm.engine.request import SamplingParams
from openglm.engine.sequence import Sequence
from openglm.engine.thinking import ThinkingBudget, ThinkingTokens

_BANNED = float("-inf")


class _Rows(NamedTuple):
    """The rows that one adjusted request has in a step: row `first + i` follows its tokens and its first `i` drafts."""

    first: int
    sequence: Sequence
    state: _State

    @property
    def num_rows(self) -> int:
        return 1 + len(self.sequence.drafts)


class LogitAdjuster:
    """The adjustments of all requests that asked for some; the others are not known here and cost nothing."""

    def __init__(self, num_tokens: int, thinking: ThinkingTokens | None, device: torch.device) -> None:
        """`thinking` is None for models without reasoning tags, which can have no budget."""
        self.thinking = thinking
        self._num_tokens = num_tokens
        self._device = device
        self._states: dict[str, _State] = {}
        self._counts = _TokenCounts(num_tokens, device)

    def add(self, sequence: Sequence, stop_ids: Iterable[int]) -> None:
        """Take note of a new request; `stop_ids` are those that would end it."""
        if sequence.params.adjusts_logits:
            self._states[sequence.id] = _State(sequence.params, tuple(stop_ids), self.thinking, self._device)

    def remove(self, request_id: str) -> None:
        """Forget a request."""
        state = self._states.pop(request_id, None)
        if state is not None and state.slot is not None:
            self._counts.free(state.slot)

    def leaves(self, sequence: Sequence) -> bool:
        """Whether the sequence's logits stay as they are."""
        return sequence.id not in self._states

    def stop_thinking(self, sequence: Sequence) -> None:
        """Close the request's reasoning at its next token, or as soon as it opens."""
        if self.thinking is None:
            return
        state = self._states.get(sequence.id)
        if state is None:
            state = self._states[sequence.id] = _State(sequence.params, (), self.thinking, self._device)
        if state.budget is None:
            state.budget = ThinkingBudget(self.thinking, None)
        state.budget.stop_now()

    def adjust(self, logits: Tensor, sequences: Seq[Sequence]) -> Tensor | None:
        """logits [N, >= V]: for each sequence the row after its last token and one after each draft. A new tensor [N, V], or None
        when no row changes."""
        if not self._states:
            return None
        groups: list[_Rows] = []
        first = 0
        for sequence in sequences:
            state = self._states.get(sequence.id)
            if state is not None:
                groups.append(_Rows(first, sequence, state))
            first += 1 + len(sequence.drafts)
        if not groups:
            return None
        adjusted = logits[:, : self._num_tokens].clone()
        _add_biases(adjusted, groups)
        _ban(adjusted, groups)
        self._penalise(adjusted, [group for group in groups if group.state.penalises])
        _force(adjusted, groups)
        return adjusted

    def _penalise(self, adjusted: Tensor, groups: Seq[_Rows]) -> None:
        if not groups:
            return
        self._count_new_tokens(groups)
        rows: list[int] = []
        slots: list[int] = []
        penalties: list[tuple[float, float, float]] = []
        drafts: list[tuple[int, int]] = []
        for first, sequence, state in groups:
            assert state.slot is not None
            for i in range(1 + len(sequence.drafts)):
                drafts += [(len(rows), draft) for draft in sequence.drafts[:i]]
                rows.append(first + i)
                slots.append(state.slot)
                penalties.append((state.params.repetition_penalty, state.params.frequency_penalty, state.params.presence_penalty))
        index = torch.tensor([rows, slots], device=self._device)
        repetition, frequency, presence = torch.tensor(penalties, device=self._device).unsqueeze(2).unbind(1)  # each [A, 1]
        counts = self._counts.generated[index[1]]  # [A, V]
        if drafts:
            _count(counts, drafts)
        seen = counts > 0
        factor = torch.where(seen | self._counts.in_prompt[index[1]], repetition, 1.0)
        own = adjusted[index[0]]
        own = torch.where(own > 0, own / factor, own * factor)
        adjusted[index[0]] = own - frequency * counts - presence * seen

    def _count_new_tokens(self, groups: Seq[_Rows]) -> None:
        new: list[tuple[int, int]] = []
        for _, sequence, state in groups:
            if state.slot is None:
                state.slot = self._counts.take(sequence.tokens[: sequence.num_prompt])
                state.num_counted = sequence.num_prompt
            new += [(state.slot, token) for token in sequence.tokens[state.num_counted :]]
            state.num_counted = len(sequence.tokens)
        if new:
            _count(self._counts.generated, new)


class _State:
    """One request's adjustments, in the form in which they are applied."""

    def __init__(self, params: SamplingParams, stop_ids: tuple[int, ...], thinking: ThinkingTokens | None, device: torch.device) -> None:
        self.params = params
        self.stop_ids = stop_ids
        self.penalises = params.repetition_penalty != 1.0 or params.frequency_penalty != 0.0 or params.presence_penalty != 0.0
        self.slot: int | None = None
        self.num_counted = 0
        self.budget = ThinkingBudget(thinking, params.thinking_budget) if thinking and params.thinking_budget is not None else None
        # A token that is always banned is a bias like any other, only larger.
        biases = {**params.logit_bias, **{sequence[0]: _BANNED for sequence in params.bad_words if len(sequence) == 1}}
        self.bias_ids = torch.tensor(list(biases), dtype=torch.int64, device=device)
        self.bias_values = torch.tensor(list(biases.values()), dtype=torch.float32, device=device)
        self.phrases: dict[int, list[tuple[int, ...]]] = {}  # by the last token of what must come before the banned one
        for sequence in params.bad_words:
            if len(sequence) > 1:
                self.phrases.setdefault(sequence[-2], []).append(sequence)

    def banned(self, generated: Seq[int], num_generated: int) -> list[int]:
        """Ids banned after `num_generated` tokens, the last of which are `generated`."""
        ids = list(self.stop_ids) if num_generated < self.params.min_tokens else []
        if generated and self.phrases:
            for phrase in self.phrases.get(generated[-1], ()):
                if tuple(generated[-(len(phrase) - 1) :]) == phrase[:-1]:
                    ids.append(phrase[-1])
        return ids

    @property
    def longest_phrase(self) -> int:
        """Tokens that must be known to check every phrase."""
        return max((len(phrase) for phrases in self.phrases.values() for phrase in phrases), default=0)


class _TokenCounts:
    """For each request with penalties: how often each token was generated, and whether the prompt has it."""

    def __init__(self, num_tokens: int, device: torch.device) -> None:
        self.generated = torch.zeros(0, num_tokens, device=device)  # [S, V] fp32: exact up to 2^24, and needs no conversion
        self.in_prompt = torch.zeros(0, num_tokens, dtype=torch.bool, device=device)  # [S, V]
        self._free: list[int] = []

    def take(self, prompt: Seq[int]) -> int:
        """A slot for a request that has generated nothing yet."""
        if not self._free:
            size = self.generated.shape[0]
            grown = max(4, size)
            self.generated = torch.cat((self.generated, self.generated.new_zeros(grown, self.generated.shape[1])))
            self.in_prompt = torch.cat((self.in_prompt, self.in_prompt.new_zeros(grown, self.in_prompt.shape[1])))
            self._free = list(range(size + grown - 1, size - 1, -1))
        slot = self._free.pop()
        self.generated[slot] = 0
        self.in_prompt[slot] = False
        self.in_prompt[slot, torch.tensor(list(set(prompt)), device=self.in_prompt.device)] = True
        return slot

    def free(self, slot: int) -> None:
        """Give a slot back."""
        self._free.append(slot)


def _add_biases(adjusted: Tensor, groups: Seq[_Rows]) -> None:
    biased = [group for group in groups if len(group.state.bias_ids)]
    if not biased:
        return
    rows = torch.tensor([g.first + i for g in biased for i in range(g.num_rows)], device=adjusted.device)
    sizes = torch.tensor([len(g.state.bias_ids) for g in biased for _ in range(g.num_rows)], device=adjusted.device)
    ids = torch.cat([g.state.bias_ids for g in biased for _ in range(g.num_rows)])
    values = torch.cat([g.state.bias_values for g in biased for _ in range(g.num_rows)])
    adjusted.index_put_((rows.repeat_interleave(sizes), ids), values, accumulate=True)


def _ban(adjusted: Tensor, groups: Seq[_Rows]) -> None:
    banned: list[tuple[int, int]] = []
    for group in groups:
        first, sequence, state = group
        if not state.phrases and sequence.num_output >= state.params.min_tokens:
            continue
        behind = max(sequence.num_prompt, len(sequence.tokens) - state.longest_phrase)
        generated = [*sequence.tokens[behind:], *sequence.drafts]
        known = len(sequence.tokens) - behind
        for i in range(group.num_rows):
            banned += [(first + i, token) for token in state.banned(generated[: known + i], sequence.num_output + i)]
    if banned:
        rows, ids = torch.tensor(banned, device=adjusted.device).unbind(1)
        adjusted[rows, ids] = _BANNED


def _force(adjusted: Tensor, groups: Seq[_Rows]) -> None:
    forced: list[tuple[int, int]] = []
    for first, sequence, state in groups:
        if state.budget is not None:
            decided = state.budget.forced(sequence.tokens, sequence.drafts)
            forced += [(first + i, token) for i, token in enumerate(decided) if token is not None]
    if forced:
        rows, ids = torch.tensor(forced, device=adjusted.device).unbind(1)
        adjusted[rows] = _BANNED
        adjusted[rows, ids] = 0.0


def _count(counts: Tensor, entries: Seq[tuple[int, int]]) -> None:
    """Add one for every (row, token)."""
    index = torch.tensor(entries, device=counts.device)
    counts.index_put_((index[:, 0], index[:, 1]), counts.new_ones(()), accumulate=True)
