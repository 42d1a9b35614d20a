import json
import time

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openglm.errors import RequestError
from openglm.server.strict_json import convert, decode_json

DEPTH = 64

REFUSED = {
    "empty": b"",
    "white space": b"  ",
    "cut off": b'{"a": [1, 2',
    "unclosed string": b'{"a": "x',
    "single quotes": b"{'a': 1}",
    "trailing comma": b"[1,]",
    "trailing bytes": b"{} {}",
    "byte order mark": b"\xef\xbb\xbf{}",
    "utf-16": '{"a": 1}'.encode("utf-16"),
    "invalid utf-8": b'{"a": "\xff\xfe"}',
    "raw NUL": b'{"a": "\x00"}',
    "raw newline in a string": b'{"a": "\n"}',
    "NaN": b'{"a": NaN}',
    "Infinity": b'{"a": -Infinity}',
    "beyond float64": b'{"a": 1e999}',
    "5000 digits": b'{"a": ' + b"9" * 5000 + b"}",
    "leading zero": b'{"a": 01}',
    "lone high surrogate": rb'{"a": "\ud800"}',
    "high surrogate and a letter": rb'{"a": "\ud800x"}',
    "lone low surrogate": rb'{"a": "\udc00"}',
    "two high surrogates": rb'{"a": "\ud800\ud800"}',
    "duplicate key": b'{"a": 1, "a": 1}',
    "duplicate key, one escaped": rb'{"ab": 1, "\u0061b": 1}',
    "duplicate key deep inside": b'{"a": [{"b": {"c": 1, "d": 2, "c": 3}}]}',
    "too deep": b"[" * 65 + b"]" * 65,
    "far too deep": b"[" * 100_000 + b"]" * 100_000,
    "deep objects": b'{"a":' * 70 + b"1" + b"}" * 70,
}


@pytest.mark.parametrize("body", REFUSED.values(), ids=REFUSED.keys())
def test_ambiguous_or_malformed_json_is_refused(body):
    with pytest.raises(RequestError) as caught:
        decode_json(body, max_depth=DEPTH)
    assert caught.value.code == "invalid_json"
    assert len(str(caught.value)) < 200


def test_what_is_json_is_read():
    assert decode_json(b"[" * 64 + b"]" * 64, max_depth=DEPTH) is not None
    assert decode_json(rb'{"a": "\u0000\ud83d\ude42", "b{": "}\"[{:", "c": [{}, {}]}', max_depth=DEPTH) == {
        "a": "\0🙂",
        "b{": '}"[{:',
        "c": [{}, {}],
    }


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None)
@given(JSON_VALUES)
def test_every_json_value_comes_back(value):
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False, indent=1)):
        assert decode_json(text.encode(), max_depth=DEPTH) == json.loads(text)


@settings(deadline=None)
@given(st.binary(max_size=60) | st.text('{}[]",:\\ue0d8 1a', max_size=60).map(str.encode))
def test_arbitrary_bytes_are_read_or_refused_but_nothing_else(body):
    try:
        decode_json(body, max_depth=DEPTH)
    except RequestError:
        return
    json.loads(body)


@pytest.mark.parametrize("unit", [b'"', b'"\\', b'\\"', b'"a" ', b'{"a":', b"[[", b"\\\\"], ids=repr)
def test_hostile_repetition_costs_linear_time(unit):
    began = time.perf_counter()
    with pytest.raises(RequestError):
        decode_json(unit * (2_000_000 // len(unit)), max_depth=DEPTH)
    assert time.perf_counter() - began < 5.0  # quadratic would be minutes


class Inner(msgspec.Struct):
    count: int | None = None


class Outer(msgspec.Struct):
    temperature: float | None = None
    stop: str | list[str] | None = None
    inner: Inner | None = None


@pytest.mark.parametrize(
    ("value", "param", "words"),
    [
        ({"temperature": "hot"}, "temperature", "a number or null, got a string"),
        ({"temperature": True}, "temperature", "got a boolean"),
        ({"stop": [1]}, "stop[0]", "a string, got an integer"),
        ({"inner": {"count": 1.5}}, "inner.count", "an integer or null, got a number"),
        ({"inner": []}, "inner", "an object or null, got an array"),
        ([1], None, "the body must be an object, got an array"),
        (7, None, "the body must be an object, got an integer"),
    ],
)
def test_a_wrong_type_names_the_field_in_the_words_of_json(value, param, words):
    with pytest.raises(RequestError) as caught:
        convert(value, Outer)
    assert caught.value.param == param
    assert words in str(caught.value)
