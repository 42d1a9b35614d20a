"""The grammar of GLM's tool calls for a list of tools, as Lark text in llguidance's dialect.

    <tool_call>get_weather
    <arg_key>city</arg_key>
    <arg_value>Paris</arg_value>
    </tool_call>

Tags are special tokens, so they are written bare in the grammar and no text can spell them (ordinary text that looks like one is kept
out by the engine). The newlines of GLM-4.5 are optional: both layouts are read in the same way, and a model keeps to its own.

Arguments come in any order, each at most once, the required ones always: `args::n` carries a bit per argument (llguidance's parametric
rules). A tool with more arguments than bits takes them in the order of its schema. Keys that the schema does not list are
written only where it says something about `additionalProperties`, or lists no keys at all.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from openglm.errors import RequestError
from openglm.text.argument_grammar import ANY_TEXT, PARAM, ArgumentGrammar, GrammarText, to_literal
from openglm.text.messages import JSON, Tool
from openglm.text.schema_types import resolve

MAX_CALLS: Final = 32
"""Calls in one answer where several are allowed: a model that is made to call sometimes never stops."""

GAP: Final = "GAP"
"""The layout's optional newline; `GAP_LINE` defines it."""
GAP_LINE: Final = r"GAP: /\n?/"

_MAX_BITS: Final = 60
_MAX_SHAPES: Final = 16
_FREE_KEY: Final = "/[A-Za-z0-9_.-]{1,64}/"
_WRITABLE_KEY: Final = re.compile(r"[^\s<](?:[^<]*[^\s<])?")  # what the turn parser gives back unchanged


@dataclass(frozen=True)
class _Shape:
    """One way to fill an object: its properties in order, those that must be there, and what other keys hold (False: there are none)."""

    properties: dict[str, JSON]
    required: frozenset[str]
    others: JSON


def is_strict(tool: Tool) -> bool:
    """Whether the client wants calls of this tool to match its schema whatever the model thinks."""
    function = tool.definition.get("function")
    return isinstance(function, dict) and function.get("strict") is True


def call_rules(tools: Sequence[Tool]) -> tuple[str, list[str]]:
    """The name of a rule for one call of any of these tools, and the definitions it needs (`GAP_LINE` aside)."""
    text = GrammarText()
    try:
        bodies = [_tool(tool, text) for tool in tools]
    except RecursionError:
        raise RequestError("the schemas of the tools refer to each other too deeply", param=PARAM) from None
    call = text.rule(f"<tool_call> ({' | '.join(bodies)}) </tool_call>")
    return call, text.lines()


def calls_grammar(tools: Sequence[Tool], *, one_call: bool) -> str:
    """A whole answer that consists of calls, at least one."""
    call, lines = call_rules(tools)
    more = "" if one_call else f" ({GAP} {call}){{0,{MAX_CALLS - 1}}}"
    return "\n".join([f"start: {GAP} {call}{more}", GAP_LINE, *lines])


def each_call_grammar(tools: Sequence[Tool], *, one_call: bool) -> str:
    """Calls one after another, without what stands between them: for an answer that may call and may not."""
    call, lines = call_rules(tools)
    return "\n".join([f"start: {call}{'' if one_call else '+'}", GAP_LINE, *lines])


def _tool(tool: Tool, text: GrammarText) -> str:
    where = f"the parameters of tool {tool.name}"
    strict = is_strict(tool)
    arguments = ArgumentGrammar(tool.parameters, text, strict=strict, where=where)
    shapes = _shapes(tool.parameters, tool.parameters, strict=strict, where=where)
    bodies = [_arguments(shape, arguments, text, where=where) for shape in shapes]
    return f"{to_literal(tool.name)} {GAP} ({' | '.join(bodies)})"


def _arguments(shape: _Shape, arguments: ArgumentGrammar, text: GrammarText, *, where: str) -> str:
    """A rule for the arguments of one call."""
    for key in shape.required:
        if not _WRITABLE_KEY.fullmatch(key):
            raise RequestError(f"{where}: the required property {key!r:.40} cannot be written as an argument", param=PARAM)
    keys = [key for key in shape.properties if _WRITABLE_KEY.fullmatch(key) and shape.properties[key] is not False]
    keys.sort(key=lambda key: key not in shape.required)  # stable: required ones first, which get the lowest bits
    written = {key: text.rule(_argument(to_literal(key), arguments.value(key, shape.properties[key]))) for key in keys}
    extra = None
    if shape.others is not False:
        taken = "".join(f" & ~{to_literal(key)}" for key in shape.properties)
        free_key = text.terminal(f"{_FREE_KEY}{taken}")
        value = text.terminal(ANY_TEXT) if shape.others is True else arguments.value("", shape.others)
        extra = text.rule(_argument(free_key, value))
    if len(keys) > _MAX_BITS:
        in_order = [written[key] if key in shape.required else f"{written[key]}?" for key in shape.properties if key in written]
        return text.rule(" ".join(in_order))
    if not keys:
        return f"{extra}*" if extra is not None else '""'
    num_required = sum(key in shape.required for key in keys)
    complete = f'"" %if is_ones([0:{num_required}])' if num_required else '""'
    steps = [f"{written[key]} SELF::set_bit({bit}) %if bit_clear({bit})" for bit, key in enumerate(keys)]
    if extra is not None:
        steps.append(f"{extra} SELF::_")
    return f"{text.parametric(' | '.join([complete, *steps]))}::0x0"


def _argument(key: str, value: str) -> str:
    return f"<arg_key> {key} </arg_key> {GAP} <arg_value> ({value}) </arg_value> {GAP}"


def _shapes(parameters: JSON, root: dict[str, JSON], *, strict: bool, where: str, depth: int = 0) -> list[_Shape]:
    """The ways in which a call's arguments may be filled, according to a schema and the alternatives in it."""
    schema = resolve(root, parameters)
    if not isinstance(schema, dict) or depth > _MAX_SHAPES:
        return [_Shape({}, frozenset(), True)]
    unknown = schema.keys() & _UNSUPPORTED
    if strict and unknown:
        raise RequestError(f"{where}: the keyword {min(unknown)!r} is not supported for the arguments as a whole", param=PARAM)
    listed = schema.get("properties")
    properties = dict(listed) if isinstance(listed, dict) else {}
    named = schema.get("required")
    required = frozenset(key for key in named if isinstance(key, str)) if isinstance(named, list) else frozenset()
    others = schema.get("additionalProperties", not properties and not any(word in schema for word in _ALTERNATIVES))
    shapes = [_Shape(properties, required, others)]
    for word in _ALTERNATIVES:
        branches = schema.get(word)
        if not isinstance(branches, list) or not branches:
            continue
        found = [_shapes(branch, root, strict=strict, where=where, depth=depth + 1) for branch in branches]
        if word == "allOf":
            for alternatives in found:
                shapes = [_joined(shape, other) for shape in shapes for other in alternatives]
        else:
            shapes = [_joined(shape, other) for shape in shapes for alternatives in found for other in alternatives]
        if len(shapes) > _MAX_SHAPES:
            raise RequestError(f"{where}: the schema combines more than {_MAX_SHAPES} alternatives", param=PARAM)
    return [_completed(shape) for shape in shapes] if depth == 0 else shapes


def _joined(one: _Shape, other: _Shape) -> _Shape:
    """Both at once."""
    properties = dict(one.properties)
    for key, schema in other.properties.items():
        properties[key] = {"allOf": [properties[key], schema]} if key in properties and properties[key] != schema else schema
    is_open = one.others is not False and other.others is not False and not properties
    return _Shape(properties, one.required | other.required, is_open)


def _completed(shape: _Shape) -> _Shape:
    """Required keys are properties too, though the schema may say nothing else of them."""
    missing = {key: (shape.others if isinstance(shape.others, dict) else True) for key in sorted(shape.required - shape.properties.keys())}
    return _Shape({**shape.properties, **missing}, shape.required, shape.others)


_ALTERNATIVES: Final = ("allOf", "anyOf", "oneOf")
_UNSUPPORTED: Final = frozenset(
    (
        *("if", "then", "else", "not", "patternProperties", "unevaluatedProperties", "dependentSchemas"),
        *("dependentRequired", "minProperties", "maxProperties", "propertyNames"),
    )
)
