"""`EngineCore`: the loop body of the engine. One call of `step` takes every running request one step further.

    schedule -> prepare -> forward -> sample and accept -> settle -> draft -> output

Single-threaded; who calls it (an offline loop, the engine process) decides about waiting and transport. On a CPU a call does all of that
and returns. Where a device computes, two of the waits for it are put off:

- While requests do nothing but decode freely, `pipeline` launches the next step before the tokens of this one are read. A call still
  returns what one step gave. When anything else is to be done, the step in flight is read first, and the next call takes the order above.
- Drafts are launched at the end of a call and read at the beginning of the next one, before anything is scheduled, so they are computed
  during the output. Pages published in between may turn out to be damaged: they are withdrawn before anyone could have looked for them.

A request that fails - logits that are not finite, an error in its own sampling or stop check - ends alone: its pages are wiped and never
published, and the rest of the batch goes on. Only an exception of the batch as a whole leaves `step`.
"""

from __future__ import annotations

import bisect
import hashlib
import importlib.util
import logging
import math
import secrets
import struct
import time
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq
from typing import NamedTuple

import msgspec
import torch
from torch import Tensor

from openglm.config.engine import PAGE_SIZE, ResolvedEngineConfig
from openglm.engine.adjust import LogitAdjuster
from openglm.engine.constrainer import Constrainer
from openglm.engine.device_sampler import DeviceSampler, SampleKernel
from openglm.engine.draft_depth import AdaptiveDepth, Candidate, DepthPolicy, FixedDepth
from openglm.engine.grammar import Vocabulary
from openglm.engine.graphs import GraphDevice
from openglm.engine.mtp import MTPProposer
from openglm.engine.ngram import NgramProposer
from openglm.engine.pipeline import Launched, Pipeline
from openglm.engine.prompt_logprobs import PromptScorer
from openglm.engine.request import EngineOutput, FinishReason, GenerationRequest, RequestFailure, validate_request
from openglm.engine.runner import Batch, Runner, Span
from openglm.engine.sampler import Sampled, Sampler, SamplingRow
from openglm.engine.scheduler import Scheduler, SchedulerLimits
from openglm.engine.sequence import Sequence
from openglm.engine.speculation import Drafts, Proposer, Settled, longest_match
from openglm.engine.stats import STEP_TOKEN_EDGES, EngineStats, StepTimes
from openglm.engine.stop import Detokenizer, StopChecker
from openglm.engine.thinking import ThinkingTokens
from openglm.errors import RequestError
from openglm.model import GlmModel

logger = logging.getLogger(__name__)

CHECK_EVERY_STEPS = 256
COMPILE_WAIT_S = 0.005  # how long a step waits for a grammar when there is nothing else to do; messages are read in between


class Verdict(NamedTuple):
    """What one sequence gets out of a step: its new tokens, and whether and why it ends."""

    span: Span
    kept: tuple[Sampled, ...] = ()
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    hide_last: bool = False  # the last token is a stop id, which is no part of the output
    failure: RequestFailure | None = None


class EngineCore:
    """Requests in (`add`, `abort`), outputs out (`step`)."""

    def __init__(
        self,
        model: GlmModel,
        config: ResolvedEngineConfig,
        *,
        num_tokens: int | None = None,
        stop_ids: Seq[int] = (),
        detokenizer: Callable[[], Detokenizer] | None = None,
        thinking: ThinkingTokens | None = None,
        vocabulary: Vocabulary | None = None,
        clock: Callable[[], float] = time.monotonic,
        graph_device: GraphDevice | None = None,
        sample_kernel: SampleKernel | None = None,
    ) -> None:
        """`num_tokens` is the tokenizer's size (ids behind it are padding); `detokenizer` makes one per request with stop strings;
        `thinking` are the ids that thinking budgets need, `vocabulary` is what constraints need; `clock` tells the seconds against
        which deadlines are held; `graph_device` takes the place of the GPU's own graphs and
        `sample_kernel` that of its own sampling."""
        self.config = config
        self.num_tokens = min(num_tokens or model.config.vocab_size, model.config.vocab_size)
        self.stop_ids = frozenset(stop_ids)
        self.scheduler = Scheduler(
            SchedulerLimits(
                num_pages=config.num_pages,
                page_size=PAGE_SIZE,
                max_model_len=config.max_model_len,
                max_num_seqs=config.max_num_seqs,
                max_num_batched_tokens=config.max_num_batched_tokens,
                max_queued_requests=config.max_queued_requests,
                num_speculative_tokens=config.num_speculative_tokens,
                num_host_pages=config.num_host_pages,
                prefix_caching=config.enable_prefix_caching,
                max_preemptions=config.max_preemptions,
            )
        )
        self.runner = Runner(model, config, graph_device=graph_device)
        self.adjuster = LogitAdjuster(self.num_tokens, thinking, self.runner.device)
        kernel = sample_kernel or _sample_kernel(self.runner.device)
        self.sampler = Sampler(self.num_tokens) if kernel is None else DeviceSampler(self.num_tokens, kernel, self.runner.read_back)
        self.constrainer = Constrainer(vocabulary, self.sampler)
        self.prompt_scorer = PromptScorer(self.runner, self.num_tokens)
        self.depth_policy: DepthPolicy = FixedDepth(config.num_speculative_tokens)
        if config.adaptive_drafts and config.num_speculative_tokens:
            self.depth_policy = AdaptiveDepth(config.num_speculative_tokens)
        self.proposer = self._make_proposer()
        self._unread_drafts: tuple[Seq[Settled], Callable[[], Drafts]] | None = None
        self._pipeline: Pipeline | None = None
        if config.overlap_scheduling and self.runner.graphs is not None and isinstance(self.sampler, DeviceSampler):
            self._pipeline = Pipeline(self.scheduler, self.runner, self.sampler, self._is_free)
        self._detokenizer = detokenizer
        self._clock = clock
        self._live: dict[str, tuple[Sequence, StopChecker]] = {}
        self._seed = secrets.randbits(63) if config.seed is None else config.seed
        self._num_arrivals = 0
        self.reset_stats()

    def _make_proposer(self) -> Proposer | None:
        config = self.config
        if not config.num_speculative_tokens:
            return None
        if config.speculative_method == "ngram":
            return NgramProposer(config.max_num_seqs, longest=config.prompt_lookup_max, shortest=config.prompt_lookup_min)
        return MTPProposer(self.runner, config, num_tokens=self.num_tokens)

    @property
    def has_work(self) -> bool:
        """Whether a call of `step` would do anything."""
        return self.scheduler.has_work

    @property
    def num_steps(self) -> int:
        """Steps since the counters were reset: moves as long as the engine makes progress."""
        return self._stats.num_steps

    def add(self, request: GenerationRequest) -> None:
        """Take a request in; raises `RequestError` or `QueueFullError`, after which the engine knows nothing of it."""
        validate_request(request, num_tokens=self.num_tokens, max_model_len=self.config.max_model_len)
        params = request.params
        if request.id in self._live:
            raise RequestError(f"a request with id {request.id!r} is running already", param="id")
        if params.stop and self._detokenizer is None:
            raise RequestError("stop strings need a tokenizer, and this engine has none; use stop_token_ids", param="stop")
        if params.thinking_budget is not None and self.adjuster.thinking is None:
            raise RequestError("a thinking budget needs the ids of the reasoning tags, and this engine has none", param="thinking_budget")
        self._num_arrivals += 1
        seed = _derived_seed(self._seed, self._num_arrivals) if params.seed is None else params.seed
        timeout_s = self._timeout_s(request)
        sequence = Sequence(
            request,
            arrival=self._num_arrivals,
            max_model_len=self.config.max_model_len,
            seed=seed,
            deadline=math.inf if timeout_s is None else self._clock() + timeout_s,
        )
        sequence.arrived_at = self._clock()
        self.constrainer.check(sequence)
        leader = self._live.get(request.follows) if request.follows is not None else None
        sequence.leader = leader[0] if leader is not None and self.config.enable_prefix_caching else None
        self.scheduler.add(sequence)
        self._stats.max_waiting = max(self._stats.max_waiting, len(self.scheduler.waiting))
        detokenizer = self._detokenizer() if params.stop and self._detokenizer is not None else None
        stop_checker = StopChecker(params, self.stop_ids, detokenizer)
        self._live[request.id] = (sequence, stop_checker)
        self.adjuster.add(sequence, stop_checker.stop_ids)
        self.prompt_scorer.add(sequence)
        self.constrainer.add(sequence, stop_checker.stop_ids)

    def abort(self, request_id: str) -> EngineOutput | None:
        """End a request now and free its pages; None when it is not (or no longer) known."""
        entry = self._live.get(request_id)
        if entry is None:
            return None
        self._read_drafts()  # they may tell that its pages are damaged
        self._remove(entry[0], "abort")
        return EngineOutput(request_id, [], finish_reason="abort", num_prompt_tokens=entry[0].num_prompt)

    def stop_thinking(self, request_id: str) -> bool:
        """Close a request's reasoning at its next token (as soon as it opens, if it has not); False when the request is not known."""
        entry = self._live.get(request_id)
        if entry is None:
            return False
        self._drop_ahead()
        self.adjuster.stop_thinking(entry[0])
        return True

    @torch.inference_mode()
    def step(self) -> list[EngineOutput]:
        """One step for every request that fits; returns what is new for whom."""
        clock = _Clock(self._stats.times)
        if self._unread_drafts is not None:
            self._read_drafts()
            clock.lap("draft")
        ended = [self._expire(sequence) for sequence in self.scheduler.expired(self._clock())]
        ended += [self._refuse(*item) for item in self.constrainer.settle()]
        step = self._take_ahead() or self._launch(clock)
        if step is None:
            if self.constrainer.is_compiling:
                self.constrainer.wait(COMPILE_WAIT_S)
            return ended
        rests = self.depth_policy.rests()
        if rests and self._pipeline is not None:
            self._pipeline.launch_behind(step)
            clock.lap("prepare")
        batch = step.batch
        verdicts = self._choose(step)
        clock.lap("sample")
        num_drafts = sum(len(span.sequence.drafts) for span in batch.spans)
        settled = self._settle(batch, verdicts, most_drafts=0 if rests else self.config.num_speculative_tokens)
        clock.lap("output")
        self._draft(settled, step.hidden)
        clock.lap("draft")
        outputs = ended + [self._conclude(verdict) for verdict in verdicts]
        self._measure(batch, num_drafts, clock.seconds)
        self._stats.num_steps += 1
        self._stats.num_scheduled_sequences += len(batch.spans)
        num_tokens = sum(span.num_rows for span in batch.spans)
        self._stats.num_scheduled_tokens += num_tokens
        self._stats.steps_by_tokens[bisect.bisect_left(STEP_TOKEN_EDGES, num_tokens)] += 1
        if not self.scheduler.pool.balanced or self._stats.num_steps % CHECK_EVERY_STEPS == 0 or not self.has_work:
            self.check_pages()
        clock.lap("output")
        return outputs

    def stats(self) -> EngineStats:
        """A snapshot of all counters."""
        scheduler, pool = self.scheduler, self.scheduler.pool
        return msgspec.structs.replace(
            self._stats,
            num_running=len(scheduler.running),
            num_waiting=len(scheduler.waiting),
            num_finished=dict(self._stats.num_finished),
            num_preemptions=scheduler.num_preemptions,
            pages_total=pool.num_pages,
            pages_free=pool.num_free,
            pages_cached=pool.num_cached,
            pages_held=pool.num_held,
            num_evicted_pages=pool.num_evicted,
            host_pages_total=pool.host.num_slots,
            host_pages_used=pool.host.num_used,
            num_host_pages_stored=pool.num_stored,
            num_host_pages_loaded=pool.num_loaded,
            prompt_tokens_looked_up=scheduler.num_prompt_tokens_looked_up,
            prompt_tokens_cached=scheduler.num_prompt_tokens_cached,
            cache_outcomes={str(outcome): count for outcome, count in scheduler.cache_outcomes.items()},
            drafted_by_position=list(self._stats.drafted_by_position),
            accepted_by_position=list(self._stats.accepted_by_position),
            drafts_by_depth=list(self._stats.drafts_by_depth),
            steps_by_tokens=list(self._stats.steps_by_tokens),
            num_constrained_tokens=self.constrainer.num_checked,
            num_redrawn_tokens=self.constrainer.num_redrawn,
            constrain_s=self.constrainer.seconds,
            times=msgspec.structs.replace(self._stats.times),
        )

    def reset_stats(self) -> None:
        """Start counting anew."""
        depth = self.config.num_speculative_tokens
        self._stats = EngineStats(drafted_by_position=[0] * depth, accepted_by_position=[0] * depth, drafts_by_depth=[0] * (depth + 1))
        self.scheduler.reset_counters()
        self.constrainer.reset_counts()

    def start_over(self) -> None:
        """Make an idle engine as it was before its first request: no cached prefix, no counts, the same seeds for requests without."""
        self.reset_prefix_cache()
        self.reset_stats()
        self._num_arrivals = 0

    def reset_prefix_cache(self) -> None:
        """Forget every cached prefix, because the weights changed or someone asked; running requests keep their pages."""
        self._drop_ahead()
        self.scheduler.forget()

    def set_weight_version(self, version: int) -> None:
        """Say that the model's weights are now those called `version`. Prefixes computed with others are not used until they return.

        Running requests go on with the KV they have, and offer none of it to others any more.
        """
        self._drop_ahead()
        self.scheduler.set_weight_version(version)

    def check_pages(self) -> None:
        """Verify the page accounting; a mismatch is logged and counted, and the pool is built anew - never a crash."""
        problem = self.scheduler.check()
        if problem is not None:
            self._read_drafts()  # while the pages are still those that they are about
            self._stats.kv_accounting_errors += 1
            logger.error("KV page accounting is wrong (%s); starting over with an empty pool, running requests are recomputed", problem)
            self.scheduler.rebuild()

    def _note_starts(self, batch: Batch) -> None:
        now = self._clock()
        for span in batch.spans:
            if not span.sequence.started_at:
                span.sequence.started_at = now

    def _take_ahead(self) -> Launched | None:
        """The step that the call before this one launched, if it did and anyone still waits for it."""
        step = None if self._pipeline is None else self._pipeline.take()
        self._stats.num_steps_ahead += step is not None
        return step

    def _drop_ahead(self) -> None:
        if self._pipeline is not None:
            self._pipeline.drop()

    def _launch(self, clock: _Clock) -> Launched | None:
        """Schedule a step and run the model on it; None when there is nothing to do."""
        plan = self.scheduler.schedule()
        clock.lap("schedule")
        self.runner.transfer(self.scheduler.pool.take_transfers())
        if not plan:
            return None
        batch = self.runner.prepare(plan)
        self._note_starts(batch)
        clock.lap("prepare")
        step = Launched(batch, *self.runner.run(batch))
        clock.lap("forward")
        self.prompt_scorer.score(batch, step.hidden)
        return step if self._pipeline is None else self._pipeline.start_drawing(step)

    def _is_free(self, sequence: Sequence) -> bool:
        """Whether no token before it has a say in the sequence's next one, but through the model."""
        return self.adjuster.leaves(sequence) and self.constrainer.leaves(sequence)

    def _choose(self, step: Launched) -> list[Verdict]:
        """Sample every row in one go, then judge each sequence for itself; an error is that of one sequence."""
        if step.logits is None:
            return []
        spans, logits, draw = [span for span in step.batch.spans if span.num_logits], step.logits, step.draw
        together: list[Sampled] | None = None
        if draw is not None:
            draw.wait()
        else:
            try:
                together = self._sample(logits, spans)
            except Exception:
                logger.exception("sampling %d requests together failed; sampling each alone", len(spans))
        verdicts = []
        end = 0
        for index, span in enumerate(spans):
            start, end = end, end + span.num_logits
            try:
                if draw is not None:
                    chosen = [draw.sampled(step.draw_rows[index])]
                else:
                    chosen = self._sample(logits[start:end], [span]) if together is None else together[start:end]
                verdicts.append(self._accept(span, chosen))
            except Exception as error:
                logger.exception("choosing the next token of request %s failed", span.sequence.id)
                failure = RequestFailure("internal", f"the next token could not be chosen ({type(error).__name__})")
                verdicts.append(Verdict(span, finish_reason="error", failure=failure))
        return verdicts

    def _sample(self, logits: Tensor, spans: Seq[Span]) -> list[Sampled]:
        """One token for every row of these spans."""
        adjusted = self._adjust(logits, spans)
        rows = [row for span in spans for row in _sampling_rows(span)]
        sampled = self.sampler.sample(logits, rows, adjusted)
        return self.constrainer.correct(logits, adjusted, [span.sequence for span in spans], rows, sampled)

    def _adjust(self, logits: Tensor, spans: Seq[Span]) -> Tensor | None:
        """The one place where logits are changed before sampling; None when they stay as they are."""
        return self.adjuster.adjust(logits, [span.sequence for span in spans])

    def _accept(self, span: Span, chosen: list[Sampled]) -> Verdict:
        """Keep the tokens up to and including the first that differs from its draft, or that ends the request."""
        sequence, stop_checker = self._live[span.sequence.id]
        unscored = self.prompt_scorer.failure(sequence)
        if unscored is not None:
            return Verdict(span, finish_reason="error", failure=unscored)
        num_right = longest_match(sequence.drafts, [row.token for row in chosen])
        kept: list[Sampled] = []
        for row in chosen[: num_right + 1]:
            if not row.finite:
                failure = RequestFailure("not_finite", "the model's output is not finite (NaN or infinity)")
                return Verdict(span, finish_reason="error", failure=failure)
            if len(sequence.tokens) >= sequence.max_total:  # max_tokens 0: the prompt was all that was asked about
                return Verdict(span, finish_reason="length")
            if row.failure is not None:
                return Verdict(span, finish_reason="error", failure=row.failure)
            if not row.allowed:
                failure = RequestFailure("invalid_request", "the request's bans leave no token to choose", "bad_words")
                return Verdict(span, finish_reason="error", failure=failure)
            kept.append(row)
            stop = stop_checker.check(row.token)
            if stop is not None:
                return Verdict(span, tuple(kept), "stop", stop.reason, hide_last=not stop.keep_token)
            if row.completes:
                return Verdict(span, tuple(kept), "stop")
            if len(sequence.tokens) + len(kept) >= sequence.max_total:
                return Verdict(span, tuple(kept), "length")
        return Verdict(span, tuple(kept))

    def _settle(self, batch: Batch, verdicts: Seq[Verdict], *, most_drafts: int) -> list[Settled]:
        """Write what each sequence keeps of the step into it; returns the part that the proposer must process."""
        settled = []
        in_order = iter(verdicts)  # one per span that has logits
        for span in batch.spans:
            sequence = span.sequence
            if not span.num_logits:  # still inside its prompt
                sequence.computed += span.num_rows
                self._stats.num_prefill_tokens += span.num_rows
                settled.append(Settled(sequence, span.first_row, span.num_rows, span.start, depth=0))
                continue
            verdict = next(in_order)
            if verdict.failure is not None:
                sequence.healthy = False
                continue
            self._count(span, len(verdict.kept))
            num_rows = span.num_rows - span.num_logits + len(verdict.kept)
            sequence.computed += num_rows
            sequence.tokens += [row.token for row in verdict.kept]
            sequence.drafts = []
            if not num_rows:
                continue
            room = 0
            if verdict.finish_reason is None:
                room = min(most_drafts, sequence.max_total - len(sequence.tokens) - 1)
                self._stats.drafts_by_depth[0] += most_drafts < self.config.num_speculative_tokens
            elif sequence.computed // PAGE_SIZE <= sequence.num_published:
                continue  # it ends without a new page for the prefix cache: nothing of it will be used again
            settled.append(Settled(sequence, span.first_row, num_rows, span.start, room if sequence.healthy else 0))
        return settled

    def _choose_depths(self, settled: Seq[Settled]) -> list[Settled]:
        """Cut what each sequence has room for to what pays."""
        drafting = [item for item in settled if item.depth]
        if not drafting:
            return list(settled)
        candidates = [Candidate(item.sequence.id, item.depth) for item in drafting]
        depths = self.depth_policy.choose(candidates, _mean_length(item.sequence for item in drafting))
        for depth in depths:
            self._stats.drafts_by_depth[depth] += 1
        chosen = iter(depths)
        return [item._replace(depth=next(chosen)) if item.depth else item for item in settled]

    def _measure(self, batch: Batch, num_drafts: int, seconds: float) -> None:
        """Tell the depth policy what a step cost that did nothing but decode."""
        if self.depth_policy.measures() and all(span.num_rows == span.num_logits for span in batch.spans):
            length = _mean_length(span.sequence for span in batch.spans)
            self.depth_policy.observe_step(len(batch.spans), num_drafts, length, seconds)

    def _draft(self, settled: Seq[Settled], hidden: Tensor) -> None:
        """Bring the proposer up to date with the settled tokens and take its drafts for the next step, unless a device still makes them."""
        if self.proposer is None or not settled:
            return
        settled = self._choose_depths(settled)
        proposed = self.proposer.propose(settled, hidden)
        if callable(proposed):
            self._unread_drafts = settled, proposed
        elif any(item.depth for item in settled):
            self._take_drafts(settled, proposed)

    def _read_drafts(self) -> None:
        """Wait for the drafts that a device makes, if it does."""
        if self._unread_drafts is not None:
            settled, read = self._unread_drafts
            self._unread_drafts = None
            self._take_drafts(settled, read())

    def _take_drafts(self, settled: Seq[Settled], proposed: Drafts) -> None:
        for item, drafts in zip(settled, proposed, strict=True):
            if item.sequence.row < 0:  # it has ended or was preempted since
                continue
            item.sequence.drafts = drafts or []
            self.constrainer.cut_drafts(item.sequence)
            if drafts is None:
                item.sequence.healthy = False
                self._quarantine(item.sequence, only_mtp=True)

    def _conclude(self, verdict: Verdict) -> EngineOutput:
        """Publish what is complete, end what is done, and say what is new."""
        sequence = verdict.span.sequence
        prompt_logprobs = self.prompt_scorer.take(sequence)
        if verdict.failure is None:  # finite logits: every position they attended to is sound
            self.scheduler.publish(sequence, sequence.computed)
        if verdict.finish_reason is not None:
            self._remove(sequence, verdict.finish_reason)
        shown = verdict.kept[:-1] if verdict.hide_last else verdict.kept
        return EngineOutput(
            sequence.id,
            [row.token for row in shown],
            [row.logprobs for row in shown if row.logprobs is not None] if sequence.params.logprobs is not None else None,
            verdict.finish_reason,
            verdict.stop_reason,
            sequence.num_prompt,
            sequence.num_cached,
            sequence.num_drafted,
            sequence.num_accepted,
            verdict.failure,
            prompt_logprobs=prompt_logprobs,
            cache_outcome=sequence.cache_outcome,
            stop_logprobs=verdict.kept[-1].logprobs if verdict.hide_last else None,
            queue_s=None if verdict.finish_reason is None else sequence.started_at - sequence.arrived_at,
        )

    def _timeout_s(self, request: GenerationRequest) -> float | None:
        """The request's own time limit, else the engine's."""
        own = request.scheduling.timeout_s
        return self.config.request_timeout_s if own is None else own

    def _expire(self, sequence: Sequence) -> EngineOutput:
        """End a request whose deadline has come."""
        self._remove(sequence, "error")
        return EngineOutput(
            sequence.id,
            [],
            finish_reason="error",
            num_prompt_tokens=sequence.num_prompt,
            num_cached_tokens=sequence.num_cached,
            num_drafted=sequence.num_drafted,
            num_accepted=sequence.num_accepted,
            error=RequestFailure("deadline_exceeded", "the request was not finished within its time limit"),
            cache_outcome=sequence.cache_outcome,
        )

    def _refuse(self, sequence: Sequence, failure: RequestFailure) -> EngineOutput:
        """End a request whose constraint cannot be had; it has not run."""
        self._remove(sequence, "error")
        return EngineOutput(sequence.id, [], finish_reason="error", num_prompt_tokens=sequence.num_prompt, error=failure)

    def _remove(self, sequence: Sequence, reason: FinishReason) -> None:
        """The one place where a request leaves the engine."""
        if reason == "error" and not sequence.healthy:
            self._quarantine(sequence)
        self.scheduler.finish(sequence)
        self.adjuster.remove(sequence.id)
        self.prompt_scorer.remove(sequence.id)
        self.depth_policy.forget(sequence.id)
        self.constrainer.remove(sequence.id)
        del self._live[sequence.id]
        self._stats.num_finished[reason] = self._stats.num_finished.get(reason, 0) + 1

    def _quarantine(self, sequence: Sequence, *, only_mtp: bool = False) -> None:
        """Take a damaged sequence's pages out of the prefix cache, and wipe those that nobody else uses."""
        pool = self.scheduler.pool
        pool.unpublish(sequence.pages)
        self.runner.zero_pages([page for page in sequence.pages if pool.num_users(page) == 1], only_mtp=only_mtp)

    def _count(self, span: Span, num_kept: int) -> None:
        sequence, stats = span.sequence, self._stats
        num_drafts = len(sequence.drafts)
        num_accepted = max(0, num_kept - 1)
        if num_drafts:
            self.depth_policy.observe_verified(sequence.id, num_accepted, min(num_drafts, num_kept))
        for position in range(num_drafts):
            stats.drafted_by_position[position] += 1
            stats.accepted_by_position[position] += position < num_accepted
        sequence.num_drafted += num_drafts
        sequence.num_accepted += num_accepted
        stats.num_generated_tokens += num_kept
        if span.num_rows > span.num_logits or not sequence.num_output:
            stats.num_prefill_tokens += span.num_rows - num_drafts


class _Clock:
    """Adds the time since the last lap to a field of the step times."""

    def __init__(self, times: StepTimes) -> None:
        self._times = times
        self._start = self._last = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Time since the start."""
        return time.perf_counter() - self._start

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        setattr(self._times, name, getattr(self._times, name) + now - self._last)
        self._last = now


def _sampling_rows(span: Span) -> list[SamplingRow]:
    sequence = span.sequence
    position = len(sequence.tokens)  # of the token that the first row decides
    return [SamplingRow(sequence.params, sequence.seed, position + i) for i in range(span.num_logits)]


def _sample_kernel(device: torch.device) -> SampleKernel | None:
    """The device's own sampling; None where there is none."""
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return None
    from openglm.ops.triton.sampling import sample

    return sample


def _mean_length(sequences: Iterable[Sequence]) -> int:
    lengths = [len(sequence.tokens) for sequence in sequences]
    return sum(lengths) // len(lengths)


def _derived_seed(base: int, arrival: int) -> int:
    """The seed of a request that brought none."""
    digest = hashlib.blake2b(struct.pack("<qq", base, arrival), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
