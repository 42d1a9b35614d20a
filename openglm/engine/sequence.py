"""`Sequence`: one request while the engine works on it - its tokens, its pages, and how far it got. No tensors.

Positions are counted from the prompt's first token. `tokens` holds the prompt and everything accepted so far; the last token has
been chosen but not yet processed, so a sequence that decodes has `computed == len(tokens) - 1`. Drafts are guesses for
what follows `tokens`; they are processed with it and kept only as far as they turn out right.
"""

from __future__ import annotations

import math

from openglm.engine.cache_history import CacheOutcome
from openglm.engine.page_key import PageKey, page_key
from openglm.engine.request import GenerationRequest


class Sequence:
    """Mutable state of one request; the scheduler and the engine core are its only writers."""

    __slots__ = (
        "adapter", "admission", "arrival", "arrived_at", "awaits_grammar", "cache_outcome", "computed", "deadline", "drafts", "ended",
        "epoch", "healthy", "id", "keys", "leader", "max_total", "num_accepted", "num_cached", "num_drafted", "num_preempted", "num_prompt",
        "num_published", "pages", "params", "rank", "row", "scheduling", "scores_prompt", "seed", "started_at", "tokens",
    )  # fmt: skip

    def __init__(
        self, request: GenerationRequest, *, arrival: int, max_model_len: int, seed: int, deadline: float = math.inf, adapter: str = ""
    ) -> None:
        """`deadline` is an instant of the clock whose readings the scheduler is given."""
        self.id = request.id
        self.params = request.params
        self.scheduling = request.scheduling
        self.tokens = list(request.prompt_ids)
        self.num_prompt = len(self.tokens)
        room = max_model_len - self.num_prompt
        self.max_total = self.num_prompt + (room if self.params.max_tokens is None else min(self.params.max_tokens, room))
        self.arrival = arrival
        self.rank = (self.scheduling.priority, arrival)  # who goes first; the later one gives way
        self.deadline = deadline
        self.arrived_at = self.started_at = 0.0  # by the engine's clock; it starts with its first step
        self.adapter = adapter  # whose weights compute its KV; "" is the model's own
        self.leader: Sequence | None = None  # the sequence whose prompt's pages this one waits for
        self.awaits_grammar = False  # its constraint is being compiled
        self.ended = False
        self.seed = seed
        self.scores_prompt = self.params.prompt_logprobs is not None and self.num_prompt > 1  # until every prompt token is scored
        self.row = -1  # place in the runner's page table while running
        self.admission = 0  # differs every time the sequence (re)starts with other pages
        self.epoch = 0  # the scheduler's count of changed weights when it (re)started
        self.healthy = True  # False once anything not finite was seen: its pages are then never published
        self.computed = 0  # positions whose KV is in the pages
        self.drafts: list[int] = []
        self.pages: list[int] = []
        self.keys: list[PageKey] = []  # of the complete pages so far, computed once
        self.num_published = 0  # leading pages that are shared or have been offered
        self.num_cached = 0
        self.cache_outcome: CacheOutcome | None = None  # why no more than `num_cached` came from the cache; None before admission
        self.num_preempted = 0
        self.num_drafted = 0
        self.num_accepted = 0

    @property
    def pending(self) -> int:
        """Tokens (drafts included) that still have to be processed."""
        return len(self.tokens) + len(self.drafts) - self.computed

    @property
    def decoding(self) -> bool:
        """Whether only the newest token (and drafts) is left to process."""
        return self.computed == len(self.tokens) - 1

    @property
    def held(self) -> bool:
        """Whether it must wait: for its grammar, or because another sequence still computes pages that both need."""
        return self.awaits_grammar or (self.leader is not None and not self.leader.ended and not self.leader.num_output)

    @property
    def num_output(self) -> int:
        """Tokens generated so far."""
        return len(self.tokens) - self.num_prompt

    def window(self, num_tokens: int) -> list[int]:
        """The next `num_tokens` tokens to process, drafts included."""
        end = self.computed + num_tokens
        known = self.tokens[self.computed : end]
        return known + self.drafts[: num_tokens - len(known)] if len(known) < num_tokens else known

    def page_keys(self, count: int, *, page_size: int, lookahead: int, root: PageKey) -> list[PageKey]:
        """Keys of the first `count` pages; their tokens, and the `lookahead` behind them, must be known."""
        keys = self.keys
        while len(keys) < count:
            start = len(keys) * page_size
            keys.append(page_key(keys[-1] if keys else root, self.tokens[start : start + page_size + lookahead]))
        return keys[:count]
