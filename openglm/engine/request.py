"""What crosses the engine's border: requests in, outputs out. Token ids only; text and dialects live above.

The structs are msgspec structs because they also cross a process border, as msgpack. Every limit is checked here, at the
engine's own gate, whatever the server in front has checked already. Owns no behaviour besides validation.
"""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from openglm.engine.cache_history import CacheOutcome
from openglm.engine.constraint import Constraint
from openglm.engine.scheduling import SchedulingParams
from openglm.errors import (
    ContextLengthError,
    DeadlineExceededError,
    EngineDeadError,
    EngineError,
    OpenGLMError,
    QueueFullError,
    RequestError,
)

FinishReason = Literal["stop", "length", "abort", "error"]
FailureCode = Literal[
    "invalid_request", "context_length_exceeded", "queue_full", "deadline_exceeded", "not_finite", "internal", "engine_dead"
]

MAX_STOP_STRINGS = 16
MAX_STOP_STRING_CHARS = 256
MAX_STOP_TOKEN_IDS = 128
MAX_LOGPROBS = 20
MAX_PROMPT_LOGPROB_ENTRIES = 1 << 21  # per request: some 32 MiB on the wire, a few hundred in memory
MAX_TEMPERATURE = 2.0
MAX_PENALTY = 2.0
MIN_REPETITION_PENALTY = 0.001  # logits are divided by it; far below this the quotient would leave fp32
MAX_LOGIT_BIASES = 300
MAX_LOGIT_BIAS = 100.0
MAX_BAD_WORDS = 256
MAX_BAD_WORD_TOKENS = 64
GREEDY_BELOW = 1e-5  # temperatures below this are greedy: dividing logits by them would leave fp32


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How to choose the next tokens and when to stop. Limits that need no model are checked on construction."""

    max_tokens: int | None = None
    """Tokens to generate at most; None means up to the context's end. More than fits is cut to what fits.

    0 generates nothing and only scores the prompt; it needs `prompt_logprobs`.
    """
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0 or -1 means no limit."""
    min_p: float = 0.0
    seed: int | None = None
    """Same seed, same prompt, same tokens, whatever else runs in the batch and whether drafts are used."""
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    """Keep going over the model's own stop ids; `stop_token_ids` still end the request."""
    logprobs: int | None = None
    """None: none. n: the chosen token's log probability and the n most likely alternatives at every position.

    Always of the model's own distribution, before temperature, filters and all adjustments below (vLLM's "raw_logprobs").
    """
    prompt_logprobs: int | None = None
    """None: none. n: for every prompt token but the first its log probability and the n most likely alternatives (as `logprobs`).

    The prompt is then processed in full, without prefix hits.
    """
    frequency_penalty: float = 0.0
    """Subtracted from a token's logit for every time it was generated."""
    presence_penalty: float = 0.0
    """Subtracted once from the logit of every token that was generated."""
    repetition_penalty: float = 1.0
    """Divides positive and multiplies other logits of tokens that the prompt or the output holds."""
    logit_bias: dict[int, float] = msgspec.field(default_factory=dict)
    """Added to the logits of these ids."""
    bad_words: tuple[tuple[int, ...], ...] = ()
    """Token sequences that are never generated: the last token is banned where the ones before it were just generated."""
    min_tokens: int = 0
    """Neither stop ids nor stop strings end the request before this many tokens; stop ids are not chosen either."""
    thinking_budget: int | None = None
    """Tokens of reasoning at most; then a newline and `</think>` are forced (`openglm.engine.thinking`)."""
    constraint: Constraint | None = None
    """The form of the answer; reasoning stays free. An answer that is complete ends the request, before `min_tokens` too."""

    def __post_init__(self) -> None:
        """Refuse what no model could honour, naming the parameter."""
        if self.max_tokens is not None:
            _whole("max_tokens", self.max_tokens, 1 if self.prompt_logprobs is None else 0, None)
        _real("temperature", self.temperature, 0.0, MAX_TEMPERATURE)
        _real("top_p", self.top_p, 0.0, 1.0)
        if self.top_p == 0.0:
            raise RequestError("top_p must lie above 0; use temperature 0 for greedy decoding", param="top_p")
        _whole("top_k", self.top_k, -1, None)
        _real("min_p", self.min_p, 0.0, 1.0)
        if self.seed is not None:
            _whole("seed", self.seed, -(2**63), 2**63 - 1)
        if self.logprobs is not None:
            _whole("logprobs", self.logprobs, 0, MAX_LOGPROBS)
        if self.prompt_logprobs is not None:
            _whole("prompt_logprobs", self.prompt_logprobs, 0, MAX_LOGPROBS)
        _count("stop", len(self.stop), MAX_STOP_STRINGS)
        for text in self.stop:
            if not isinstance(text, str) or not 1 <= len(text) <= MAX_STOP_STRING_CHARS:
                raise RequestError(f"every stop string must have 1 to {MAX_STOP_STRING_CHARS} characters", param="stop")
        _count("stop_token_ids", len(self.stop_token_ids), MAX_STOP_TOKEN_IDS)
        for token in self.stop_token_ids:
            _whole("stop_token_ids", token, 0, None)
        self._check_adjustments()

    def _check_adjustments(self) -> None:
        _real("frequency_penalty", self.frequency_penalty, -MAX_PENALTY, MAX_PENALTY)
        _real("presence_penalty", self.presence_penalty, -MAX_PENALTY, MAX_PENALTY)
        _real("repetition_penalty", self.repetition_penalty, MIN_REPETITION_PENALTY, MAX_PENALTY)
        _count("logit_bias", len(self.logit_bias), MAX_LOGIT_BIASES)
        for token, bias in self.logit_bias.items():
            _whole("logit_bias", token, 0, None)
            _real("logit_bias", bias, -MAX_LOGIT_BIAS, MAX_LOGIT_BIAS)
        _count("bad_words", len(self.bad_words), MAX_BAD_WORDS)
        for sequence in self.bad_words:
            if not isinstance(sequence, (tuple, list)) or not 1 <= len(sequence) <= MAX_BAD_WORD_TOKENS:
                raise RequestError(f"every entry of bad_words must hold 1 to {MAX_BAD_WORD_TOKENS} token ids", param="bad_words")
            for token in sequence:
                _whole("bad_words", token, 0, None)
        _whole("min_tokens", self.min_tokens, 0, None)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise RequestError(f"min_tokens must be at most max_tokens, which is {_shown(self.max_tokens)}", param="min_tokens")
        if self.thinking_budget is not None:
            _whole("thinking_budget", self.thinking_budget, 0, None)
        if self.constraint is not None and not isinstance(self.constraint, Constraint):
            raise RequestError(f"constraint must be a Constraint, got {type(self.constraint).__name__}", param="constraint")

    @property
    def adjusts_logits(self) -> bool:
        """Whether tokens are chosen from anything but the model's own logits."""
        return bool(
            self.frequency_penalty
            or self.presence_penalty
            or self.repetition_penalty != 1.0
            or self.logit_bias
            or self.bad_words
            or self.min_tokens
            or self.thinking_budget is not None
        )

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken at every position."""
        return self.temperature < GREEDY_BELOW


class GenerationRequest(msgspec.Struct, frozen=True):
    """One prompt to continue. `id` is unique among the sender's running requests."""

    id: str
    prompt_ids: list[int]
    params: SamplingParams = msgspec.field(default_factory=SamplingParams)
    follows: str | None = None
    """Start only when the request with this id has its first token, to share the pages of its prompt; at once when it is over."""
    scheduling: SchedulingParams = msgspec.field(default_factory=SchedulingParams)


def siblings(request: GenerationRequest, count: int) -> list[GenerationRequest]:
    """`count` requests for answers to one prompt, which is processed (and scored) once. The first is `request`; a seed is counted up."""
    made = [request]
    shared = request.params
    if shared.prompt_logprobs is not None and shared.max_tokens != 0:
        shared = msgspec.structs.replace(shared, prompt_logprobs=None)
    for index in range(1, count):
        seed = request.params.seed
        params = shared
        if seed is not None:
            params = msgspec.structs.replace(params, seed=(seed + index + 2**63) % 2**64 - 2**63)
        made.append(
            GenerationRequest(sibling_id(request.id, index), request.prompt_ids, params, follows=request.id, scheduling=request.scheduling)
        )
    return made


def sibling_id(request_id: str, index: int) -> str:
    """The id of the `index`-th of several answers to one prompt, counted from 0."""
    return f"{request_id}.{index}" if index else request_id


class TokenLogprobs(msgspec.Struct, frozen=True):
    """Log probabilities at one position, of the model's own distribution (before temperature and filters)."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    """The most likely tokens and their log probabilities, best first."""


class RequestFailure(msgspec.Struct, frozen=True):
    """Why a request ended with finish reason "error"."""

    code: FailureCode
    message: str
    param: str | None = None

    def to_error(self) -> OpenGLMError:
        """The exception that says the same."""
        match self.code:
            case "context_length_exceeded":
                return ContextLengthError(self.message, param=self.param)
            case "invalid_request":
                return RequestError(self.message, param=self.param)
            case "queue_full":
                return QueueFullError(self.message)
            case "deadline_exceeded":
                return DeadlineExceededError(self.message)
            case "engine_dead":
                return EngineDeadError(self.message)
            case _:
                return EngineError(self.message)


class EngineOutput(msgspec.Struct, omit_defaults=True, gc=False):
    """What one step added to one request. Exactly one output of a request has a `finish_reason`: its last."""

    request_id: str
    token_ids: list[int]
    """New tokens. The stop id that ended the request is not among them; it is the `stop_reason`."""
    logprobs: list[TokenLogprobs] | None = None
    """One entry per new token when the request asked for them."""
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    """The stop string or stop id that ended the request."""
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    """Prompt tokens whose KV came from the prefix cache."""
    num_drafted: int = 0
    """Draft tokens verified so far for this request, and how many of them were right."""
    num_accepted: int = 0
    error: RequestFailure | None = None
    prompt_logprobs: list[TokenLogprobs] | None = None
    """One entry per prompt token but the first, in the one output that completes the prompt, when the request asked for them."""
    cache_outcome: CacheOutcome | None = None
    """Why no more prompt tokens than these were cached (`openglm.engine.cache_history`); None when it never started to run."""
    stop_logprobs: TokenLogprobs | None = None
    """Of the stop id that ended the request, when it asked for log probabilities; `logprobs` has no entry for it."""
    queue_s: float | None = None
    """Seconds from its arrival to its first step; in the last output of a request that ran."""


def validate_request(request: GenerationRequest, *, num_tokens: int, max_model_len: int) -> None:
    """Refuse a request that this model cannot run: an empty or too long prompt, or ids outside the vocabulary."""
    prompt = request.prompt_ids
    if not prompt:
        raise RequestError("the prompt is empty; at least one token is needed", param="prompt")
    if len(prompt) >= max_model_len:
        raise ContextLengthError(
            f"the prompt has {len(prompt)} tokens, which leaves no room in the context of {max_model_len}; shorten the prompt"
        )
    lowest, highest = min(prompt), max(prompt)
    if lowest < 0 or highest >= num_tokens:
        wrong = lowest if lowest < 0 else highest
        raise RequestError(f"the prompt holds token id {wrong}; ids run from 0 to {num_tokens - 1}", param="prompt")
    params = request.params
    if params.prompt_logprobs is not None and len(prompt) * (1 + params.prompt_logprobs) > MAX_PROMPT_LOGPROB_ENTRIES:
        raise RequestError(
            f"{params.prompt_logprobs} alternatives for {len(prompt)} prompt tokens are too many; ask for fewer", param="prompt_logprobs"
        )
    named = (
        ("stop_token_ids", params.stop_token_ids),
        ("logit_bias", params.logit_bias),
        ("bad_words", [token for sequence in params.bad_words for token in sequence]),
    )
    for name, ids in named:
        highest = max(ids, default=0)
        if highest >= num_tokens:
            raise RequestError(f"{name} holds {_shown(highest)}; ids run from 0 to {num_tokens - 1}", param=name)


def _whole(name: str, value: int, low: int | None, high: int | None) -> None:
    """Check an integer that may come from a caller without static types; bool is no integer here."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise RequestError(f"{name} must be an integer, got {type(value).__name__}", param=name)
    if (low is not None and value < low) or (high is not None and value > high):
        raise RequestError(f"{name} must be {_range(low, high)}, got {_shown(value)}", param=name)


def _real(name: str, value: float, low: float, high: float) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise RequestError(f"{name} must be a number, got {type(value).__name__}", param=name)
    if not (math.isfinite(value) if isinstance(value, float) else True) or not low <= value <= high:
        raise RequestError(f"{name} must be {_range(low, high)}, got {_shown(value)}", param=name)


def _count(name: str, count: int, limit: int) -> None:
    if count > limit:
        raise RequestError(f"{name} holds {count} entries; at most {limit} are taken", param=name)


def _range(low: float | None, high: float | None) -> str:
    if low is None:
        return f"at most {high}"
    return f"at least {low}" if high is None else f"between {low} and {high}"


def _shown(value: float) -> str:
    text = f"{value:.6g}" if isinstance(value, float) or abs(value) < 10**18 else "a far larger number"
    return text if isinstance(value, float) or abs(value) >= 10**18 else str(value)
