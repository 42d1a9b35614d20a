"""Checks that every wire dialect makes on the values it reads. Errors name the place and never repeat the value."""

from __future__ import annotations

import json
import re
from typing import Any, Final

from openglm.errors import RequestError
from openglm.text.messages import JSON

_NAME: Final = re.compile(r"[^\s<>]{1,128}")
_MAX_DEPTH: Final = 64


def wrong_type(where: str, expected: str, got: JSON) -> RequestError:
    """The error about a value of the wrong type."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    shown = names.get(type(got), "a number")
    return RequestError(f"{where}: expected {expected}, got {shown}", param=where)


def optional_string(source: dict[str, JSON], field: str, where: str) -> str | None:
    """A field that may be absent or null."""
    value = source.get(field)
    if value is not None and not isinstance(value, str):
        raise wrong_type(f"{where}.{field}", "a string", value)
    return value


def tool_name(source: dict[str, JSON], where: str) -> str:
    """The name of a function: what the model can write between its tags."""
    name = source.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise RequestError(f"{where}.name: expected a name of 1 to 128 characters without white space, < or >", param=f"{where}.name")
    return name


def call_arguments(arguments: JSON, where: str) -> dict[str, JSON]:
    """Arguments of a call in history: an object, or its JSON text; nothing is {}."""
    if arguments is None:
        return {}
    if isinstance(arguments, str):
        if not arguments.strip():
            return {}
        try:
            arguments = json.loads(arguments, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise RequestError(f"{where}: not valid JSON; expected an object as JSON text", param=where) from error
    if not isinstance(arguments, dict):
        raise wrong_type(where, "a JSON object", arguments)
    check_depth(arguments, where)
    return arguments


def check_depth(value: JSON, where: str) -> None:
    """Refuse what nests deeper than any honest schema."""
    level: list[Any] = [value]
    for _ in range(_MAX_DEPTH):
        nested = [item for item in level if isinstance(item, dict | list)]
        if not nested:
            return
        level = [child for item in nested for child in (item.values() if isinstance(item, dict) else item)]
    raise RequestError(f"{where}: nested more than {_MAX_DEPTH} levels deep", param=where)


def _refuse_constant(name: str) -> JSON:
    raise ValueError(f"{name} is not JSON")
