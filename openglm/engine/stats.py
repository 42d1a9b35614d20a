"""What the engine counts: cheap enough to stay on, sent to whoever asks as one struct. No tensors."""

from __future__ import annotations

from typing import Final

import msgspec


class StepTimes(msgspec.Struct):
    """Seconds spent in each part of the steps so far. `forward` includes the head, `draft` the whole MTP work.

    On a device, `forward` is only the time to launch the step, and `sample` and `draft` are mostly waiting for it. A step that is launched
    ahead is prepared in `prepare`.
    """

    schedule: float = 0.0
    prepare: float = 0.0
    forward: float = 0.0
    sample: float = 0.0
    draft: float = 0.0
    output: float = 0.0


STEP_TOKEN_EDGES: Final = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
"""Upper edges of `EngineStats.steps_by_tokens`, those of vLLM's `iteration_tokens_total`."""


class EngineStats(msgspec.Struct):
    """Totals since the engine started, and the present state of queue and pages."""

    num_steps: int = 0
    num_scheduled_sequences: int = 0
    """Sequences over all steps, and their tokens (prompt chunks, decode tokens and drafts): divided by the steps, the mean batch."""
    num_scheduled_tokens: int = 0
    steps_by_tokens: list[int] = msgspec.field(default_factory=lambda: [0] * (len(STEP_TOKEN_EDGES) + 1))
    """Steps by their number of tokens; the last entry is those beyond every edge."""
    num_prefill_tokens: int = 0
    """Prompt tokens processed (cached ones are not)."""
    num_generated_tokens: int = 0
    num_running: int = 0
    num_waiting: int = 0
    max_waiting: int = 0
    """The most that ever waited."""
    num_finished: dict[str, int] = msgspec.field(default_factory=dict)
    """Ended requests by finish reason."""
    num_preemptions: int = 0
    pages_total: int = 0
    pages_free: int = 0
    pages_cached: int = 0
    pages_held: int = 0
    num_evicted_pages: int = 0
    host_pages_total: int = 0
    host_pages_used: int = 0
    num_host_pages_stored: int = 0
    """Evicted pages that were copied to host memory, and pages that were copied back for a hit."""
    num_host_pages_loaded: int = 0
    kv_accounting_errors: int = 0
    prompt_tokens_looked_up: int = 0
    prompt_tokens_cached: int = 0
    cache_outcomes: dict[str, int] = msgspec.field(default_factory=dict)
    """Admitted requests by why their cached prefix ended where it did (`openglm.engine.cache_history`)."""
    drafted_by_position: list[int] = msgspec.field(default_factory=list)
    """How often a draft at depth 1, 2, ... was verified, and how often it was right."""
    accepted_by_position: list[int] = msgspec.field(default_factory=list)
    drafts_by_depth: list[int] = msgspec.field(default_factory=list)
    """How often a sequence was to draft 0, 1, ... tokens."""
    num_constrained_tokens: int = 0
    """Tokens checked against a grammar, and those chosen again because it forbade the first choice."""
    num_redrawn_tokens: int = 0
    constrain_s: float = 0.0
    """Seconds of the steps below spent on grammars."""
    times: StepTimes = msgspec.field(default_factory=StepTimes)
    num_steps_ahead: int = 0
    """Steps that a device began before the host had read the one before."""
