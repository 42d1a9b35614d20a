"""What a body demands of the answer's form becomes the engine's `Constraint`; other dialects say theirs in these terms.

Forms are said in several dialects: OpenAI's `response_format`, vLLM's `structured_outputs` and its older `guided_*`, SGLang's
`json_schema`, `regex` and `ebnf`. A request may use one. `tool_choice` and `strict` functions constrain calls:

    tool_choice "required", a named function, allowed_tools     the answer is calls (of these tools), nothing else
    tool_choice "auto" with a strict function                   once a call is opened, it matches the schema of its tool
    a form, and tools with tool_choice "auto"                   the answer is calls or text of that form
    parallel_tool_calls: false                                  at most one call

A function without `strict` that is constrained all the same (because a call is required) follows its schema as far as grammars can
express it; with `strict: true`, what cannot be honoured is an error. The reasoning before an answer is free.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from openglm.config.server import RequestLimits
from openglm.engine.constraint import Constraint, ConstraintKind
from openglm.errors import RequestError
from openglm.server.sampling_fields import SamplingFields
from openglm.text.answer_grammar import (
    ANY_OBJECT,
    choice_answer,
    choice_grammar,
    client_grammar,
    grammar_answer,
    json_answer,
    regex_answer,
)
from openglm.text.messages import JSON, Tool
from openglm.text.schema_limits import check_schema
from openglm.text.tool_grammar import calls_grammar, each_call_grammar, is_strict

Write = Callable[[Sequence[Tool], bool], str]
"""A form's grammar, given the tools that may be called instead and whether only one call may be made."""


class FormFields(SamplingFields):
    """The fields of a body that say how the answer must look, on top of those that say how tokens are chosen."""

    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    guided_json: str | dict[str, Any] | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    json_schema: str | dict[str, Any] | None = None
    regex: str | None = None
    ebnf: str | None = None


@dataclass(frozen=True)
class Form:
    """How a text answer must look, and the field that says so."""

    param: str
    write: Write
    plain: Callable[[], tuple[ConstraintKind, str]]
    """The same without the layout of a turn around it, for raw prompts."""


@dataclass(frozen=True)
class _Choice:
    """What `tool_choice` comes to."""

    required: bool
    tools: tuple[Tool, ...]
    limited: bool = False
    """Whether some of the offered tools may not be called."""
    one_call: bool = False


def hides_tools(fields: FormFields) -> bool:
    """Whether the model is not to be shown the tools, because it must not call any."""
    return fields.tool_choice == "none"


def read_constraint(fields: FormFields, tools: tuple[Tool, ...], limits: RequestLimits, *, form: Form | None = None) -> Constraint | None:
    """The constraint of a request whose offered tools are `tools`. `form` is one that the dialect read itself. Raises `RequestError`
    naming the field."""
    form = form or _form(fields, limits)
    choice = _choice(fields.tool_choice, tools)
    one_call = choice.one_call or fields.parallel_tool_calls is False
    if choice.required:
        _check_tools(choice.tools, limits)
        return Constraint("lark", calls_grammar(choice.tools, one_call=one_call), reads_calls=True, param="tools")
    if form is not None:
        _check_tools(choice.tools, limits)
        return Constraint("lark", form.write(choice.tools, one_call), reads_calls=bool(tools), param=form.param)
    if choice.limited or any(is_strict(tool) for tool in choice.tools):
        _check_tools(choice.tools, limits)
        return Constraint("lark", each_call_grammar(choice.tools, one_call=one_call), at="call", reads_calls=True, param="tools")
    return None


def read_plain_constraint(fields: FormFields, limits: RequestLimits) -> Constraint | None:
    """The constraint on the continuation of a raw prompt, to which tools mean nothing."""
    form = _form(fields, limits)
    if form is None:
        return None
    kind, text = form.plain()
    return Constraint(kind, text, param=form.param)


def _choice(choice: str | dict[str, Any] | None, tools: tuple[Tool, ...]) -> _Choice:
    if choice is None or choice in ("none", "auto"):
        return _Choice(False, tools)
    if choice != "required" and not isinstance(choice, dict):
        raise RequestError('tool_choice must be "none", "auto" or "required", or name a function', param="tool_choice")
    if not tools:
        raise RequestError("tool_choice demands a call, but there are no tools", param="tool_choice")
    if isinstance(choice, str):
        return _Choice(True, tools)
    kind = choice.get("type")
    if kind == "function":
        return _Choice(True, (_named(choice, tools, "tool_choice"),), one_call=True)
    if kind == "allowed_tools":
        allowed = choice.get("allowed_tools", choice)
        listed = allowed.get("tools") if isinstance(allowed, dict) else None
        mode = allowed.get("mode", "auto") if isinstance(allowed, dict) else None
        if not isinstance(listed, list) or not listed or mode not in ("auto", "required"):
            where = "tool_choice.allowed_tools"
            raise RequestError(f'{where} needs a list of tools, and "auto" or "required" as mode', param=where)
        chosen = [_named(item, tools, f"tool_choice.allowed_tools.tools[{i}]") for i, item in enumerate(listed)]
        kept = tuple(tool for tool in tools if tool in chosen)
        return _Choice(mode == "required", kept, limited=len(kept) < len(tools))
    raise RequestError('tool_choice.type must be "function" or "allowed_tools"', param="tool_choice.type")


def _named(item: JSON, tools: tuple[Tool, ...], where: str) -> Tool:
    """The tool that `{"type": "function", "function": {"name": ...}}` means; the name may also stand outside."""
    inner = item.get("function", item) if isinstance(item, dict) else None
    name = inner.get("name") if isinstance(inner, dict) else None
    for tool in tools:
        if tool.name == name:
            return tool
    raise RequestError(f"{where} must name one of the tools of this request", param=where)


def _check_tools(tools: tuple[Tool, ...], limits: RequestLimits) -> None:
    size = 0
    for tool in tools:
        check_schema(tool.parameters, f"tools.{tool.name}.parameters")
        size += len(json.dumps(tool.parameters))
    if size > limits.schema_chars:
        raise RequestError(f"the schemas of the tools have {size} characters; at most {limits.schema_chars} are taken", param="tools")


def _form(fields: FormFields, limits: RequestLimits) -> Form | None:
    forms = [
        _response_format(fields.response_format, limits),
        _structured_outputs(fields.structured_outputs, limits),
        _json("guided_json", fields.guided_json, limits),
        _regex("guided_regex", fields.guided_regex, limits),
        _choices("guided_choice", fields.guided_choice, limits),
        _grammar("guided_grammar", fields.guided_grammar, limits),
        _json("json_schema", fields.json_schema, limits),
        _regex("regex", fields.regex, limits),
        _grammar("ebnf", fields.ebnf, limits),
    ]
    given = [form for form in forms if form is not None]
    if len(given) > 1:
        raise RequestError(f"{given[0].param} and {given[1].param} both say how the answer must look; give one", param=given[1].param)
    return given[0] if given else None


def _response_format(value: dict[str, Any] | None, limits: RequestLimits) -> Form | None:
    kind = None if value is None else value.get("type")
    if value is None or kind in (None, "text"):
        return None
    if kind == "json_object":
        return _any_object("response_format")
    if kind != "json_schema":
        where = "response_format.type"
        raise RequestError(f'{where} must be "text", "json_object" or "json_schema"', param=where)
    where = "response_format.json_schema"
    inner = value.get("json_schema")
    if not isinstance(inner, dict) or "schema" not in inner:
        raise RequestError(f"{where}.schema is missing", param=where)
    return schema_form(f"{where}.schema", inner["schema"], limits, param=where, strict=inner.get("strict") is True)


def _any_object(param: str) -> Form:
    return Form(
        param,
        lambda tools, one: json_answer(ANY_OBJECT, tools=tools, one_call=one),
        lambda: ("json_schema", json.dumps(ANY_OBJECT)),
    )


def schema_form(where: str, schema: Any, limits: RequestLimits, *, param: str, strict: bool) -> Form:
    """An answer that is JSON of this schema. `where` is the place of the schema in the request, `param` what errors are about."""
    checked = _schema(where, schema, limits)
    return Form(
        param,
        lambda tools, one: json_answer(checked, strict=strict, tools=tools, one_call=one),
        lambda: ("json_schema", json.dumps(checked)),
    )


def _structured_outputs(value: dict[str, Any] | None, limits: RequestLimits) -> Form | None:
    given = {key: item for key, item in (value or {}).items() if key in _STRUCTURED and item not in (None, False)}
    if not given:
        return None
    if len(given) > 1:
        raise RequestError(f"structured_outputs takes one of: {', '.join(_STRUCTURED)}", param="structured_outputs")
    ((key, item),) = given.items()
    where = f"structured_outputs.{key}"
    match key:
        case "json":
            return _json(where, item, limits)
        case "json_object":
            return _any_object(where)
        case "regex":
            return _regex(where, item, limits)
        case "choice":
            return _choices(where, item, limits)
        case "grammar":
            return _grammar(where, item, limits)
    raise RequestError(f"{where} is not supported; use json, regex, choice or grammar", param=where, code="unsupported_parameter")


def _json(where: str, value: Any, limits: RequestLimits) -> Form | None:
    if value is None:
        return None
    if isinstance(value, str):
        if len(value) > limits.schema_chars:
            raise RequestError(f"{where} has more than {limits.schema_chars} characters", param=where)
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise RequestError(f"{where} is not valid JSON", param=where) from None
    schema = _schema(where, value, limits)
    return Form(where, lambda tools, one: json_answer(schema, tools=tools, one_call=one), lambda: ("json_schema", json.dumps(schema)))


def _schema(where: str, schema: Any, limits: RequestLimits) -> dict[str, Any]:
    check_schema(schema, where)
    size = len(json.dumps(schema))
    if size > limits.schema_chars:
        raise RequestError(f"{where} has {size} characters; at most {limits.schema_chars} are taken", param=where)
    checked: dict[str, Any] = schema
    return checked


def _regex(where: str, value: Any, limits: RequestLimits) -> Form | None:
    if value is None:
        return None
    pattern = _text(where, value, limits.regex_chars)
    return Form(where, lambda tools, one: regex_answer(pattern, tools=tools, one_call=one), lambda: ("regex", pattern))


def _grammar(where: str, value: Any, limits: RequestLimits) -> Form | None:
    if value is None:
        return None
    text = _text(where, value, limits.grammar_chars)
    return Form(
        where,
        lambda tools, one: grammar_answer(text, param=where, tools=tools, one_call=one),
        lambda: ("lark", client_grammar(text, param=where)),
    )


def _choices(where: str, value: Any, limits: RequestLimits) -> Form | None:
    if value is None:
        return None
    if not isinstance(value, list) or not 1 <= len(value) <= limits.answer_choices:
        raise RequestError(f"{where} must be a list of 1 to {limits.answer_choices} texts", param=where)
    choices = [_text(where, choice, limits.regex_chars) for choice in value]
    return Form(where, lambda tools, one: choice_answer(choices, tools=tools, one_call=one), lambda: ("lark", choice_grammar(choices)))


def _text(where: str, value: Any, limit: int) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= limit:
        raise RequestError(f"{where} must be a text of 1 to {limit} characters", param=where)
    return value


_STRUCTURED: Final = ("json", "json_object", "regex", "choice", "grammar", "structural_tag")
