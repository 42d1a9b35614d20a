"""A body of Anthropic's Messages API becomes a neutral `TurnRequest`.

Whether to think is said by `thinking`, else by `output_config.effort`; a request that says neither gets an answer without thinking, as
from Anthropic, because such clients take the first block for the answer. Without thinking, an assistant message at the end is the
beginning of the answer, which goes on with it. A budget bounds the reasoning, and so does a low effort.
`context_management` matters in one point: an edit that keeps all thinking keeps it in the prompt (where the model's template can).
What is only about billing, caching or Anthropic's own servers is ignored. Sampling fields that this server knows from its other
dialects (`seed`, `min_p`, ...) are taken here too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import msgspec

from openglm.config.server import RequestLimits, SamplingDefaults
from openglm.errors import RequestError
from openglm.server.forbidden_fields import decode_body
from openglm.server.openai_constraint import Form, FormFields, read_constraint, schema_form
from openglm.server.sampling_fields import (
    Int,
    SamplingFields,
    check_count,
    effort_budget,
    read_bad_words,
    read_client_id,
    read_sampling,
    read_scheduling,
    read_stop,
)
from openglm.server.strict_json import convert, unknown_fields
from openglm.server.turn import TurnRequest
from openglm.text.anthropic_messages import conversation_from_anthropic, tools_from_anthropic
from openglm.text.messages import Conversation

_CLEAR_THINKING: Final = "clear_thinking_20251015"


class ToolChoice(msgspec.Struct):
    """`tool_choice` of a request."""

    type: str | None = None
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(msgspec.Struct):
    """`thinking` of a request."""

    type: str | None = None
    budget_tokens: Int | None = None


class OutputConfig(msgspec.Struct):
    """`output_config` of a request."""

    effort: str | None = None
    format: dict[str, Any] | None = None


class MessagesBody(SamplingFields):
    """The fields of a Messages body that are read. System, messages and tools are checked by the text level."""

    messages: Any = None
    system: Any = None
    model: str | None = None
    max_tokens: Int | None = None
    stream: bool | None = None
    stop_sequences: list[str] | None = None
    tools: Any = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    context_management: dict[str, Any] | None = None


@dataclass(frozen=True)
class MessagesRequest:
    """A checked request."""

    model: str | None
    turn: TurnRequest
    stream: bool
    unknown: tuple[str, ...] = ()
    dropped_tools: tuple[str, ...] = ()
    """Types of tools that were left out."""


@dataclass(frozen=True)
class CountRequest:
    """A checked request to count tokens."""

    model: str | None
    conversation: Conversation
    unknown: tuple[str, ...] = ()


def read_messages_request(body: bytes, *, limits: RequestLimits, defaults: SamplingDefaults) -> MessagesRequest:
    """Decode and check a body. Raises `RequestError` naming the field."""
    value = decode_body(body, limits)
    wanted = convert(value, MessagesBody)
    if wanted.max_tokens is None:
        raise RequestError("max_tokens is missing", param="max_tokens", code="missing_field")
    conversation, dropped = _conversation(wanted, limits)
    _, budget = _thinking(wanted)
    choice = wanted.tool_choice or ToolChoice()
    one_call = choice.disable_parallel_tool_use is True
    fields = FormFields(tool_choice=_tool_choice(choice), parallel_tool_calls=not one_call)
    turn = TurnRequest(
        prompt=conversation,
        continues=not conversation.thinking and conversation.ends_with_answer,
        params=read_sampling(
            wanted,
            defaults=defaults,
            limits=limits,
            max_tokens=wanted.max_tokens,
            thinking_budget=budget,
            constraint=read_constraint(fields, conversation.tools, limits, form=_form(wanted.output_config, limits)),
            names={"thinking_budget": "thinking.budget_tokens"},
        ),
        stop=read_stop(wanted.stop_sequences, limits, param="stop_sequences"),
        client_id=read_client_id(wanted),
        parallel_tool_calls=not one_call,
        bad_words=read_bad_words(wanted, limits),
        scheduling=read_scheduling(wanted),
    )
    return MessagesRequest(wanted.model, turn, bool(wanted.stream), unknown_fields(value, MessagesBody), dropped)


def read_count_request(body: bytes, *, limits: RequestLimits) -> CountRequest:
    """Decode and check a body whose tokens are to be counted."""
    value = decode_body(body, limits)
    wanted = convert(value, MessagesBody)
    return CountRequest(wanted.model, _conversation(wanted, limits)[0], unknown_fields(value, MessagesBody))


def _conversation(wanted: MessagesBody, limits: RequestLimits) -> tuple[Conversation, tuple[str, ...]]:
    if wanted.messages is None:
        raise RequestError("messages is missing", param="messages", code="missing_field")
    check_count("messages", wanted.messages, limits.messages)
    check_count("tools", wanted.tools, limits.tools)
    tools, dropped = tools_from_anthropic(wanted.tools)
    if wanted.tool_choice is not None and wanted.tool_choice.type == "none":
        tools = ()
    think, _ = _thinking(wanted)
    keep = _keeps_thinking(wanted.context_management)
    conversation = conversation_from_anthropic(wanted.system, wanted.messages, tools, thinking=think, keep_thinking=keep)
    check_count("messages", conversation.messages, limits.messages)  # every tool result became a turn of its own
    return conversation, dropped


def _thinking(wanted: MessagesBody) -> tuple[bool, int | None]:
    """(think, reasoning tokens at most)."""
    effort = wanted.output_config.effort if wanted.output_config is not None else None
    switch = wanted.thinking or Thinking()
    match switch.type:
        case "disabled":
            return False, None
        case "enabled" | "adaptive" | "between_tools":
            budget = switch.budget_tokens
            return effort != "none", effort_budget(effort) if budget is None else budget
        case None:
            return effort not in (None, "none"), effort_budget(effort)
    raise RequestError('thinking.type must be "enabled", "adaptive" or "disabled"', param="thinking.type")


def _keeps_thinking(management: dict[str, Any] | None) -> bool:
    edits = (management or {}).get("edits")
    if not isinstance(edits, list):
        return False
    return any(isinstance(edit, dict) and edit.get("type") == _CLEAR_THINKING and edit.get("keep") == "all" for edit in edits)


def _tool_choice(choice: ToolChoice) -> str | dict[str, Any] | None:
    match choice.type:
        case None | "auto":
            return "auto"
        case "none":
            return "none"
        case "any":
            return "required"
        case "tool":
            return {"type": "function", "function": {"name": choice.name}}
    raise RequestError('tool_choice.type must be "auto", "any", "tool" or "none"', param="tool_choice.type")


def _form(config: OutputConfig | None, limits: RequestLimits) -> Form | None:
    if config is None or config.format is None:
        return None
    where = "output_config.format"
    if config.format.get("type") != "json_schema" or config.format.get("schema") is None:
        raise RequestError(f'{where} must be {{"type": "json_schema", "schema": ...}}', param=where)
    return schema_form(f"{where}.schema", config.format["schema"], limits, param=where, strict=False)
