"""`LLM`: many prompts in, many answers out, in this process. What evaluation, RL, benchmarks and notebooks use.

    llm = LLM()                                            # the embedded glm-nano
    llm.generate([[5, 6, 7]], SamplingParams(max_tokens=32, temperature=0))         # token ids in, token ids (and text) out
    llm.chat([{"role": "user", "content": "What is 2 + 3?"}])[0].message.content    # a conversation in, a parsed message out

It drives the same `EngineCore` as the server, so all prompts of a call are batched, drafted for and cached in the same way.

A text prompt is ordinary text: `<|user|>` in it is eight letters and signs, so text of unknown origin cannot forge a turn. Who
writes prompts with control tokens passes ids, `llm.tokenizer.encode_raw(prompt)`, or uses `chat`, where only the template writes
them.
"""

from __future__ import annotations

import itertools
import logging
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Literal, TypeVar

from openglm.config.engine import (
    DType,
    EngineConfig,
    KVCacheDType,
    LoadFormat,
    Quantization,
    ResolvedEngineConfig,
    SpeculativeMethod,
    model_directory,
)
from openglm.engine.core import EngineCore
from openglm.engine.loading import core_of, load_engine
from openglm.engine.request import GenerationRequest, SamplingParams, siblings, validate_request
from openglm.engine.results import ChatResult, GenerationResult, add_output, assistant_message, visible_text
from openglm.engine.scheduling import SchedulingParams
from openglm.engine.stats import EngineStats
from openglm.errors import ConfigError, RequestError
from openglm.model import GlmModel
from openglm.text.checkpoint_template import BuiltinTemplate, ChatTemplate, load_chat_template
from openglm.text.messages import JSON, Conversation
from openglm.text.openai_messages import conversation_from_openai
from openglm.text.template import TemplateStyle
from openglm.text.tokenizer import Tokenizer

__all__ = ["LLM", "ChatResult", "GenerationResult", "Prompt"]

logger = logging.getLogger(__name__)

Prompt = str | Sequence[int]
"""A text, or token ids."""

_T = TypeVar("_T")
_UNBOUNDED_QUEUE = 1 << 31  # offline callers hand over all their prompts at once


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
        kv_cache_dtype: Literal["auto", "fp8"] | KVCacheDType = "auto",
        kv_offloading_size: float = 0.0,
        gpu_memory_utilization: float | None = None,
        mem_fraction_static: float | None = None,
        cpu_offload_gb: float = 0.0,
        enforce_eager: bool = False,
        overlap_scheduling: bool = True,
        enable_prefix_caching: bool = True,
        deterministic: bool | None = None,
        threads: int | None = None,
        native_kernels: bool | None = None,
        quantization: Quantization | None = None,
        seed: int | None = None,
        chat_template: TemplateStyle | None = None,
    ) -> None:
        """Load `model` (a directory; None is the embedded glm-nano). None means automatic; see `EngineConfig`.

        `chat_template` names a built-in template to use instead of the model's own.
        """
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
            kv_cache_dtype=kv_cache_dtype,
            kv_offloading_size=kv_offloading_size,
            gpu_memory_utilization=gpu_memory_utilization,
            mem_fraction_static=mem_fraction_static,
            cpu_offload_gb=cpu_offload_gb,
            enforce_eager=enforce_eager,
            overlap_scheduling=overlap_scheduling,
            enable_prefix_caching=enable_prefix_caching,
            deterministic=deterministic,
            threads=threads,
            owns_machine=True,
            native_kernels=native_kernels,
            quantization=quantization,
            seed=seed,
            max_queued_requests=_UNBOUNDED_QUEUE,
        )
        loaded = load_engine(config)
        template = None
        if loaded.tokenizer is not None:
            template = load_chat_template(model_directory(model), style=chat_template, added_tokens=loaded.tokenizer.added_tokens)
        self._use(loaded.core, loaded.tokenizer, template, loaded.reasons)

    @classmethod
    def from_core(cls, core: EngineCore, tokenizer: Tokenizer | None = None, template: ChatTemplate | None = None) -> LLM:
        """Over an engine that exists already. Without a `template` conversations are rendered as GLM-4.5 does."""
        llm = cls.__new__(cls)
        llm._use(core, tokenizer, template, ())
        return llm

    @classmethod
    def from_model(
        cls, model: GlmModel, tokenizer: Tokenizer, config: ResolvedEngineConfig, *, template: ChatTemplate | None = None
    ) -> LLM:
        """Over a model in memory, such as the one being trained; its weights are shared, not copied.

        After the weights have changed, call `reset_prefix_cache`.
        """
        return cls.from_core(core_of(model, config, tokenizer), tokenizer, template)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        n: int = 1,
        scheduling: SchedulingParams | Sequence[SchedulingParams] | None = None,
        use_tqdm: bool = False,
    ) -> list[GenerationResult]:
        """Continue every prompt `n` times; results come in the order of the prompts, those of one prompt side by side.

        A prompt is a text or token ids; a single one may stand alone. `params` and `scheduling` (priority, time limit, cache salt) are one
        for all or one per prompt. A wrong prompt raises `RequestError` before anything runs; a request that fails while it runs has
        finish reason "error" and leaves the others alone. `use_tqdm` shows a progress bar.
        """
        requests = self._requests([self._prompt_ids(p, f"prompts[{i}]") for i, p in enumerate(_as_list(prompts))], params, scheduling)
        results = [GenerationResult() for _ in range(len(requests) * _checked_count(n))]
        self._run(requests, results, n, use_tqdm=use_tqdm)
        return results

    def chat(
        self,
        messages: Sequence[dict[str, JSON]] | Sequence[Sequence[dict[str, JSON]]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        scheduling: SchedulingParams | Sequence[SchedulingParams] | None = None,
        tools: Sequence[dict[str, JSON]] | None = None,
        enable_thinking: bool = True,
        clear_thinking: bool = True,
        n: int = 1,
        use_tqdm: bool = False,
    ) -> list[ChatResult]:
        """Answer one conversation or a list of them, each a list of OpenAI chat messages; `tools` are offered in all of them.

        Each answer comes as a parsed `message` (reasoning, content, tool calls) besides tokens, text and log probabilities. Stop strings
        apply to everything that is generated, reasoning included. `clear_thinking=False` keeps the reasoning of earlier turns in the prompt
        where the template can (GLM-4.7). Order, `params`, `scheduling`, `n` and errors are as in `generate`.
        """
        tokenizer = self._need_tokenizer("chat")
        is_list = not messages or (isinstance(messages[0], Sequence) and not isinstance(messages[0], str))
        given = list(messages) if is_list else [messages]
        conversations = []
        for i, one in enumerate(given):
            with _naming(f"conversations[{i}]" if is_list else None):
                conversations.append(_conversation(one, tools, thinking=enable_thinking, keep_thinking=not clear_thinking))
        rendered = [self.template.render(conversation) for conversation in conversations]
        requests = self._requests([tokenizer.encode_segments(prompt.segments) for prompt in rendered], params, scheduling)
        results = [ChatResult() for _ in range(len(requests) * _checked_count(n))]
        self._run(requests, results, n, use_tqdm=use_tqdm)
        for i, result in enumerate(results):
            result.message = assistant_message(result, conversations[i // n], rendered[i // n].start)
        return results

    def stats(self) -> EngineStats:
        """Counters since the model was loaded."""
        return self.core.stats()

    def reset_prefix_cache(self) -> None:
        """Forget all cached prefixes."""
        self.core.reset_prefix_cache()

    def _use(self, core: EngineCore, tokenizer: Tokenizer | None, template: ChatTemplate | None, reasons: tuple[str, ...]) -> None:
        self.core = core
        self.tokenizer = tokenizer
        self.template = template or BuiltinTemplate("glm-4.5")
        self.reasons = reasons
        self._ids = itertools.count()
        self._warned_of_control_text = False

    def _requests(
        self,
        prompts: list[list[int]],
        params: SamplingParams | Sequence[SamplingParams] | None,
        scheduling: SchedulingParams | Sequence[SchedulingParams] | None,
    ) -> list[GenerationRequest]:
        each = _each(SamplingParams() if params is None else params, len(prompts), "sampling params")
        treatments = _each(SchedulingParams() if scheduling is None else scheduling, len(prompts), "scheduling params")
        requests = [
            GenerationRequest(f"offline-{next(self._ids)}", prompt, own, scheduling=treatment)
            for prompt, own, treatment in zip(prompts, each, treatments, strict=True)
        ]
        for i, request in enumerate(requests):
            with _naming(f"prompts[{i}]" if len(requests) > 1 else None):
                validate_request(request, num_tokens=self.core.num_tokens, max_model_len=self.core.config.max_model_len)
        return requests

    def _run(self, requests: list[GenerationRequest], results: Sequence[GenerationResult], n: int, *, use_tqdm: bool) -> None:
        """Fill `results`, `n` for each request."""
        everyone = [sibling for request in requests for sibling in siblings(request, n)]
        by_id = {request.id: result for request, result in zip(everyone, results, strict=True)}
        with _progress(len(everyone)) if use_tqdm else nullcontext() as advance:
            try:
                for request in everyone:
                    self.core.add(request)
                while self.core.has_work:
                    outputs = self.core.step()
                    for output in outputs:
                        add_output(by_id[output.request_id], output)
                    if advance is not None:
                        advance(sum(o.finish_reason is not None for o in outputs), sum(len(o.token_ids) for o in outputs))
            finally:  # an interrupt leaves no request behind
                for request in everyone:
                    self.core.abort(request.id)
        for i, result in enumerate(results):
            if result.prompt_logprobs is None:  # the first of several answers had the prompt scored for all of them
                result.prompt_logprobs = results[i - i % n].prompt_logprobs
            if self.tokenizer is not None:
                result.text = visible_text(result, self.tokenizer)

    def _prompt_ids(self, prompt: Prompt, where: str) -> list[int]:
        if isinstance(prompt, str):
            tokenizer = self._need_tokenizer("a text prompt")
            if not self._warned_of_control_text and any(token in prompt for token in tokenizer.added_tokens):
                self._warned_of_control_text = True
                logger.warning(
                    "%s spells control tokens, which are ordinary text here; use chat(), or pass llm.tokenizer.encode_raw(prompt)", where
                )
            return tokenizer.encode_text(prompt)
        try:
            return [operator.index(token) for token in prompt]
        except TypeError:
            raise RequestError(f"{where} must be a text or a list of token ids", param="prompts") from None

    def _need_tokenizer(self, what: str) -> Tokenizer:
        if self.tokenizer is None:
            raise ConfigError(f"{what} needs a tokenizer, and this engine has none (random weights); pass token ids to generate")
        return self.tokenizer


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """The prompts, when a single one was given too."""
    if isinstance(prompts, str) or (len(prompts) and hasattr(prompts[0], "__index__")):
        return [prompts]  # type: ignore[list-item]  # a sequence of whole numbers is one prompt
    return list(prompts)  # type: ignore[arg-type]


def _conversation(messages: object, tools: Sequence[dict[str, JSON]] | None, *, thinking: bool, keep_thinking: bool) -> Conversation:
    listed = list(messages) if isinstance(messages, tuple) else messages
    return conversation_from_openai(listed, None if tools is None else list(tools), thinking=thinking, keep_thinking=keep_thinking)


def _checked_count(n: int) -> int:
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    return n


def _each(given: _T | Sequence[_T], count: int, name: str) -> list[_T]:
    """One per prompt, from one for all or a sequence of them."""
    if not isinstance(given, Sequence):
        return [given] * count
    if len(given) != count:
        raise ValueError(f"{count} prompts but {len(given)} {name}; give one for all or one each")
    return list(given)


@contextmanager
def _naming(where: str | None) -> Iterator[None]:
    """Say which of several inputs a request error is about."""
    try:
        yield
    except RequestError as error:
        if where is not None:
            error.args = (f"{where}: {error}",)
        raise


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int, int], None]]:
    """A bar that takes in finished prompts and new tokens, and shows tokens per second."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    rate = TextColumn("{task.fields[rate]:.0f} tok/s")
    num_tokens = 0
    with Progress(TextColumn("generating"), BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn()) as bar:
        task = bar.add_task("generating", total=total, rate=0.0)

        def advance(num_finished: int, num_new: int) -> None:
            nonlocal num_tokens
            num_tokens += num_new
            elapsed = bar.tasks[task].elapsed or 0.0
            bar.update(task, advance=num_finished, rate=num_tokens / elapsed if elapsed else 0.0)

        yield advance
