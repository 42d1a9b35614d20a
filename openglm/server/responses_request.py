"""A body of OpenAI's Responses API becomes a neutral `TurnRequest`.

`previous_response_id` continues what the store still knows: its turns go before those of `input`, its instructions do not. Items of
stored responses may be referred to by their id. Refused, because leaving them out would change the answer's meaning: `conversation`,
`prompt` templates and log probabilities. Hosted tools are left out, and a header of the response says how many.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

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
from openglm.text.messages import Conversation, Message
from openglm.text.responses_items import OfferedTools, messages_from_items, tools_from_responses


class Memory(Protocol):
    """What is still known of earlier responses."""

    def recall(self, response_id: str) -> tuple[Message, ...]:
        """The turns up to and with a response; raises `RequestError` when it is not known."""
        ...

    def recall_item(self, item_id: str) -> dict[str, Any] | None:
        """An item of a response's output; None when it is not known."""
        ...


class Reasoning(msgspec.Struct):
    """`reasoning` of a request."""

    effort: str | None = None
    summary: str | None = None


class TextOptions(msgspec.Struct):
    """`text` of a request."""

    format: dict[str, Any] | None = None
    verbosity: str | None = None


class ResponsesBody(SamplingFields):
    """The fields of a Responses body that are read. Items and tools are checked by the text level."""

    input: Any = None
    model: str | None = None
    instructions: str | None = None
    tools: Any = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    text: TextOptions | None = None
    max_output_tokens: Int | None = None
    stream: bool | None = None
    store: bool | None = None
    previous_response_id: str | None = None
    include: list[str] | None = None
    metadata: dict[str, str] | None = None
    top_logprobs: Int | None = None
    background: bool | None = None
    conversation: Any = None
    prompt: Any = None
    truncation: str | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


@dataclass(frozen=True)
class ResponsesRequest:
    """A checked request. `history` are the turns that a later response continues; `echo` what the response object repeats."""

    model: str | None
    turn: TurnRequest
    stream: bool
    store: bool
    background: bool
    tools: OfferedTools
    history: tuple[Message, ...]
    echo: dict[str, Any] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()


def read_responses_request(
    body: bytes, *, limits: RequestLimits, defaults: SamplingDefaults, thinking: bool, memory: Memory
) -> ResponsesRequest:
    """Decode and check a body. `thinking` is the server's default. Raises `RequestError` naming the field."""
    value = decode_body(body, limits)
    wanted = convert(value, ResponsesBody)
    _refuse_unsupported(wanted)
    check_count("input", wanted.input, limits.messages)
    check_count("tools", wanted.tools, limits.tools)
    if wanted.input is None:
        raise RequestError("input is missing", param="input", code="missing_field")
    earlier = memory.recall(wanted.previous_response_id) if wanted.previous_response_id is not None else ()
    history = (*earlier, *messages_from_items(wanted.input, memory.recall_item))
    turns = (Message("system", wanted.instructions), *history) if wanted.instructions else history
    if not turns:
        raise RequestError("input: must hold at least one item", param="input")
    check_count("input", turns, limits.messages)
    offered = tools_from_responses(wanted.tools)
    check_count("tools", offered.tools, limits.tools)  # those inside namespaces too
    effort = wanted.reasoning.effort if wanted.reasoning is not None else None
    shown = () if wanted.tool_choice == "none" else offered.tools
    conversation = Conversation(turns, shown, thinking=thinking and effort != "none")
    fields, form = _form_fields(wanted, limits)
    params = read_sampling(
        wanted,
        defaults=defaults,
        limits=limits,
        max_tokens=wanted.max_output_tokens,
        thinking_budget=effort_budget(effort),
        constraint=read_constraint(fields, shown, limits, form=form),
        names={"max_tokens": "max_output_tokens"},
    )
    turn = TurnRequest(
        prompt=conversation,
        params=params,
        stop=read_stop(wanted.stop, limits),
        client_id=read_client_id(wanted),
        parallel_tool_calls=wanted.parallel_tool_calls is not False,
        bad_words=read_bad_words(wanted, limits),
        scheduling=read_scheduling(wanted),
    )
    return ResponsesRequest(
        model=wanted.model,
        turn=turn,
        stream=bool(wanted.stream),
        store=wanted.store is not False,
        background=bool(wanted.background),
        tools=offered,
        history=history,
        echo=_echo(wanted, params.temperature, params.top_p),
        unknown=unknown_fields(value, ResponsesBody),
    )


def _refuse_unsupported(wanted: ResponsesBody) -> None:
    reasons = {
        "conversation": (wanted.conversation, "use previous_response_id, or send the items"),
        "prompt": (wanted.prompt, "there are no stored prompts here; send the items"),
        "top_logprobs": (wanted.top_logprobs, "use /v1/chat/completions for log probabilities"),
    }
    for name, (given, reason) in reasons.items():
        if given:
            raise RequestError(f"{name} is not supported: {reason}", param=name, code="unsupported_parameter")
    if wanted.background and wanted.store is False:
        raise RequestError("background needs store: true, or nobody could ask for the response", param="background")
    if "message.output_text.logprobs" in (wanted.include or ()):
        reason = "log probabilities are not part of these answers; use /v1/chat/completions for them"
        raise RequestError(f"include: {reason}", param="include", code="unsupported_parameter")


def _form_fields(wanted: ResponsesBody, limits: RequestLimits) -> tuple[FormFields, Form | None]:
    """What is demanded of the answer's form, in the terms of chat completions."""
    fields = FormFields(tool_choice=_tool_choice(wanted.tool_choice), parallel_tool_calls=wanted.parallel_tool_calls)
    form = wanted.text.format if wanted.text is not None else None
    where = "text.format"
    match None if form is None else form.get("type"):
        case None | "text":
            return fields, None
        case "json_object":
            fields.response_format = {"type": "json_object"}
            return fields, None
        case "json_schema" if form is not None and form.get("schema") is not None:
            strict = form.get("strict") is True
            return fields, schema_form(f"{where}.schema", form["schema"], limits, param=where, strict=strict)
        case "json_schema":
            raise RequestError(f"{where}.schema is missing", param=where)
    raise RequestError(f'{where}.type must be "text", "json_object" or "json_schema"', param=f"{where}.type")


def _tool_choice(choice: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
    """The choice with names as the model knows them."""
    if not isinstance(choice, dict):
        return choice
    if choice.get("type") == "allowed_tools" and isinstance(choice.get("tools"), list):
        return choice | {"tools": [_joined(item) for item in choice["tools"]]}
    named: dict[str, Any] = _joined(choice)
    return named


def _joined(item: Any) -> Any:
    if isinstance(item, dict) and isinstance(item.get("namespace"), str) and isinstance(item.get("name"), str):
        return item | {"name": f"{item['namespace']}.{item['name']}"}
    return item


def _echo(wanted: ResponsesBody, temperature: float, top_p: float) -> dict[str, Any]:
    text = wanted.text or TextOptions()
    return {
        "background": bool(wanted.background),
        "instructions": wanted.instructions,
        "max_output_tokens": wanted.max_output_tokens,
        "metadata": wanted.metadata or {},
        "parallel_tool_calls": wanted.parallel_tool_calls is not False,
        "previous_response_id": wanted.previous_response_id,
        "prompt_cache_key": wanted.prompt_cache_key,
        "reasoning": wanted.reasoning or Reasoning(),
        "safety_identifier": wanted.safety_identifier,
        "service_tier": "default",
        "store": wanted.store is not False,
        "temperature": temperature,
        "text": {"format": text.format or {"type": "text"}, "verbosity": text.verbosity or "medium"},
        "tool_choice": "auto" if wanted.tool_choice is None else wanted.tool_choice,
        "tools": wanted.tools or [],
        "top_logprobs": 0,
        "top_p": top_p,
        "truncation": "disabled",
        "user": wanted.user,
    }
