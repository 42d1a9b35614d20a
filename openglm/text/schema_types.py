"""Which JSON types a tool's schema allows for one argument, and how argument text becomes a JSON value.

GLM writes every argument as bare text between tags, so `12` may be a number or a string and only the schema can tell. Types
are computed by a bounded walk over the client's schema (`type`, lists of types, `anyOf` / `oneOf` / `allOf`, `enum`, `const`,
`$ref` into the same document, `nullable`); anything not understood makes the argument *untyped*, never an error.
Conversion is JSON only: nothing the model writes is ever evaluated.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import unquote

from openglm.text.messages import JSON

Types = frozenset[str] | None
"""The allowed JSON types; None when the schema says nothing (any value, strings included)."""

_TYPES: Final = frozenset({"string", "number", "integer", "boolean", "array", "object", "null"})
_LITERALS: Final = {"true": "boolean", "false": "boolean", "null": "null"}
_PYTHON_LITERALS: Final = {"True": "true", "False": "false", "None": "null"}  # models trained on Python slip
_WORDS: Final = {**_LITERALS, **{python: _LITERALS[word] for python, word in _PYTHON_LITERALS.items()}}
STRING_ONLY: Final[Types] = frozenset({"string"})

_MAX_NODES: Final = 256  # schema nodes looked at for one argument
_MAX_DEPTH: Final = 64  # nesting of an argument value; json.dumps recurses
_BESIDE_REFERENCES: Final = frozenset(("$ref", "$defs", "definitions", "title", "description", "default", "examples"))
MAX_SCALAR: Final = 512
"""Characters after which text that is no object, array or quoted string yet is a bare string."""


def argument_types(parameters: dict[str, JSON] | None, key: str) -> Types:
    """The types that the parameter schema `parameters` allows for the argument `key`."""
    if parameters is None:
        return None
    walk = _Walk(parameters)
    found = [walk.types(schema) for schema in walk.property_schemas(parameters, key)]
    return _union(found)


def schema_types(document: dict[str, JSON], schema: JSON) -> Types:
    """The types that `schema`, a part of `document`, allows."""
    return _Walk(document).types(schema)


def resolve(document: JSON, schema: JSON) -> JSON:
    """The schema that a chain of plain references leads to; None where one leads nowhere or in a circle."""
    walk = _Walk(document)
    for _ in range(_MAX_DEPTH):
        if not isinstance(schema, dict) or "$ref" not in schema or schema.keys() - _BESIDE_REFERENCES:
            return schema
        schema = walk.resolve(schema["$ref"])
    return None


def could_be_json(head: str, types: Types) -> bool:
    """Whether text that begins with `head` may still turn out to be an allowed value other than a bare string.

    Once False, every longer text is a string. Only the first 513 characters count, so the work per call is bounded.
    """
    text = head[: MAX_SCALAR + 1].lstrip()
    if not text:
        return len(head) <= MAX_SCALAR
    allowed = _TYPES if types is None else types
    first = text[0]
    if first in '{["':
        kind = {"{": "object", "[": "array", '"': "string"}[first]
        return kind in allowed and (kind != "string" or types is None)
    if len(head) > MAX_SCALAR:
        return False
    if first in "-0123456789":
        return bool(allowed & {"number", "integer"}) and not text.rstrip().strip("+-.eE0123456789")
    return any(kind in allowed and word.startswith(text.rstrip()) for word, kind in _WORDS.items())


def convert(text: str, types: Types) -> JSON:
    """The JSON value of argument text; text that is no value of the allowed types stays a string, exactly as written."""
    if types == STRING_ONLY:
        return text
    stripped = text.strip()
    literal = _PYTHON_LITERALS.get(stripped)
    if literal is not None and (types is None or _LITERALS[literal] in types):
        stripped = literal
    try:
        value = _parse(stripped)
    except (ValueError, RecursionError):
        return text
    if isinstance(value, float) and types is not None and "integer" in types and "number" not in types:
        value = int(value) if value.is_integer() and abs(value) < 2**53 else value
    if types is not None and "string" in types and (isinstance(value, str) or not _json_types(value) & types):
        return text
    return value


def to_json(value: JSON) -> str:
    """The one spelling of JSON used in prompts and arguments: `", "` and `": "` separators, nothing escaped needlessly."""
    return json.dumps(value, ensure_ascii=False)


def _parse(text: str) -> JSON:
    """Strict JSON: no NaN, no infinity, bounded nesting, nothing that UTF-8 cannot write."""
    if text.count("[") + text.count("{") > _MAX_DEPTH and _nesting(text) > _MAX_DEPTH:
        raise ValueError("nested too deeply")
    value = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    to_json(value).encode()  # lone surrogates raise UnicodeEncodeError, a ValueError
    return value


def _refuse_constant(name: str) -> JSON:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("number out of range")
    return value


def _nesting(text: str) -> int:
    """Upper bound of the nesting depth (brackets inside strings count too)."""
    depth = deepest = 0
    for character in text:
        if character in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "]}":
            depth -= 1
    return deepest


def _json_types(value: Any) -> frozenset[str]:
    """The schema types a parsed value belongs to; a whole number is an integer and a number."""
    if value is None:
        return frozenset({"null"})
    if isinstance(value, bool):
        return frozenset({"boolean"})
    if isinstance(value, int):
        return frozenset({"integer", "number"})
    if isinstance(value, float):
        return frozenset({"number"})
    if isinstance(value, str):
        return frozenset({"string"})
    return frozenset({"array" if isinstance(value, list) else "object"})


def _union(parts: list[Types]) -> Types:
    known = [part for part in parts if part is not None]
    return frozenset[str]().union(*known) if known and len(known) == len(parts) else None


class _Walk:
    """One bounded look into one schema document."""

    def __init__(self, document: JSON) -> None:
        self._document = document
        self._nodes_left = _MAX_NODES

    def property_schemas(self, schema: JSON, key: str) -> Iterator[JSON]:
        """Every schema that speaks about the property `key` of an object described by `schema`."""
        if not isinstance(schema, dict) or not self._spend():
            return
        properties = schema.get("properties")
        if isinstance(properties, dict) and key in properties:
            yield properties[key]
        elif isinstance(schema.get("additionalProperties"), dict):
            yield schema["additionalProperties"]
        for part in self._parts(schema):
            yield from self.property_schemas(part, key)

    def types(self, schema: JSON) -> Types:
        """The types a value of `schema` may have."""
        if not isinstance(schema, dict) or not self._spend():
            return None
        constraints: list[Types] = [self._declared(schema), _of_values(schema)]
        for word in ("anyOf", "oneOf"):
            branches = schema.get(word)
            if isinstance(branches, list) and branches:
                constraints.append(_union([self.types(branch) for branch in branches]))
        branches = schema.get("allOf")
        if isinstance(branches, list):
            constraints += [self.types(branch) for branch in branches]
        if "$ref" in schema:
            constraints.append(self.types(self.resolve(schema["$ref"])))
        known = [constraint for constraint in constraints if constraint is not None]
        if not known:
            return None
        result = frozenset.intersection(*known) or None
        return result | {"null"} if result and schema.get("nullable") is True else result

    def _declared(self, schema: dict[str, JSON]) -> Types:
        declared = schema.get("type")
        names = declared if isinstance(declared, list) else [declared]
        if declared is None:
            if "properties" in schema:
                return frozenset({"object"})
            return frozenset({"array"}) if "items" in schema else None
        if not all(isinstance(name, str) and name in _TYPES for name in names):
            return None
        return frozenset(names) | ({"integer"} if "number" in names else set())

    def _parts(self, schema: dict[str, JSON]) -> Iterator[JSON]:
        for word in ("anyOf", "oneOf", "allOf"):
            if isinstance(schema.get(word), list):
                yield from schema[word]
        if "$ref" in schema:
            yield self.resolve(schema["$ref"])

    def resolve(self, reference: JSON) -> JSON:
        """The schema a local `$ref` (`#/$defs/Name`) points at; None where it leads nowhere."""
        if not isinstance(reference, str) or not reference.startswith("#"):
            return None
        node = self._document
        for step in reference[1:].split("/")[1:]:
            name = unquote(step).replace("~1", "/").replace("~0", "~")
            if isinstance(node, dict) and name in node:
                node = node[name]
            elif isinstance(node, list) and name.isdecimal() and int(name) < len(node):
                node = node[int(name)]
            else:
                return None
        return node

    def _spend(self) -> bool:
        self._nodes_left -= 1
        return self._nodes_left >= 0


def _of_values(schema: dict[str, JSON]) -> Types:
    values = schema["enum"] if isinstance(schema.get("enum"), list) else []
    if "const" in schema:
        values = [schema["const"]]
    return frozenset[str]().union(*map(_json_types, values)) if values else None
