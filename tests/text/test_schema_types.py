"""Argument types by JSON schema, and what argument text becomes."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openglm.text.argument_stream import ArgumentStream
from openglm.text.schema_types import argument_types, convert, could_be_json, to_json

NUMBER = {"number", "integer"}
DEFS = {
    "Name": {"type": "string"},
    "Count": {"type": "integer"},
    "Maybe": {"anyOf": [{"$ref": "#/$defs/Name"}, {"type": "null"}]},
    "Loop": {"$ref": "#/$defs/Loop"},
    "a/b~c": {"type": "boolean"},
}


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "string"}, {"string"}),
        ({"type": "number"}, NUMBER),
        ({"type": "integer"}, {"integer"}),
        ({"type": ["string", "null"]}, {"string", "null"}),
        ({"type": "string", "nullable": True}, {"string", "null"}),
        ({"anyOf": [{"type": "array"}, {"type": "null"}]}, {"array", "null"}),
        ({"oneOf": [{"type": "integer"}, {"type": "string"}]}, {"integer", "string"}),
        ({"anyOf": [{"type": "string"}, {}]}, None),
        ({"allOf": [{"type": ["string", "integer"]}, {"type": "integer"}]}, {"integer"}),
        ({"allOf": [{"description": "x"}, {"type": "object"}]}, {"object"}),
        ({"allOf": [{"type": "string"}, {"type": "integer"}]}, None),
        ({"enum": ["a", "b"]}, {"string"}),
        ({"enum": [1, None, True]}, NUMBER | {"null", "boolean"}),
        ({"const": 1.5}, {"number"}),
        ({"const": [1]}, {"array"}),
        ({"type": "string", "enum": ["1", "2"]}, {"string"}),
        ({"properties": {}}, {"object"}),
        ({"items": {}}, {"array"}),
        ({"$ref": "#/$defs/Count"}, {"integer"}),
        ({"$ref": "#/$defs/Maybe"}, {"string", "null"}),
        ({"$ref": "#/$defs/a~1b~0c"}, {"boolean"}),
        ({"$ref": "#/$defs/Nothing"}, None),
        ({"$ref": "#/$defs/Loop"}, None),
        ({"$ref": "https://example.com/x"}, None),
        ({"$ref": 3}, None),
        ({"$ref": "#"}, {"object"}),
        ({}, None),
        (True, None),
        ({"type": "float"}, None),
        ({"type": 3}, None),
        ({"anyOf": "x", "enum": "y", "allOf": 1}, None),
    ],
)
def test_types_of_a_property(schema, expected):
    document = {"type": "object", "properties": {"x": schema}, "$defs": DEFS}
    assert argument_types(document, "x") == expected


def test_properties_are_found_wherever_the_object_is_described():
    inner = {"properties": {"x": {"type": "boolean"}}}
    assert argument_types({"allOf": [{"$ref": "#/definitions/I"}], "definitions": {"I": inner}}, "x") == {"boolean"}
    assert argument_types({"anyOf": [inner, {"properties": {"x": {"type": "null"}}}]}, "x") == {"boolean", "null"}
    assert argument_types({"additionalProperties": {"type": "integer"}}, "x") == {"integer"}
    assert argument_types({"additionalProperties": True}, "x") is None
    assert argument_types({"properties": []}, "x") is None
    assert argument_types(None, "x") is None


def test_huge_and_circular_schemas_are_given_up_on():
    wide = {"anyOf": [{"type": "string"}] * 5000}
    assert argument_types({"properties": {"x": wide}}, "x") is None
    assert argument_types({"$ref": "#", "anyOf": [{"$ref": "#"}, {"$ref": "#"}]}, "x") is None
    deep = {"type": "string"}
    for _ in range(5000):
        deep = {"allOf": [deep]}
    assert argument_types({"properties": {"x": deep}}, "x") is None


json_documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["string", "#", "#/x", "object"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "anyOf", "allOf", "oneOf", "$ref", "properties", "x", "enum", "const", "items"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(["properties", "anyOf", "$ref", "x"]), json_documents, max_size=3))
def test_any_schema_is_survived(schema):
    types = argument_types(schema, "x")
    assert types is None or types


@pytest.mark.parametrize(
    ("text", "types", "value"),
    [
        ("12", {"string"}, "12"),
        ("12", {"integer"}, 12),
        (" 12\n", {"integer"}, 12),
        ("12", NUMBER, 12),
        ("12.0", NUMBER, 12.0),
        ("12.0", {"integer"}, 12),
        ("12.5", {"integer"}, 12.5),
        ("1e400", NUMBER, "1e400"),
        ("NaN", NUMBER, "NaN"),
        ("Infinity", NUMBER, "Infinity"),
        ("twelve", {"integer"}, "twelve"),
        ("", {"integer"}, ""),
        ("true", {"boolean"}, True),
        ("False", {"boolean"}, False),
        ("None", {"null"}, None),
        ("None", {"string", "null"}, None),
        ("True", {"string", "null"}, "True"),
        ("true", {"string", "null"}, "true"),
        ("null", {"string", "null"}, None),
        ("12", {"string", "null"}, "12"),
        ("12", {"string", "integer"}, 12),
        ("12.5", {"string", "integer"}, "12.5"),
        ('"12"', {"string", "integer"}, '"12"'),
        ('["a", 1]', {"array"}, ["a", 1]),
        ("{'a': 1}", {"object"}, "{'a': 1}"),
        ('{"a": {"b": null}}', {"object"}, {"a": {"b": None}}),
        ("[" * 100 + "]" * 100, {"array"}, "[" * 100 + "]" * 100),
        ("[" * 100_000, {"array"}, "[" * 100_000),
        ("1" * 5000, {"integer"}, "1" * 5000),
        ('"\\ud800"', None, '"\\ud800"'),
        ("hello", None, "hello"),
        ('"hello"', None, "hello"),
        ("[1]", None, [1]),
        ("__import__('os')", None, "__import__('os')"),
    ],
)
def test_text_becomes_a_value(text, types, value):
    converted = convert(text, None if types is None else frozenset(types))
    assert converted == value
    assert type(converted) is type(value)


@pytest.mark.parametrize(
    ("head", "types", "possible"),
    [
        ("", {"string", "null"}, True),
        ("  n", {"string", "null"}, True),
        ("null ", {"string", "null"}, True),
        ("null x", {"string", "null"}, False),
        ("1", {"string", "null"}, False),
        ("-1.5e", {"string", *NUMBER}, True),
        ("1 2", {"string", *NUMBER}, False),
        ("{x", {"string", "object"}, True),
        ("[x", {"string", "object"}, False),
        ('"x', {"string", "object"}, False),
        ('"x', None, True),
        ("x", None, False),
        ("1" * 513, None, False),
        (" " * 513, None, False),
        ("{" + " " * 600, None, True),
    ],
)
def test_strings_are_told_from_values_by_their_beginning(head, types, possible):
    assert could_be_json(head, None if types is None else frozenset(types)) is possible


KINDS = st.sets(st.sampled_from(["string", "number", "integer", "boolean", "array", "object", "null"]), min_size=1)
pieces = st.lists(
    st.sampled_from(["nul", "null", "None", "t", "rue", "1", "2", ".5", "-", "e", "[", "]", "{", "}", '"', "a", " ", "é🙂", "\\"])
)


@settings(max_examples=500, deadline=None)
@given(st.one_of(st.none(), KINDS), pieces)
def test_fragments_add_up_to_the_arguments_for_every_type(kinds, parts):
    stream = ArgumentStream(None if kinds is None else {"properties": {"k": {"type": sorted(kinds)}}})
    sent = stream.begin("k") + "".join(stream.write(part) for part in parts if part) + stream.end() + stream.close()
    assert sent == to_json(stream.arguments)
    assert json.loads(sent) == stream.arguments
    whole = ArgumentStream(None if kinds is None else {"properties": {"k": {"type": sorted(kinds)}}})
    text = "".join(parts)
    assert whole.begin("k") + (whole.write(text) if text else "") + whole.end() + whole.close() == sent
    types = None if kinds is None else frozenset(kinds) | (NUMBER if "number" in kinds else set())
    assert to_json(stream.arguments["k"]) == to_json(convert(text, types))
