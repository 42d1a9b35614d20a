"""JSON that means one thing only: bytes of a request body become plain values, or a `RequestError` that says why not.

`msgspec` decides what JSON is: it refuses NaN and Infinity, numbers beyond float64, lone surrogates, invalid UTF-8, a byte
order mark and trailing bytes. Two things it lets pass are refused here: nesting deep enough to exhaust a stack later on,
and an object that names a key twice, of which any two parsers may keep different values. Both are seen by one scan over
the raw bytes: it tracks depth by brackets, and counts keys (strings followed by a colon) to compare with the keys that
survived decoding. The scan runs after decoding, because only in well-formed text does every string close, which is what
keeps it linear.

Messages carry positions and names of limits, never the input itself.
"""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec

from openglm.errors import RequestError

Decoded = TypeVar("Decoded")

# Whole strings are consumed, so brackets inside them do not count.
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"(\s*:)?|[\[{]|[\]}]', re.DOTALL)
_PATH = re.compile(r" - at `\$([^`]*)`$")
_OUT_OF_RANGE = re.compile(r"` [<>]=? |out of range")
_EXPECTED = re.compile(r"^Expected `([^`]+)`(?:, got `([^`]+)`)?")


def decode_json(body: bytes, *, max_depth: int) -> Any:
    """Plain value of a JSON text. Raises `RequestError` for anything that is not exactly one well-formed value."""
    try:
        value = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(f"the body is not valid JSON: {_reason(error)}", code="invalid_json") from None
    if _count_keys(value) != _count_keys_in_text(body, max_depth):
        raise RequestError("the body is not valid JSON: an object names the same key twice", code="invalid_json")
    return value


def convert(value: Any, wanted: type[Decoded]) -> Decoded:
    """Check a plain value against a type; the error names the field the way the client spells it (`stop[2]`)."""
    try:
        return msgspec.convert(value, wanted, strict=True)
    except msgspec.ValidationError as error:
        message = str(error)
        path = _PATH.search(message)
        param = path[1].removeprefix(".") if path else None
        found = _EXPECTED.match(message)
        if _OUT_OF_RANGE.search(message):
            reason = "is out of range"
        elif found:
            actual = f", got {_plain(found[2])}" if found[2] else ""
            reason = f"must be {_plain(found[1])}{actual}"
        else:
            reason = "has a value that is not allowed"
        raise RequestError(f"{param or 'the body'} {reason}", param=param or None, code="invalid_type") from None


def unknown_fields(value: Any, wanted: type[msgspec.Struct]) -> tuple[str, ...]:
    """The keys of an object that `wanted` has no field for, and that say something (null means absent)."""
    known = wanted.__struct_encode_fields__
    return tuple(key for key, item in value.items() if key not in known and item is not None) if isinstance(value, dict) else ()


def _plain(kind: str) -> str:
    """`int | null` -> `int or null`, in JSON's own words."""
    words = {"int": "an integer", "float": "a number", "str": "a string", "bool": "a boolean"}
    words |= {"array": "an array", "object": "an object", "null": "null"}
    kinds = [part.strip() for part in kind.split("|")]
    return " or ".join(words.get(part, part) for part in kinds)


def _count_keys_in_text(body: bytes, max_depth: int) -> int:
    """Number of object keys of a well-formed text; raises when the nesting exceeds `max_depth`."""
    depth = keys = 0
    for token in _TOKEN.finditer(body):
        first = body[token.start()]
        if first == 0x22:  # a string
            keys += token[1] is not None
        elif first in b"[{":
            depth += 1
            if depth > max_depth:
                raise RequestError(f"the body nests deeper than {max_depth} levels", code="invalid_json")
        else:
            depth -= 1
    return keys


def _count_keys(value: Any) -> int:
    # Depth is bounded by the scan, so a stack of open values suffices and stays small.
    count, open_values = 0, [value]
    while open_values:
        value = open_values.pop()
        if isinstance(value, dict):
            count += len(value)
            open_values.extend(value.values())
        elif isinstance(value, list):
            open_values.extend(value)
    return count


def _reason(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8"
    if isinstance(error, msgspec.ValidationError):
        return "a number is out of range"
    if isinstance(error, RecursionError):
        return "it nests too deeply"
    return str(error).removeprefix("JSON is malformed: ").lower()
