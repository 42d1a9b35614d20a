"""Two tools that `glm chat` can run itself, so that tool calls can be tried without writing a program: a calculator and a clock.

The calculator is a recursive-descent parser over numbers, `+ - * / // % **` and parentheses. It evaluates nothing but that: no names,
no calls, no attribute. Length, nesting and the size of powers are bounded, because the expression comes from a model.
"""

from __future__ import annotations

import json
import math
import operator
import re
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

from openglm.errors import DataError
from openglm.text.messages import Tool, ToolCall

Number = int | float

_MAX_CHARS: Final = 200
_MAX_DEPTH: Final = 40
_MAX_DIGITS: Final = 1000
_TOKEN: Final = re.compile(r"\s*(?:(\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?)|(\*\*|//|[-+*/%()^×÷−]))")
_SPELLINGS: Final = {"^": "**", "×": "*", "÷": "/", "−": "-"}
_SUMS: Final[dict[str, Callable[[Number, Number], Number]]] = {"+": operator.add, "-": operator.sub}
_PRODUCTS: Final[dict[str, Callable[[Number, Number], Number]]] = {
    "*": operator.mul,
    "/": operator.truediv,
    "//": operator.floordiv,
    "%": operator.mod,
}


def _tool(name: str, description: str, properties: dict[str, Any]) -> Tool:
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    function = {"name": name, "description": description, "parameters": parameters}
    return Tool(name, parameters, {"type": "function", "function": function})


DEMO_TOOLS: Final = (
    _tool(
        "calculator",
        "Evaluate an arithmetic expression",
        {"expression": {"type": "string", "description": "Numbers, + - * / // % ** and parentheses, such as (3 + 4) * 12"}},
    ),
    _tool("clock", "Get the current date and time", {}),
)


def run_demo_tool(call: ToolCall) -> str:
    """The result of a call as the text of a tool turn; mistakes become a text too, so that the model can react."""
    try:
        match call.name:
            case "calculator":
                return json.dumps({"result": calculate(str(call.arguments.get("expression", "")))})
            case "clock":
                return json.dumps({"time": datetime.now().astimezone().isoformat(timespec="seconds")})
            case _:
                return json.dumps({"error": f"there is no tool called {call.name}"})
    except DataError as error:
        return json.dumps({"error": str(error)})


def calculate(expression: str) -> Number:
    """The value of an arithmetic expression. Raises `DataError` saying what is wrong with it."""
    if len(expression) > _MAX_CHARS:
        raise DataError(f"the expression is longer than {_MAX_CHARS} characters")
    try:
        value = _Expression(expression).value()
    except ZeroDivisionError:
        raise DataError("division by zero") from None
    except OverflowError:
        raise DataError("the result is too large") from None
    if isinstance(value, complex) or not math.isfinite(value):
        raise DataError("the result is not a finite real number")
    return value


class _Expression:
    """Tokens of one expression and the place that is read."""

    def __init__(self, text: str) -> None:
        self._tokens: list[str] = []
        position = 0
        text = text.strip()
        while position < len(text):
            match = _TOKEN.match(text, position)
            if match is None:
                raise DataError(f"cannot read {text[position : position + 10]!r}")
            token = match[1] or match[2]
            self._tokens.append(_SPELLINGS.get(token, token))
            position = match.end()
        self._next = 0

    def value(self) -> Number:
        """The value of the whole text."""
        value = self._sum(0)
        if self._next < len(self._tokens):
            raise DataError(f"unexpected {self._tokens[self._next]!r}")
        return value

    def _peek(self) -> str:
        return self._tokens[self._next] if self._next < len(self._tokens) else ""

    def _take(self) -> str:
        token = self._peek()
        self._next += 1
        return token

    def _sum(self, depth: int) -> Number:
        value = self._product(depth)
        while self._peek() in _SUMS:
            value = _SUMS[self._take()](value, self._product(depth))
        return value

    def _product(self, depth: int) -> Number:
        value = self._signed(depth)
        while self._peek() in _PRODUCTS:
            value = _bounded(_PRODUCTS[self._take()](value, self._signed(depth)))
        return value

    def _signed(self, depth: int) -> Number:
        if depth > _MAX_DEPTH:
            raise DataError("the expression nests too deeply")
        if self._peek() in ("+", "-"):
            sign = self._take()
            value = self._signed(depth + 1)
            return -value if sign == "-" else value
        base = self._atom(depth)
        if self._peek() == "**":  # binds to the right and tighter than a sign on its left
            self._take()
            return _power(base, self._signed(depth + 1))
        return base

    def _atom(self, depth: int) -> Number:
        token = self._take()
        if token == "(":
            value = self._sum(depth + 1)
            if self._take() != ")":
                raise DataError("a parenthesis is not closed")
            return value
        if not token or not (token[0].isdigit() or token[0] == "."):
            raise DataError(f"expected a number, got {token!r}" if token else "the expression ends too early")
        return int(token) if token.isdecimal() else float(token)


def _power(base: Number, exponent: Number) -> Number:
    if abs(base) > 1 and abs(exponent) * math.log10(abs(base)) > _MAX_DIGITS:
        raise DataError("the result is too large")
    value: Number = base**exponent
    return value


def _bounded(value: Number) -> Number:
    if isinstance(value, int) and value.bit_length() > 4 * _MAX_DIGITS:
        raise DataError("the result is too large")
    return value
