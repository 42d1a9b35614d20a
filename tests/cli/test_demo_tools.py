import ast
import contextlib
import json
import math
import operator

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from openglm.cli.demo_tools import DEMO_TOOLS, calculate, run_demo_tool
from openglm.errors import DataError
from openglm.text.messages import ToolCall

OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}


def by_python(node):
    match node:
        case ast.Expression(body):
            return by_python(body)
        case ast.Constant(value):
            return value
        case ast.BinOp(left, op, right):
            return OPERATORS[type(op)](by_python(left), by_python(right))
        case ast.UnaryOp(op, operand):
            return OPERATORS[type(op)](by_python(operand))


EXPRESSIONS = st.recursive(
    st.integers(0, 99).map(str) | st.sampled_from(["1.5", "0.25", "2e1"]),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from([" + ", "-", "*", " / ", "//", "%"]), inner).map("".join),
        st.tuples(st.sampled_from("+-"), inner).map("".join),
        inner.map(lambda text: f"({text})"),
        st.tuples(inner, st.just("**"), st.sampled_from(["2", "3", "-1"])).map("".join),
    ),
    max_leaves=8,
)


@settings(deadline=None)
@given(EXPRESSIONS)
def test_arithmetic_is_pythons(expression):
    assume(len(expression) <= 200)
    try:
        wanted = by_python(ast.parse(expression, mode="eval"))
    except (ZeroDivisionError, OverflowError):
        with pytest.raises(DataError):
            calculate(expression)
        return
    if isinstance(wanted, complex) or (isinstance(wanted, float) and not math.isfinite(wanted)):
        with pytest.raises(DataError):
            calculate(expression)
        return
    try:
        assert calculate(expression) == wanted
    except DataError as error:
        assert "too large" in str(error)


@settings(deadline=None)
@given(st.text("0123456789.+-*/%()eE^ ×÷xa_", max_size=30))
def test_any_text_is_a_number_or_a_refusal(text):
    with contextlib.suppress(DataError):
        assert isinstance(calculate(text), (int, float))


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("", "too early"),
        ("2 +", "too early"),
        ("(1 + 2", "not closed"),
        ("1 2", "unexpected"),
        ("1 / 0", "division by zero"),
        ("9 ** 9 ** 9", "too large"),
        ("10.0 ** 400", "too large"),
        ("__import__('os')", "cannot read"),
        ("a + 1", "cannot read"),
        ("(" * 60 + "1" + ")" * 60, "too deeply"),
        ("1+" * 150 + "1", "longer than"),
        ("(0 - 8) ** 0.5", "not a finite real"),
    ],
)
def test_what_cannot_be_calculated_is_said(expression, words):
    with pytest.raises(DataError, match=words):
        calculate(expression)


def test_other_ways_to_write_operators():
    assert calculate("3 × 4 ÷ 2 − 1") == 5
    assert calculate("2^3^2") == 512
    assert calculate("-2 ** 2") == -4


def test_calls_are_answered_with_json_whatever_they_ask():
    assert json.loads(run_demo_tool(ToolCall("calculator", {"expression": "6 * 7"}))) == {"result": 42}
    assert "error" in json.loads(run_demo_tool(ToolCall("calculator", {})))
    assert "error" in json.loads(run_demo_tool(ToolCall("calculator", {"expression": [1]})))
    assert "error" in json.loads(run_demo_tool(ToolCall("rm", {"path": "/"})))
    assert json.loads(run_demo_tool(ToolCall("clock", {})))["time"][:2] == "20"
    assert [tool.definition["function"]["name"] for tool in DEMO_TOOLS] == ["calculator", "clock"]
