"""An OpenAI chat-completions body becomes a neutral `TurnRequest`.

Rules of this dialect: a field of the wrong type is an error that names it; an unknown field is ignored; `null` means absent. What an
answer must look like - `tool_choice`, `response_format` and their like - is read by `openai_constraint`, how tokens are chosen by
`sampling_fields`.

Beyond OpenAI's own fields this takes what GLM clients send: `top_k`, `min_p`, `stop_token_ids`, `ignore_eos`, `do_sample`,
`repetition_penalty`, `min_tokens` (which holds off stop ids, not stop strings), `bad_words`, `thinking_budget` (vLLM's spelling:
`thinking_token_budget`), `priority` (lower runs first) and `cache_salt` as in vLLM, `chat_template_kwargs` (a closed set of keys),
`continue_final_message`, and Z.ai's `thinking: {"type": ...}`, `tool_stream` and hosted tools (which are left out). Where several
say whether to think, the most specific wins: `chat_template_kwargs.enable_thinking`, then `thinking`, then `reasoning_effort:
"none"`; lower efforts bound the reasoning.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import msgspec

from openglm.config.server import RequestLimits, SamplingDefaults
from openglm.engine.constraint import Constraint
from openglm.engine.request import SamplingParams
from openglm.errors import RequestError
from openglm.server.forbidden_fields import decode_body
from openglm.server.openai_constraint import FormFields, hides_tools, read_constraint
from openglm.server.sampling_fields import (
    Int,
    check_count,
    effort_budget,
    either,
    read_bad_words,
    read_client_id,
    read_num_choices,
    read_sampling,
    read_scheduling,
    read_stop,
)
from openglm.server.strict_json import convert, unknown_fields
from openglm.server.turn import TurnRequest
from openglm.text.messages import Conversation
from openglm.text.openai_messages import conversation_from_openai


class StreamOptions(msgspec.Struct):
    """`stream_options` of a request."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


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
    logprobs: bool | None = None
    top_logprobs: Int | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    thinking: ThinkingSwitch | None = None
    reasoning_effort: str | None = None
    thinking_budget: Int | None = None
    thinking_token_budget: Int | None = None
    tool_stream: bool | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None


@dataclass(frozen=True)
class ChatRequest:
    """A checked request: the turn, and how the client wants the answer delivered."""

    model: str | None
    turn: TurnRequest
    stream: bool
    include_usage: bool
    num_choices: int = 1
    continuous_usage: bool = False
    tool_stream: bool | None = None
    """Whether arguments of calls are sent as they come; None leaves it to the path the request came by."""
    unknown: tuple[str, ...] = ()
    """Names of fields that were not read."""
    dropped_tools: tuple[str, ...] = ()
    """Types of tools that were left out."""


def read_chat_request(body: bytes, *, limits: RequestLimits, defaults: SamplingDefaults, thinking: bool) -> ChatRequest:
    """Decode and check a body. `thinking` is the server's default. Raises `RequestError` naming the field."""
    return chat_request(decode_body(body, limits), limits=limits, defaults=defaults, thinking=thinking)


def chat_request(value: Any, *, limits: RequestLimits, defaults: SamplingDefaults, thinking: bool) -> ChatRequest:
    """Check a decoded body."""
    chat = convert(value, ChatBody)
    if chat.messages is None:
        raise RequestError("messages is missing", param="messages", code="missing_field")
    check_count("messages", chat.messages, limits.messages)
    check_count("tools", chat.tools, limits.tools)
    think, keep = _thinking(chat, thinking)
    offered, hosted = _without_hosted_tools(chat.tools)
    tools = None if hides_tools(chat) else offered
    conversation = conversation_from_openai(chat.messages, tools, thinking=think, keep_thinking=keep)
    constraint = read_constraint(chat, conversation.tools, limits)
    turn = TurnRequest(
        prompt=conversation,
        continues=_continues(chat, conversation),
        params=_sampling(chat, constraint, defaults, limits),
        stop=read_stop(chat.stop, limits),
        keep_stop=bool(chat.include_stop_str_in_output),
        client_id=read_client_id(chat),
        parallel_tool_calls=chat.parallel_tool_calls is not False,
        bad_words=read_bad_words(chat, limits),
        scheduling=read_scheduling(chat),
    )
    options = chat.stream_options or StreamOptions()
    return ChatRequest(
        model=chat.model,
        turn=turn,
        stream=bool(chat.stream),
        include_usage=bool(options.include_usage),
        num_choices=read_num_choices(chat, limits),
        continuous_usage=bool(options.continuous_usage_stats),
        tool_stream=chat.tool_stream,
        unknown=unknown_fields(value, ChatBody),
        dropped_tools=hosted,
    )


def _without_hosted_tools(tools: Any) -> tuple[Any, tuple[str, ...]]:
    """The tools but for those that only Z.ai's own servers can run, and the types of those."""
    if not isinstance(tools, list):
        return tools, ()
    hosted = [tool for tool in tools if isinstance(tool, dict) and tool.get("type") in _HOSTED_TOOLS]
    return [tool for tool in tools if tool not in hosted] if hosted else tools, tuple(tool["type"] for tool in hosted)


def _sampling(chat: ChatBody, constraint: Constraint | None, defaults: SamplingDefaults, limits: RequestLimits) -> SamplingParams:
    top_logprobs = chat.top_logprobs
    if top_logprobs and not chat.logprobs:
        raise RequestError("top_logprobs needs logprobs: true", param="top_logprobs")
    if top_logprobs is not None and not 0 <= top_logprobs <= limits.top_logprobs:
        raise RequestError(f"top_logprobs must be between 0 and {limits.top_logprobs}", param="top_logprobs")
    if chat.max_completion_tokens is not None and chat.max_completion_tokens < 1:
        raise RequestError("max_completion_tokens must be at least 1", param="max_completion_tokens")
    budget = either(chat.thinking_budget, chat.thinking_token_budget)
    return read_sampling(
        chat,
        defaults=defaults,
        limits=limits,
        max_tokens=either(chat.max_completion_tokens, chat.max_tokens),
        logprobs=(top_logprobs or 0) if chat.logprobs else None,
        thinking_budget=either(budget, effort_budget(chat.reasoning_effort)),
        constraint=constraint,
    )


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


def _continues(chat: ChatBody, conversation: Conversation) -> bool:
    """Whether the answer goes on with the last message, as vLLM's pair of fields says it."""
    wanted = bool(chat.continue_final_message)
    if wanted and not conversation.ends_with_answer:
        where = "continue_final_message"
        raise RequestError(f"{where} needs an assistant message with text and without calls at the end", param=where)
    if chat.add_generation_prompt is False and not wanted:
        raise RequestError("add_generation_prompt: false needs continue_final_message: true", param="add_generation_prompt")
    return wanted


_HOSTED_TOOLS: Final = ("web_search", "retrieval", "mcp")
_TEMPLATE_SWITCHES: Final = ("enable_thinking", "clear_thinking", "add_generation_prompt")
