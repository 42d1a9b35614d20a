"""`LLM`: many prompts in, many answers out, in this process. What evaluation, benchmarks and notebooks use.

    llm = LLM()                                   # the embedded glm-nano
    results = llm.generate([[5, 6, 7]], SamplingParams(max_tokens=32, temperature=0))

Token ids on both sides. It drives the same `EngineCore` as the server, so all prompts of a call are batched, drafted for
and cached in the same way.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Literal

from openglm.config.engine import DType, EngineConfig, LoadFormat, ResolvedEngineConfig, SpeculativeMethod
from openglm.engine.core import EngineCore
from openglm.engine.loading import core_of, load_engine
from openglm.engine.request import (
    EngineOutput,
    FinishReason,
    GenerationRequest,
    RequestFailure,
    SamplingParams,
    TokenLogprobs,
    siblings,
    validate_request,
)
from openglm.engine.stats import EngineStats
from openglm.model import GlmModel
from openglm.text.tokenizer import Tokenizer

_UNBOUNDED_QUEUE = 1 << 31  # offline callers hand over all their prompts at once


@dataclass
class GenerationResult:
    """The answer to one prompt."""

    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    logprobs: list[TokenLogprobs] | None = None
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_drafted: int = 0
    num_accepted: int = 0
    error: RequestFailure | None = None


class LLM:
    """One model, used synchronously. Not for use from several threads."""

    def __init__(
        self,
        model: str | None = None,
        *,
        load_format: LoadFormat = "auto",
        device: str = "auto",
        dtype: Literal["auto"] | DType = "auto",
        num_speculative_tokens: int | None = None,
        speculative_method: SpeculativeMethod = "mtp",
        prompt_lookup_max: int | None = None,
        prompt_lookup_min: int | None = None,
        max_model_len: int | None = None,
        max_num_seqs: int | None = None,
        max_num_batched_tokens: int | None = None,
        kv_cache_tokens: int | None = None,
        enable_prefix_caching: bool = True,
        deterministic: bool | None = None,
        threads: int | None = None,
        seed: int | None = None,
    ) -> None:
        """Load `model` (a directory; None is the embedded glm-nano). None means automatic; see `EngineConfig`."""
        config = EngineConfig(
            model=model,
            load_format=load_format,
            device=device,
            dtype=dtype,
            num_speculative_tokens=num_speculative_tokens,
            speculative_method=speculative_method,
            prompt_lookup_max=prompt_lookup_max,
            prompt_lookup_min=prompt_lookup_min,
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            kv_cache_tokens=kv_cache_tokens,
            enable_prefix_caching=enable_prefix_caching,
            deterministic=deterministic,
            threads=threads,
            seed=seed,
            max_queued_requests=_UNBOUNDED_QUEUE,
        )
        loaded = load_engine(config)
        self._use(loaded.core, loaded.tokenizer, loaded.reasons)

    @classmethod
    def from_core(cls, core: EngineCore, tokenizer: Tokenizer | None = None) -> LLM:
        """Over an engine that exists already."""
        llm = cls.__new__(cls)
        llm._use(core, tokenizer, ())
        return llm

    @classmethod
    def from_model(cls, model: GlmModel, tokenizer: Tokenizer, config: ResolvedEngineConfig) -> LLM:
        """Over a model in memory, such as the one being trained; its weights are shared, not copied.

        After the weights have changed, call `reset_prefix_cache`.
        """
        return cls.from_core(core_of(model, config, tokenizer), tokenizer)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        n: int = 1,
        use_tqdm: bool = False,
    ) -> list[GenerationResult]:
        """Continue every prompt `n` times; results come in the order of the prompts, those of one prompt side by side.

        `params` is one for all or one per prompt. A wrong prompt raises `RequestError` before anything runs; a request that fails
        while it runs has finish reason "error" and leaves the others alone. `use_tqdm` shows a progress bar.
        """
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        requests = [sibling for request in self._requests(prompts, params) for sibling in siblings(request, n)]
        results = {request.id: GenerationResult() for request in requests}
        with _progress(len(requests)) if use_tqdm else nullcontext() as advance:
            try:
                for request in requests:
                    self.core.add(request)
                while self.core.has_work:
                    for output in self.core.step():
                        _append(results[output.request_id], output)
                        if output.finish_reason is not None and advance is not None:
                            advance()
            finally:  # an interrupt leaves no request behind
                for request in requests:
                    self.core.abort(request.id)
        return list(results.values())

    def stats(self) -> EngineStats:
        """Counters since the model was loaded."""
        return self.core.stats()

    def reset_prefix_cache(self) -> None:
        """Forget all cached prefixes."""
        self.core.reset_prefix_cache()

    def _use(self, core: EngineCore, tokenizer: Tokenizer | None, reasons: tuple[str, ...]) -> None:
        self.core = core
        self.tokenizer = tokenizer
        self.reasons = reasons
        self._ids = itertools.count()

    def _requests(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams | Sequence[SamplingParams] | None
    ) -> list[GenerationRequest]:
        params = SamplingParams() if params is None else params
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
        if len(each) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts but {len(each)} sampling params; give one for all or one each")
        requests = [GenerationRequest(f"offline-{next(self._ids)}", list(p), own) for p, own in zip(prompts, each, strict=True)]
        for request in requests:
            validate_request(request, num_tokens=self.core.num_tokens, max_model_len=self.core.config.max_model_len)
        return requests


def _append(result: GenerationResult, output: EngineOutput) -> None:
    result.token_ids += output.token_ids
    if output.logprobs is not None:
        result.logprobs = (result.logprobs or []) + output.logprobs
    result.finish_reason, result.stop_reason, result.error = output.finish_reason, output.stop_reason, output.error
    result.num_prompt_tokens, result.num_cached_tokens = output.num_prompt_tokens, output.num_cached_tokens
    result.num_drafted, result.num_accepted = output.num_drafted, output.num_accepted


@contextmanager
def _progress(total: int) -> Iterator[Callable[[], None]]:
    """A bar that advances by one finished prompt per call."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(TextColumn("generating"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()) as bar:
        task = bar.add_task("generating", total=total)
        yield lambda: bar.advance(task)
