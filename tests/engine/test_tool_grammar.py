"""Grammars of calls and answers against the turn parser: whatever they accept is read as valid arguments, and what a schema allows can
be written."""

import json
import random
from functools import cache

import jsonschema
import pytest
from constrained_runs import CONTENT, prompt, random_tools, text_of, tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from openglm.engine.constrained_answer import ConstrainedAnswer
from openglm.engine.constraint import Constraint
from openglm.engine.grammar import GrammarError, compile_grammar, grammar_text
from openglm.engine.loading import vocabulary_of
from openglm.errors import RequestError
from openglm.text.answer_grammar import choice_answer, grammar_answer, json_answer, regex_answer
from openglm.text.messages import Conversation, Message, Tool, ToolCall
from openglm.text.template import render
from openglm.text.tool_grammar import call_rules, calls_grammar, each_call_grammar
from openglm.text.turn_parser import parse_turn


@cache
def vocabulary():
    return vocabulary_of(tokenizer(), tokenizer().stop_ids)


def answer(text: str, **fields) -> ConstrainedAnswer:
    constraint = Constraint("lark", text, **fields)
    grammar = compile_grammar(grammar_text(constraint), vocabulary(), param="x")
    return ConstrainedAnswer(constraint, grammar, vocabulary(), prompt=prompt(CONTENT), stop_ids=frozenset(tokenizer().stop_ids))


def accepts(text: str, written: str, **fields) -> bool:
    """Whether a whole answer, tags in it as special tokens, matches a grammar from end to end."""
    state = answer(text, **fields)
    ids = tokenizer().encode_raw(written)
    return all(state.advance(token) for token in ids) and (state.complete or state.advance(tokenizer().user))


def tool(properties: dict, *, name: str = "f", strict: bool = True, **rest) -> Tool:
    parameters = {"type": "object", "properties": properties, **rest}
    return Tool(name, parameters, {"type": "function", "function": {"name": name, "strict": strict, "parameters": parameters}})


def written(name: str, arguments: dict[str, str], gap: str = "\n") -> str:
    pairs = "".join(f"<arg_key>{key}</arg_key>{gap}<arg_value>{value}</arg_value>{gap}" for key, value in arguments.items())
    return f"<tool_call>{name}{gap}{pairs}</tool_call>"


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 10**9))
def test_a_random_walk_through_a_tool_grammar_is_a_valid_turn(seed):
    rng = random.Random(seed)
    tools = random_tools(rng)
    state = answer(calls_grammar(tools, one_call=rng.random() < 0.5), reads_calls=True)
    ids: list[int] = []
    while not state.complete and len(ids) < 1500:
        allowed = state.mask().nonzero()[0].tolist()
        ends = [token for token in allowed if token in vocabulary().special]
        token = rng.choice(ends if ends and rng.random() < 0.3 else allowed)
        assert state.advance(token)
        if token in tokenizer().stop_ids:
            break
        ids.append(token)
    else:
        assert state.complete
    message = parse_turn(text_of(ids), "content", tools, ended=True)
    assert message.tool_calls and not message.content
    schemas = {tool.name: tool.parameters for tool in tools}
    for call in message.tool_calls:
        jsonschema.validate(call.arguments, schemas[call.name])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 10**9))
def test_what_the_template_writes_for_a_call_is_accepted_in_both_layouts(seed):
    """Any arguments that match a tool's schema, as a model trained on the template writes them."""
    rng = random.Random(seed)
    values = {
        "text": ({"type": "string"}, rng.choice(["", "a <b> & c", "12", "null", "zwei\nZeilen", '{"a"'])),
        "count": ({"type": "integer"}, rng.randrange(-(10**6), 10**6)),
        "share": ({"type": "number"}, rng.choice([0.5, -3, 1e-3, 2.25])),
        "on": ({"type": "boolean"}, rng.random() < 0.5),
        "maybe": ({"type": ["string", "null"]}, rng.choice([None, "nobody", "12"])),
        "rows": ({"type": "array", "items": {"type": "object", "additionalProperties": {"type": "string"}}}, [{"a": "b", "c": "d"}, {}]),
        "any": ({}, rng.choice(["text", 3, None, [1, {"x": [True]}]])),
        "unit": ({"enum": ["C", "F", 3, None]}, rng.choice(["C", 3, None])),
        "when": ({"type": "string", "format": "date"}, "2026-11-30"),
        "code": ({"type": "string", "pattern": "^[A-Z]{2}[0-9]+$"}, "AB12"),
        "point": ({"$ref": "#/$defs/point"}, {"x": 1, "y": [2, 3.5]}),
    }
    keys = rng.sample(list(values), rng.randrange(len(values)))
    definitions = {"point": {"type": "object", "properties": {"x": {"type": "integer"}, "y": {}}, "required": ["x"]}}
    offered = tool({key: schema for key, (schema, _) in values.items()}, required=sorted(keys[:2]), **{"$defs": definitions})
    call = ToolCall("f", {key: values[key][1] for key in keys})
    conversation = Conversation((Message("user", "x"), Message("assistant", tool_calls=(call, call))))
    for style in ("glm-4.5", "glm-4.7"):
        text = render(conversation, style, add_generation_prompt=False).text.split("</think>")[-1]
        assert accepts(calls_grammar([offered], one_call=False), text, reads_calls=True)


STRING_OR_INT = {"anyOf": [{"type": "string"}, {"type": "integer", "maximum": 9}]}


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": "string", "maxLength": 3}, ["", "abc", "中文"], ["abcd"]),
        ({"type": "string", "minLength": 2}, ["ab", "a\n"], ["a", ""]),
        ({"type": "string", "pattern": "b"}, ["abc", "b"], ["ac", ""]),
        ({"type": "string", "pattern": "^a|b$"}, ["ax", "xb"], ["xa", "bx"]),
        ({"type": "string", "pattern": "^a/$", "maxLength": 9}, ["a/"], ["a", "a/b"]),
        ({"type": "string", "format": "date"}, ["2026-02-28", "2024-02-29"], ["2026-02-30", "2026-13-01", "today"]),
        ({"type": "string", "format": "ipv4"}, ["10.0.0.255"], ["10.0.0.256"]),
        ({"type": "string", "format": "date-time"}, ["2026-01-31T23:59:59Z"], ["2026-01-31"]),
        ({"enum": ["a", "b c", 3, None, ""]}, ["a", "b c", "3", "null", ""], ["c", "None", "4"]),
        ({"const": {"a": [1]}}, ['{"a": [1]}'], ['{"a": [2]}']),
        ({"type": "integer"}, ["0", "-12"], ["1.5", "1e3", "007", "x", "", "null"]),
        ({"type": "number"}, ["0.25", "-3"], ["1e999", "NaN", "Infinity"]),
        ({"type": "boolean"}, ["true", "false"], ["True", "1"]),
        ({"type": ["string", "null"]}, ["null", "nul", ""], ["None"]),
        (STRING_OR_INT, ["9", "ten", "-", "1.2.3"], ["10", " 10 ", "1e1"]),
        ({"type": "string", "nullable": True}, ["null", "x"], ["None"]),
        ({"type": "array", "items": {"type": "integer"}, "maxItems": 2}, ["[]", "[1, 2]", "[1,2]"], ["[1, 2, 3]", "[1,  2]", "1"]),
        ({"type": "object", "properties": {"n": {"type": "number"}}}, ['{"n": 2.5}', "{}"], ['{"n": 1e999}', '{"m": 1}']),
        ({"type": "object", "additionalProperties": {"type": "integer"}}, ['{"m": 1}'], ['{"m": "x"}']),
        ({}, ["anything", "{", "12"], []),
        (True, ["anything"], []),
    ],
    ids=lambda value: json.dumps(value)[:48] if isinstance(value, dict | bool) else None,
)
def test_values_are_written_as_the_parser_reads_them(schema, good, bad):
    grammar = calls_grammar([tool({"v": schema}, required=["v"])], one_call=True)
    for value in good:
        text = written("f", {"v": value})
        assert accepts(grammar, text, reads_calls=True), value
        (call,) = parse_turn(text, "content", (tool({"v": schema}, required=["v"]),), ended=True).tool_calls
        jsonschema.validate(
            call.arguments["v"], {**schema, "nullable": True} if isinstance(schema, dict) and "nullable" not in schema else True
        )
    for value in bad:
        assert not accepts(grammar, written("f", {"v": value}), reads_calls=True), value


def test_arguments_come_in_any_order_each_once_and_required_ones_always():
    offered = tool({key: {"type": "string"} for key in "abc"}, required=["c"])
    grammar = calls_grammar([offered], one_call=True)
    for keys in ("c", "ca", "ac", "cba", "bca"):
        assert accepts(grammar, written("f", dict.fromkeys(keys, "x")), reads_calls=True), keys
    for keys in ("", "a", "ab", "cd"):
        assert not accepts(grammar, written("f", dict.fromkeys(keys, "x")), reads_calls=True), keys
    twice = written("f", {"c": "x"}).replace("</tool_call>", "<arg_key>c</arg_key>\n<arg_value>y</arg_value>\n</tool_call>")
    assert not accepts(grammar, twice, reads_calls=True)


def test_more_arguments_than_bits_come_in_the_order_of_the_schema():
    names = [f"p{i}" for i in range(70)]
    grammar = calls_grammar([tool({name: {"type": "integer"} for name in names}, required=["p3", "p69"])], one_call=True)
    assert accepts(grammar, written("f", {"p3": "1", "p50": "2", "p69": "3"}), reads_calls=True)
    assert not accepts(grammar, written("f", {"p50": "1", "p3": "2", "p69": "3"}), reads_calls=True)
    assert not accepts(grammar, written("f", {"p3": "1"}), reads_calls=True)


def test_only_offered_tools_are_called_and_as_often_as_allowed():
    tools = [tool({}, name="get"), tool({}, name="get_all"), tool({"a": {"type": "integer"}}, name="now")]
    several, one = calls_grammar(tools, one_call=False), calls_grammar(tools, one_call=True)
    for text, in_several, in_one in [
        ("<tool_call>get</tool_call>", True, True),
        ("\n<tool_call>get_all\n</tool_call>", True, True),
        ("<tool_call>ge</tool_call>", False, False),
        ("<tool_call>get_al\n</tool_call>", False, False),
        ("<tool_call>get</tool_call>\n<tool_call>now</tool_call>", True, False),
        ("Well.<tool_call>get</tool_call>", False, False),
        ("", False, False),
    ]:
        assert accepts(several, text, reads_calls=True) is in_several, text
        assert accepts(one, text, reads_calls=True) is in_one, text
    free = each_call_grammar(tools, one_call=False)
    assert accepts(free, "Let me see.\n<tool_call>get</tool_call> and <tool_call>now</tool_call> done", at="call")
    assert accepts(free, "No call.", at="call")
    assert not accepts(free, "Let me see.<tool_call>go</tool_call>", at="call")


def test_alternatives_of_a_whole_schema_and_references():
    definitions = {"by": {"properties": {"name": {"type": "string"}}, "required": ["name"]}}
    parameters = {"type": "object", "anyOf": [{"$ref": "#/$defs/by"}, {"properties": {"id": {"type": "integer"}}, "required": ["id"]}]}
    offered = tool({"n": {"type": "boolean"}}, **{**parameters, "$defs": definitions})
    grammar = calls_grammar([offered], one_call=True)
    for arguments, good in [({"name": "x"}, True), ({"n": "true", "id": "1"}, True), ({"n": "true"}, False), ({"id": "x"}, False)]:
        assert accepts(grammar, written("f", arguments), reads_calls=True) is good, arguments


def test_keys_that_are_not_listed_are_written_only_where_the_schema_speaks_of_them():
    for rest, properties, good in [
        ({}, {"a": {}}, False),
        ({"additionalProperties": False}, {}, False),
        ({"additionalProperties": {"type": "integer"}}, {"a": {}}, True),
        ({"additionalProperties": True}, {"a": {}}, True),
        ({}, {}, True),
    ]:
        grammar = calls_grammar([tool(properties, **rest)], one_call=True)
        assert accepts(grammar, written("f", {"more": "12"}), reads_calls=True) is good, rest
    typed = calls_grammar([tool({"a": {"type": "boolean"}}, additionalProperties={"type": "integer"})], one_call=True)
    assert not accepts(typed, written("f", {"more": "x"}), reads_calls=True)
    assert not accepts(typed, written("f", {"a": "12"}), reads_calls=True)  # a listed key has its own schema


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "not": {}},
        {"type": "string", "format": "no-such-format"},
        {"type": "string", "pattern": "(?=a)"},
        {"type": "object", "dependentRequired": {}},
        {"oneOf": [{"type": "integer"}, {"type": "number"}]},
    ],
    ids=json.dumps,
)
def test_strict_schemas_are_honoured_or_refused_and_others_as_far_as_possible(schema):
    with pytest.raises(RequestError) as caught:
        compile_grammar(calls_grammar([tool({"v": schema})], one_call=True), vocabulary(), param="tools")
    assert caught.value.param == "tools"
    assert answer(calls_grammar([tool({"v": schema}, strict=False)], one_call=True))


@pytest.mark.parametrize("schema", [{"enum": []}, {"type": "integer", "minimum": 2, "maximum": 1}, False], ids=str)
def test_what_nothing_can_match_is_refused(schema):
    if schema is False:  # the argument can never be given
        assert not accepts(calls_grammar([tool({"v": schema})], one_call=True), written("f", {"v": ""}), reads_calls=True)
        return
    with pytest.raises(RequestError):
        compile_grammar(calls_grammar([tool({"v": schema}, required=["v"])], one_call=True), vocabulary(), param="tools")


def test_schemas_that_refer_too_deeply_are_refused():
    nested = {"type": "object"}
    definitions = {}
    for i in range(200):
        nested = {"$ref": f"#/$defs/d{i + 1}"}
        for _ in range(10):
            nested = {"type": "array", "items": nested}
        definitions[f"d{i}"] = nested
    with pytest.raises(RequestError, match="too deeply"):
        calls_grammar([tool({"v": {"type": "array", "items": {"$ref": "#/$defs/d0"}}}, **{"$defs": definitions})], one_call=True)


def test_required_keys_that_no_call_can_write_are_refused():
    with pytest.raises(RequestError, match="cannot be written"):
        calls_grammar([tool({" a": {}}, required=[" a"])], one_call=True)


def test_answers_of_every_form_and_the_layouts_newline():
    pair = json_answer({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False})
    for text, good in [('{"a":1}', True), ('\n{\n  "a": 1\n}', True), ('{"a":1} ', False), ('{"a":"1"}', False), ('\n\n{"a":1}', False)]:
        assert accepts(pair, text) is good, text
    # The parser drops one newline, so an answer that begins with one of its own needs the layout's before it.
    newline = regex_answer(r"\n?a\d/")
    for text, good in [("a1/", True), ("\na1/", True), ("\n\na1/", True), ("\n\n\na1/", False), ("a1", False)]:
        assert accepts(newline, text) is good, text
        if good:
            assert parse_turn(text, "content", ()).content in ("a1/", "\na1/")
    assert accepts(choice_answer(["yes", 'say "no"\n']), '\nsay "no"\n')
    assert not accepts(choice_answer(["yes"]), "yesyes")
    assert accepts(grammar_answer('root ::= "a" tail\ntail ::= [0-9]+', param="x"), "a12")
    assert accepts(grammar_answer('start: "a" tail\ntail: /[0-9]+/', param="x"), "\na12")


def test_an_answer_of_a_form_may_be_calls_instead_where_tools_are_offered():
    tools = (tool({"n": {"type": "integer"}}, name="now"),)
    either = json_answer({"type": "object"}, tools=tools, one_call=True)
    assert accepts(either, '\n{"x": [1, null]}', reads_calls=True)
    assert accepts(either, "\n<tool_call>now\n</tool_call>", reads_calls=True)
    assert not accepts(either, "<tool_call>now</tool_call>{}", reads_calls=True)
    assert not accepts(either, "Hello", reads_calls=True)


@pytest.mark.parametrize("grammar", ["((((", "root ::= " + "(" * 9000, "", "not a grammar ::= at all ::="], ids=lambda text: text[:20])
def test_a_grammar_that_cannot_be_read_is_an_error_of_its_field(grammar):
    with pytest.raises(RequestError) as caught:
        compile_grammar(grammar_answer(grammar, param="ebnf"), vocabulary(), param="ebnf")
    assert caught.value.param == "ebnf" and len(str(caught.value)) < 300


def test_states_are_undone_exactly():
    tools = random_tools(random.Random(8), 3)
    state = answer(calls_grammar(tools, one_call=False), reads_calls=True)
    rng, masks = random.Random(2), []
    for _ in range(28):  # within what a rollback may undo
        mask = state.mask()
        masks.append(mask.copy())
        state.advance(rng.choice([i for i in mask.nonzero()[0].tolist() if i not in tokenizer().stop_ids]))
    while masks:
        count = min(len(masks), rng.randrange(1, 4))
        state.rollback(count)
        del masks[len(masks) - count + 1 :]
        assert (state.mask() == masks.pop()).all()


def test_rules_of_equal_arguments_are_shared():
    same = {"city": {"type": "string"}, "days": {"type": "integer"}}
    _, one = call_rules([tool(same, name="a")])
    _, many = call_rules([tool(same, name=f"t{i}") for i in range(50)])
    assert len(many) == len(one)
    with pytest.raises(GrammarError):
        compile_grammar("start: nothing", vocabulary(), param="x")
