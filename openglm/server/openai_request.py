"""An OpenAI chat-completions body becomes a neutral `TurnRequest`.

Rules of this dialect: a field of the wrong type is an error that names it; an unknown field is ignored; `null` means absent. What an
answer must look like - `tool_choice`, `response_format` and their like - is read by `openai_constraint`.

Beyond OpenAI's own fields this takes what GLM clients send: `top_k`, `min_p`, `stop_token_ids`, `ignore_eos`, `do_sample`,
`repetition_penalty`, `min_tokens` (which holds off stop ids, not stop strings), `bad_words`, `thinking_budget` (vLLM's spelling:
`thinking_token_budget`), `priority` (lower runs first) and `cache_salt` as in vLLM, `chat_template_kwargs` (a closed set of keys),
and Z.ai's `thinking: {"type": ...}`. Where several say whether to think, the most specific wins: `chat_template_kwargs.enable_thinking`,
then `thinking`, then `reasoning_effort: "none"`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Final

import msgspec

from openglm.config.server import RequestLimits, SamplingDefaults
from openglm.engine.constraint import Constraint
from openglm.engine.request import SamplingParams
from openglm.engine.scheduling import SchedulingParams
from openglm.errors import RequestError
from openglm.server.forbidden_fields import refuse_forbidden_fields
from openglm.server.openai_constraint import FormFields, hides_tools, read_constraint
from openglm.server.strict_json import convert, decode_json
from openglm.server.turn import TurnRequest
from openglm.text.openai_messages import conversation_from_openai

Int = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
"""JSON integers have no bound; beyond 64 bits nobody means a count or a seed."""


class StreamOptions(msgspec.Struct):
    """`stream_options` of a request."""

    include_usage: bool | None = None


class ThinkingSwitch(msgspec.Struct):
    """Z.ai's `thinking` object."""

    type: str | None = None
    clear_thinking: bool | None = None


class ChatBody(FormFields):
    """The fields of a chat-completions body that are read. Messages and tools are checked by the text level."""

    messages: Any = None
    model: str | None = None
    tools: Any = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Int | None = None
    max_completion_tokens: Int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Int | None = None
    min_p: float | None = None
    seed: Int | None = None
    do_sample: bool | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[Int] | None = None
    ignore_eos: bool | None = None
    logprobs: bool | None = None
    top_logprobs: Int | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    thinking: ThinkingSwitch | None = None
    reasoning_effort: str | None = None
    n: Int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    min_tokens: Int | None = None
    logit_bias: dict[str, float] | None = None
    bad_words: list[str] | None = None
    thinking_budget: Int | None = None
    thinking_token_budget: Int | None = None
    priority: Int | None = None
    cache_salt: str | None = None


@dataclass(frozen=True)
class ChatRequest:
    """A checked request: the turn, and how the client wants the answer delivered."""

    model: str | None
    turn: TurnRequest
    stream: bool
    include_usage: bool
    num_choices: int = 1


def read_chat_request(body: bytes, *, limits: RequestLimits, defaults: SamplingDefaults, thinking: bool) -> ChatRequest:
    """Decode and check a body. `thinking` is the server's default. Raises `RequestError` naming the field."""
    value = decode_json(body, max_depth=limits.json_depth)
    refuse_forbidden_fields(value)
    chat = convert(value, ChatBody)
    if chat.messages is None:
        raise RequestError("messages is missing", param="messages", code="missing_field")
    _limit("messages", chat.messages, limits.messages)
    _limit("tools", chat.tools, limits.tools)
    think, keep = _thinking(chat, thinking)
    tools = None if hides_tools(chat) else chat.tools
    conversation = conversation_from_openai(chat.messages, tools, thinking=think, keep_thinking=keep)
    constraint = read_constraint(chat, conversation.tools, limits)
    turn = TurnRequest(
        conversation=conversation,
        params=_sampling(chat, constraint, defaults, limits),
        stop=_stop(chat, limits),
        parallel_tool_calls=chat.parallel_tool_calls is not False,
        bad_words=_bad_words(chat, limits),
        scheduling=_scheduling(chat),
    )
    return ChatRequest(
        model=chat.model,
        turn=turn,
        stream=bool(chat.stream),
        include_usage=chat.stream_options is not None and bool(chat.stream_options.include_usage),
        num_choices=_num_choices(chat, limits),
    )


def _sampling(chat: ChatBody, constraint: Constraint | None, defaults: SamplingDefaults, limits: RequestLimits) -> SamplingParams:
    """Parameters for the engine, which checks their ranges under the same names."""
    top_logprobs = chat.top_logprobs
    if top_logprobs and not chat.logprobs:
        raise RequestError("top_logprobs needs logprobs: true", param="top_logprobs")
    if top_logprobs is not None and not 0 <= top_logprobs <= limits.top_logprobs:
        raise RequestError(f"top_logprobs must be between 0 and {limits.top_logprobs}", param="top_logprobs")
    if chat.max_completion_tokens is not None and chat.max_completion_tokens < 1:
        raise RequestError("max_completion_tokens must be at least 1", param="max_completion_tokens")
    temperature = _or(chat.temperature, defaults.temperature)
    return SamplingParams(
        max_tokens=_or(chat.max_completion_tokens, chat.max_tokens),
        temperature=0.0 if chat.do_sample is False else temperature,
        top_p=_or(chat.top_p, defaults.top_p),
        top_k=_or(chat.top_k, defaults.top_k),
        min_p=_or(chat.min_p, defaults.min_p),
        seed=chat.seed,
        stop_token_ids=tuple(dict.fromkeys(chat.stop_token_ids or ())),
        ignore_eos=bool(chat.ignore_eos),
        logprobs=(top_logprobs or 0) if chat.logprobs else None,
        frequency_penalty=_or(chat.frequency_penalty, 0.0),
        presence_penalty=_or(chat.presence_penalty, 0.0),
        repetition_penalty=_or(chat.repetition_penalty, 1.0),
        logit_bias=_logit_bias(chat, limits),
        min_tokens=_or(chat.min_tokens, 0),
        thinking_budget=_or(chat.thinking_budget, chat.thinking_token_budget),
        constraint=constraint,
    )


def _scheduling(chat: ChatBody) -> SchedulingParams:
    if chat.cache_salt == "":
        raise RequestError("cache_salt must not be empty; leave it out to share prefixes with everyone", param="cache_salt")
    return SchedulingParams(priority=_or(chat.priority, 0), cache_salt=_or(chat.cache_salt, ""))


def _num_choices(chat: ChatBody, limits: RequestLimits) -> int:
    count = 1 if chat.n is None else chat.n
    if not 1 <= count <= limits.choices:
        raise RequestError(f"n must be between 1 and {limits.choices}", param="n")
    return count


def _logit_bias(chat: ChatBody, limits: RequestLimits) -> dict[int, float]:
    entries = chat.logit_bias or {}
    if len(entries) > limits.logit_biases:
        raise RequestError(f"logit_bias holds {len(entries)} entries; at most {limits.logit_biases} are taken", param="logit_bias")
    biases: dict[int, float] = {}
    for key, bias in entries.items():
        if not (key.isascii() and key.isdigit() and len(key) <= _MAX_ID_DIGITS) or (token := int(key)) in biases:
            raise RequestError("the keys of logit_bias must be different token ids in decimal digits", param="logit_bias")
        biases[token] = bias
    return biases


def _bad_words(chat: ChatBody, limits: RequestLimits) -> tuple[str, ...]:
    words = chat.bad_words or []
    _limit("bad_words", words, limits.bad_words)
    if any(not word.strip() or len(word) > limits.bad_word_chars for word in words):
        raise RequestError(f"every one of bad_words must have 1 to {limits.bad_word_chars} characters, not all blank", param="bad_words")
    return tuple(dict.fromkeys(words))


def _stop(chat: ChatBody, limits: RequestLimits) -> tuple[str, ...]:
    strings = [chat.stop] if isinstance(chat.stop, str) else chat.stop or []
    if len(strings) > limits.stop_strings:
        raise RequestError(f"stop holds {len(strings)} strings; at most {limits.stop_strings} are taken", param="stop")
    if any(not 1 <= len(text) <= limits.stop_string_chars for text in strings):
        raise RequestError(f"every stop string must have 1 to {limits.stop_string_chars} characters", param="stop")
    return tuple(dict.fromkeys(strings))


def _thinking(chat: ChatBody, default: bool) -> tuple[bool, bool]:
    """(think, keep the reasoning of earlier turns)."""
    think, keep = default, False
    if chat.reasoning_effort == "none":
        think = False
    if chat.thinking is not None:
        if chat.thinking.type not in (None, "enabled", "disabled"):
            raise RequestError('thinking.type must be "enabled" or "disabled"', param="thinking.type")
        think = {"enabled": True, "disabled": False}.get(chat.thinking.type or "", think)
        keep = chat.thinking.clear_thinking is False
    for key, value in (chat.chat_template_kwargs or {}).items():
        param = f"chat_template_kwargs.{key}"
        if key not in _TEMPLATE_SWITCHES:
            known = ", ".join(_TEMPLATE_SWITCHES)
            raise RequestError(f"chat_template_kwargs takes only: {known}", param="chat_template_kwargs")
        if value is None:
            continue
        if not isinstance(value, bool):
            raise RequestError(f"{param} must be true or false", param=param)
        if key == "enable_thinking":
            think = value
        elif key == "clear_thinking":
            keep = not value
        elif not value:
            raise RequestError("add_generation_prompt: false is not supported; the answer is always a new turn", param=param)
    return think, keep


def _limit(name: str, value: Any, limit: int) -> None:
    if isinstance(value, list) and len(value) > limit:
        raise RequestError(f"{name} holds {len(value)} entries; at most {limit} are taken", param=name)


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


_MAX_ID_DIGITS: Final = 10
_TEMPLATE_SWITCHES: Final = ("enable_thinking", "clear_thinking", "add_generation_prompt")
