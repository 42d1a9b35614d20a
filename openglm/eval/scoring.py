"""When an answer counts as right.

    calls    the same calls, in any order: every name and every argument with its JSON type, nothing more, nothing less
    sums     the last number in the content is the result, and no tool is called
    refusal  no call, and the refusal sentence of either language
    others   the content, word for word

A turn that never ended is wrong whatever it says. Reasoning is not judged.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from openglm.eval.tasks import Item, numbers
from openglm.synth.tool_tasks import REFUSAL
from openglm.text.messages import Message, ToolCall

_EQUATION = re.compile(r"\d+( [-+*] \d+)+ = \d+")

Mistake = Literal[
    "unfinished",
    "called a tool",
    "made no call",
    "wrong number of calls",
    "wrong tool",
    "wrong arguments",
    "wrong number",
    "wrong words",
]


@dataclass(frozen=True)
class Verdict:
    """Right (no mistake), or the first thing that is wrong."""

    mistake: Mistake | None = None

    @property
    def correct(self) -> bool:
        """Whether the answer counts."""
        return self.mistake is None


def judge(item: Item, answer: Message, *, finished: bool) -> Verdict:
    """Compare the model's turn with the expected one."""
    if not finished:
        return Verdict("unfinished")
    if item.expected.tool_calls:
        return Verdict(_compare_calls(item.expected.tool_calls, answer.tool_calls))
    if answer.tool_calls:
        return Verdict("called a tool")
    expected, content = item.expected.content.strip(), answer.content.strip()
    if expected in REFUSAL.values():
        return Verdict(None if content in REFUSAL.values() else "wrong words")
    if _EQUATION.fullmatch(expected):
        right = numbers(content)[-1:] == numbers(expected)[-1:]
        return Verdict(None if right else "wrong number")
    return Verdict(None if content == expected else "wrong words")


def _compare_calls(expected: tuple[ToolCall, ...], made: tuple[ToolCall, ...]) -> Mistake | None:
    if not made:
        return "made no call"
    if len(made) != len(expected):
        return "wrong number of calls"
    if Counter(call.name for call in made) != Counter(call.name for call in expected):
        return "wrong tool"
    if Counter(map(_canonical, made)) != Counter(map(_canonical, expected)):
        return "wrong arguments"
    return None


def _canonical(call: ToolCall) -> str:
    return json.dumps([call.name, call.arguments], ensure_ascii=False, sort_keys=True)
