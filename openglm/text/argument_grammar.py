"""How one argument of a tool call may be written: a piece of Lark grammar for its value between `<arg_value>` and `</arg_value>`.

GLM writes strings bare and everything else as JSON, and the turn parser tells them apart by the schema's types
(`schema_types.convert`). So a value of schema S may be written as any text t with convert(t) in S:

- strings as themselves, under the schema's length, pattern, format or list of values. Where other types are allowed too, a text that
  the parser would read as one of them (`12`, `null`, `{...`) is no string;
- other values as JSON on one line, by `%json`. Numbers have no exponent there and at most 15 digits in front of the point where the
  schema sets no bound, for the parser takes a number beyond float64 for a string; properties that an object's schema does not list are
  not written unless it has an `additionalProperties`.

`strict` schemas are honoured in full or refused. Others are honoured as far as this can: unknown keywords, formats and patterns with
look-around are passed over, as a client's unchecked tool list must not make its request fail.
"""

from __future__ import annotations

import json
from typing import Any, Final

import llguidance

from openglm.errors import RequestError
from openglm.text.messages import JSON
from openglm.text.schema_types import Types, argument_types, convert, resolve, schema_types, to_json

ANY_TEXT: Final = "/(?s:.*)/"
PARAM: Final = "tools"
"""The request's field that errors name."""

_ANNOTATIONS: Final = frozenset(
    "title description default examples example deprecated readOnly writeOnly $comment $schema $id $defs definitions nullable".split()
)
_STRING_WORDS: Final = frozenset(("type", "minLength", "maxLength", "pattern", "format", "contentEncoding", "contentMediaType"))
_COMBINATORS: Final = frozenset("allOf anyOf oneOf $ref if then else not patternProperties unevaluatedProperties dependentSchemas".split())
_JSON_STYLE: Final = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
_NUMBER_BOUNDS: Final = frozenset(("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum", "multipleOf"))
_LARGEST: Final = 10**15 - 1
_MAX_REFERENCES: Final = 256
_MAX_NESTING: Final = 16
_SPACE: Final = r"[\s\x1c-\x1f]*"  # what `str.strip` removes
_FORMATS: Final = {
    "date": r"[0-9]{4}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|[12][0-9]))",
    "time": r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])",
    "email": r"[A-Za-z0-9_+-]+(\.[A-Za-z0-9_+-]+)*@[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)+",
    "uuid": r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
    "ipv4": r"((25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])\.){3}(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])",
    "uri": r"[a-z][a-z0-9+.-]*://[A-Za-z0-9.-]+(:[0-9]{1,5})?(/[A-Za-z0-9._~%!$&'()*+,;=:@/-]*)?(\?[A-Za-z0-9._~%=&+-]*)?",
}
_FORMATS["date-time"] = f"{_FORMATS['date']}T{_FORMATS['time']}"


class GrammarText:
    """Rules and terminals of one grammar as they are written; equal bodies get one name."""

    def __init__(self) -> None:
        self._names: dict[tuple[str, str], str] = {}

    def rule(self, body: str) -> str:
        """A name for a rule of the grammar."""
        return self._name("r", body)

    def terminal(self, body: str) -> str:
        """A name for a terminal, a regular expression of its own."""
        return self._name("T", body)

    def parametric(self, body: str) -> str:
        """A name for a rule with a parameter; `SELF` in its body is that rule."""
        return self._name("p", body)

    def lines(self) -> list[str]:
        """The definitions."""
        return [_definition(kind, name, body) for (kind, body), name in self._names.items()]

    def _name(self, kind: str, body: str) -> str:
        return self._names.setdefault((kind, body), f"{kind}{len(self._names)}")


def _definition(kind: str, name: str, body: str) -> str:
    return f"{name}::_ : {body.replace('SELF::', f'{name}::')}" if kind == "p" else f"{name}: {body}"


class ArgumentGrammar:
    """Writes the values of one tool's arguments."""

    def __init__(self, parameters: dict[str, JSON], text: GrammarText, *, strict: bool, where: str) -> None:
        """`parameters` is the tool's schema; `where` names it in errors."""
        self._parameters = parameters
        self._text = text
        self._strict = strict
        self._where = where

    def value(self, key: str, schema: JSON) -> str:
        """The alternatives for a value of argument `key`, which must match `schema`."""
        types = argument_types(self._parameters, key)
        alternatives = self._alternatives(schema, types, depth=0)
        if not alternatives:
            raise RequestError(f"{self._where}: no value of {key!r:.40} can be written", param=PARAM)
        return " | ".join(dict.fromkeys(alternatives))

    def _alternatives(self, schema: JSON, types: Types, *, depth: int) -> list[str]:
        schema = resolve(self._parameters, schema)
        if depth > _MAX_NESTING:
            raise RequestError(f"{self._where}: alternatives nest deeper than {_MAX_NESTING} levels", param=PARAM)
        if schema is False:
            return []
        if not isinstance(schema, dict):
            return [self._text.terminal(ANY_TEXT)] if types is None else self._any_of(types)
        words = {word: value for word, value in schema.items() if word not in _ANNOTATIONS and not word.startswith("x-")}
        if not words:
            return self._alternatives(True, types, depth=depth)
        for combinator in ("anyOf", "oneOf", "allOf"):
            branches = words.get(combinator)
            if words.keys() == {combinator} and isinstance(branches, list) and (combinator != "allOf" or len(branches) == 1):
                self._check_exclusive(combinator, branches)
                found = [one for branch in branches for one in self._alternatives(branch, types, depth=depth + 1)]
                return found + ([to_literal("null")] if schema.get("nullable") is True else [])
        own = schema_types(self._parameters, schema)
        if "enum" in words or "const" in words:
            return self._listed(words, own, types)
        allowed = own if own is not None else _ALL
        found = [self._string(words, types)] if "string" in allowed else []
        others = allowed - {"string"}
        if schema.get("nullable") is True:
            found.append(to_literal("null"))
            others -= {"null"}
            own = own - {"null"} if own is not None else None
        if others:
            found.append(self._json(schema, own, others))
        return found

    def _any_of(self, types: frozenset[str]) -> list[str]:
        """A value of any kind, where the parser's types are those of other schemas of the same argument."""
        found = [self._string({}, types)] if "string" in types else []
        return [*found, self._json({}, None, types - {"string"})] if types - {"string"} else found

    def _check_exclusive(self, combinator: str, branches: list[JSON]) -> None:
        if combinator != "oneOf" or not self._strict:
            return
        seen: set[str] = set()
        for branch in branches:
            own = schema_types(self._parameters, branch)
            if own is None or own & seen:
                raise RequestError(f"{self._where}: oneOf is supported where its branches differ in type; use anyOf", param=PARAM)
            seen |= own

    def _listed(self, words: dict[str, JSON], own: Types, types: Types) -> list[str]:
        """Literal values: those that the parser reads as what they are."""
        if self._strict and words.keys() - {"enum", "const", "type"}:
            raise RequestError(f"{self._where}: enum and const are supported without other keywords", param=PARAM)
        values = words["enum"] if isinstance(words.get("enum"), list) else []
        if "const" in words:
            values = [words["const"]] if "enum" not in words or words["const"] in values else []
        written = [(value, value if isinstance(value, str) else to_json(value)) for value in values]
        return [to_literal(text) for value, text in written if _same(convert(text, types), value) and _is_of(value, own)]

    def _string(self, words: dict[str, JSON], types: Types) -> str:
        unknown = words.keys() - _STRING_WORDS
        if self._strict and unknown and not _only_for_others(unknown):
            raise RequestError(f"{self._where}: the keyword {min(unknown)!r:.40} is not supported for strings", param=PARAM)
        parts = [_length(words)]
        pattern = words.get("pattern")
        if isinstance(pattern, str) and (self._strict or _is_usable(pattern)):
            parts.append(f"({searched(pattern)})")
        form = words.get("format")
        if isinstance(form, str) and form in _FORMATS:
            parts.append(f"/{llguidance.regex_to_lark(_FORMATS[form], 'dw')}/")
        elif isinstance(form, str) and self._strict:
            raise RequestError(f"{self._where}: the format {form!r:.40} is not supported; known: {', '.join(_FORMATS)}", param=PARAM)
        if len(parts) > 1 and parts[0] == ANY_TEXT:
            del parts[0]
        taken = _read_otherwise(types)
        if taken is not None:
            parts.append(f"~({taken})")
        if len(parts) > 1 and ANY_TEXT not in parts and taken is not None:
            parts.insert(0, ANY_TEXT)  # a negation alone may match what is no UTF-8
        return self._text.terminal(" & ".join(parts))

    def _json(self, schema: dict[str, JSON], own: Types, others: frozenset[str]) -> str:
        narrowed = schema if own == others else {"type": sorted(others), **({"allOf": [schema]} if schema else {})}
        if own is not None and own != others and isinstance(schema.get("type"), list):
            narrowed = {**schema, "type": sorted(others)}
        closed = _Closed(self._parameters).document(narrowed)
        closed["x-guidance"] = {**_JSON_STYLE, "lenient": not self._strict}
        return self._text.rule(f"%json {json.dumps(closed)}")


class _Closed:
    """A copy of a schema that stands on its own: what it refers to comes along, and numbers and objects are bounded."""

    def __init__(self, root: JSON) -> None:
        self._root = root
        self._definitions: dict[str, JSON] = {}
        self._names: dict[tuple[str, bool], str] = {}
        self._uses_any = False

    def document(self, schema: JSON) -> dict[str, JSON]:
        """The copy, with its definitions."""
        copy = self._copy(schema, merged=False)
        document = dict(copy) if isinstance(copy, dict) else {"allOf": [copy]}
        if self._uses_any:
            any_value = {"$ref": "#/$defs/any"}
            self._definitions["any"] = {
                "anyOf": [
                    {"type": ["null", "boolean", "string"]},
                    {"type": "number", "minimum": -_LARGEST, "maximum": _LARGEST},
                    {"type": "array", "items": any_value},
                    {"type": "object", "additionalProperties": any_value},
                ]
            }
        if self._definitions:
            document["$defs"] = self._definitions
        return document

    def _copy(self, schema: JSON, *, merged: bool) -> JSON:
        """`merged`: another schema says more about the same value."""
        if schema is True or (isinstance(schema, dict) and not (schema.keys() - _ANNOTATIONS)):
            if merged:
                return True
            self._uses_any = True
            return {"$ref": "#/$defs/any"}
        if not isinstance(schema, dict):
            return schema
        copy = {word: value for word, value in schema.items() if word not in ("$defs", "definitions", "$id", "$schema")}
        combined = merged or bool(copy.keys() & _COMBINATORS)
        alone = {word for word in copy if word not in _ANNOTATIONS and not word.startswith("x-")}
        for word in ("properties", "patternProperties"):
            if isinstance(copy.get(word), dict):
                copy[word] = {key: self._copy(value, merged=False) for key, value in copy[word].items()}
        for word in ("items", "additionalProperties", "additionalItems", "contains", "not"):
            if isinstance(copy.get(word), dict) or (word != "not" and copy.get(word) is True):
                copy[word] = self._copy(copy[word], merged=word == "not")
        if isinstance(copy.get("prefixItems"), list):
            copy["prefixItems"] = [self._copy(value, merged=False) for value in copy["prefixItems"]]
        for word in ("anyOf", "oneOf", "allOf"):
            if isinstance(copy.get(word), list):
                inner = merged or word == "allOf" or len(alone) > 1
                copy[word] = [self._copy(branch, merged=inner) for branch in copy[word]]
        if isinstance(copy.get("$ref"), str):
            copy["$ref"] = f"#/$defs/{self._definition(copy['$ref'], merged=merged or len(alone) > 1)}"
        if not combined:
            self._bound(copy)
        return copy

    def _bound(self, node: dict[str, JSON]) -> None:
        declared = node.get("type")
        types = set(declared) if isinstance(declared, list) else {declared}
        if types & {"number", "integer"} and not node.keys() & _NUMBER_BOUNDS:
            node["minimum"], node["maximum"] = -_LARGEST, _LARGEST
        properties, required = node.get("properties"), node.get("required", [])
        if isinstance(properties, dict):
            if isinstance(required, list) and all(isinstance(key, str) and key in properties for key in required):
                node.setdefault("additionalProperties", False)
        elif "object" in types and "additionalProperties" not in node:
            node["additionalProperties"] = self._copy(True, merged=False)
        if "array" in types and "items" not in node and "prefixItems" not in node:
            node["items"] = self._copy(True, merged=False)

    def _definition(self, reference: str, *, merged: bool) -> str:
        name = self._names.get((reference, merged))
        if name is None:
            if len(self._names) >= _MAX_REFERENCES:
                raise RequestError(f"a tool's schema follows more than {_MAX_REFERENCES} references", param=PARAM)
            name = self._names[reference, merged] = f"d{len(self._names)}"
            self._definitions[name] = self._copy(resolve(self._root, {"$ref": reference}), merged=merged)
        return name


_ALL: Final = frozenset({"string", "number", "integer", "boolean", "array", "object", "null"})


def to_literal(text: str) -> str:
    """A Lark literal that matches exactly this text."""
    return json.dumps(text, ensure_ascii=False)


def searched(pattern: str) -> str:
    """A JSON schema pattern, which may match anywhere, as a terminal that must match from end to end."""
    branches = []
    for branch in _split_alternatives(pattern):
        start = "" if branch.startswith("^") else "(?s:.*)"
        end = "" if _ends_anchored(branch) else "(?s:.*)"
        body = branch.removeprefix("^")
        body = body[:-1] if _ends_anchored(branch) else body
        branches.append(f"/{start}(?:{llguidance.regex_to_lark(body, 'dw')}){end}/" if body or start or end else '""')
    return " | ".join(branches)


def _split_alternatives(pattern: str) -> list[str]:
    """The branches of the outermost `|`."""
    branches, depth, in_class, start = [], 0, False, 0
    skip = False
    for i, character in enumerate(pattern):
        if skip:
            skip = False
        elif character == "\\":
            skip = True
        elif in_class:
            in_class = character != "]"
        elif character == "[":
            in_class = True
        elif character in "()":
            depth += 1 if character == "(" else -1
        elif character == "|" and depth == 0:
            branches.append(pattern[start:i])
            start = i + 1
    return [*branches, pattern[start:]]


def _ends_anchored(branch: str) -> bool:
    stripped = branch.removesuffix("$")
    return stripped != branch and (len(stripped) - len(stripped.rstrip("\\"))) % 2 == 0


def _is_usable(pattern: str) -> bool:
    return not llguidance.LLMatcher.validate_grammar(f"start: T\nT: {searched(pattern)}")


def _length(words: dict[str, JSON]) -> str:
    low, high = words.get("minLength"), words.get("maxLength")
    low = low if isinstance(low, int) and not isinstance(low, bool) else 0
    if not isinstance(high, int) or isinstance(high, bool):
        return f"/(?s:.{{{low},}})/" if low > 0 else ANY_TEXT
    return f"/(?s:.{{{max(0, low)},{high}}})/"


def _read_otherwise(types: Types) -> str | None:
    """Texts that the parser does not read as strings, given all types of the argument."""
    types, quotes = (_ALL, '"') if types is None else (types, "")
    heads = []
    if types & {"number", "integer"}:
        heads.append(rf"/{_SPACE}-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?{_SPACE}/")
    if "boolean" in types:
        heads.append(f"/{_SPACE}(true|false|True|False){_SPACE}/")
    if "null" in types:
        heads.append(f"/{_SPACE}(null|None){_SPACE}/")
    opening = quotes + ("\\{" if "object" in types else "") + ("\\[" if "array" in types else "")
    if opening:
        heads.append(f"/{_SPACE}[{opening}](?s:.*)/")
    return " | ".join(heads) if heads else None


def _only_for_others(words: Any) -> bool:
    """Whether keywords say nothing about strings."""
    return not words & (_COMBINATORS | {"enum", "const"})


def _same(read: JSON, value: JSON) -> bool:
    return type(read) is type(value) and to_json(read) == to_json(value)


def _is_of(value: JSON, own: Types) -> bool:
    if own is None:
        return True
    names = {bool: {"boolean"}, str: {"string"}, int: {"integer", "number"}, list: {"array"}, dict: {"object"}, type(None): {"null"}}
    return bool(own & names.get(type(value), {"number"}))
