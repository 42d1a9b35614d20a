"""Sums with the working shown: one short line per column, from the right, in a fixed layout.

A line is `a+b+c=ts r`: the two digits, the carry that came in, the two-digit sum, and the result so far. The carry of the next
line is the first digit of the sum, the result grows at its left by the second one, so that every token depends on a
few tokens at fixed distances. Numbers are written once more first, padded to one length, which turns "third digit from the
right" into a fixed distance as well.
"""

from __future__ import annotations

import random

from openglm.synth.episode import Episode, answered
from openglm.synth.split import Split, numbers_split
from openglm.synth.values import Language

_MAX_DIGITS = 4


def add(rng: random.Random, split: Split, language: Language) -> Episode:
    """The sum of two numbers of one to four digits."""
    a, b = operands(rng, split)
    short = max(a, b) < 100
    thinking = rng.random() < (0.7 if short else 1.0)
    return answered("add", question(rng, a, "+", b, language), f"{a} + {b} = {a + b}", think_add(a, b), thinking=thinking)


def add3(rng: random.Random, split: Split, language: Language) -> Episode:
    """The sum of three small numbers, two steps of `add`."""
    while True:
        a, b, c = (rng.randrange(1, 10 ** rng.choice((1, 2))) for _ in range(3))
        if numbers_split(a, b, c) == split and numbers_split(a, b) == numbers_split(a + b, c) == split:
            break
    text = rng.choice(("{}+{}+{}", "{} + {} + {}", "{} plus {} plus {}", "the sum of {}, {} and {}"))
    if language == "zh":
        text = rng.choice(("{}+{}+{}", "{} + {} + {}", "{}加{}加{}", "{}、{}、{}的和"))
    thought = f"{think_add(a, b)}\n{think_add(a + b, c)}"
    return answered("add3", ask(rng, text.format(a, b, c), language), f"{a} + {b} + {c} = {a + b + c}", thought)


def sub(rng: random.Random, split: Split, language: Language) -> Episode:
    """The difference of two numbers, the larger one first."""
    a, b = sorted(operands(rng, split), reverse=True)
    thinking = rng.random() < (0.75 if a < 100 else 1.0)
    return answered("sub", question(rng, a, "-", b, language), f"{a} - {b} = {a - b}", think_sub(a, b), thinking=thinking)


def mul_digit(rng: random.Random, split: Split, language: Language) -> Episode:
    """A number of up to four digits times one digit."""
    while True:
        a, d = rng.randrange(2, 10 ** rng.randrange(1, _MAX_DIGITS + 1)), rng.randrange(2, 10)
        if numbers_split(a, d) == split:
            break
    thinking = rng.random() < (0.7 if a < 10 else 1.0)
    return answered("mul_digit", question(rng, a, "*", d, language), f"{a} * {d} = {a * d}", think_mul(a, d), thinking=thinking)


def compare(rng: random.Random, split: Split, language: Language) -> Episode:
    """Which of two numbers is larger (or smaller)."""
    while True:
        a, b = operands(rng, split)
        if a != b:
            break
    larger = rng.random() < 0.6
    answer = max(a, b) if larger else min(a, b)
    if language == "zh":
        word = "大" if larger else "小"
        text = rng.choice((f"{a}和{b}哪个{word}？", f"{a} 和 {b} 哪个更{word}？", f"哪个数更{word}：{a} 还是 {b}？"))
    else:
        word = "larger" if larger else "smaller"
        text = rng.choice((f"Which is {word}, {a} or {b}?", f"Which number is {word}: {a} or {b}?", f"which is {word} {a} or {b}"))
    return answered("compare", text, str(answer), think_compare(a, b), thinking=rng.random() < 0.8)


def operands(rng: random.Random, split: Split) -> tuple[int, int]:
    """Two numbers on the given side of the border; longer ones more often, since they take more steps."""
    while True:
        a, b = (_number(rng) for _ in range(2))
        if numbers_split(a, b) == split:
            return a, b


def ask(rng: random.Random, expression: str, language: Language) -> str:
    """A question for the value of `expression`."""
    if language == "zh":
        return rng.choice(_ASK_ZH).format(expression)
    return rng.choice(_ASK_EN).format(expression)


def question(rng: random.Random, a: int, sign: str, b: int, language: Language) -> str:
    """A question for `a sign b` in one of many wordings."""
    forms = _WORDED[language][sign]
    form = rng.choice(forms) if rng.random() < 0.4 else rng.choice(("{}{s}{}", "{} {s} {}"))
    shown = rng.choice(("*", "x", "×")) if sign == "*" else sign
    return ask(rng, form.format(a, b, s=shown), language)


def think_add(a: int, b: int) -> str:
    """The working of a + b."""
    first, second = _aligned(a, b)
    lines, carry, result = [f"{first}+{second}"], 0, ""
    for x, y in zip(reversed(first), reversed(second), strict=True):
        total = int(x) + int(y) + carry
        result = f"{total % 10}{result}"
        lines.append(f"{x}+{y}+{carry}={total:02} {result}")
        carry = total // 10
    if carry:
        lines.append(f"{carry} {carry}{result}")
    return "\n".join(lines)


def think_sub(a: int, b: int) -> str:
    """The working of a - b for a >= b; `b1` marks a borrowed ten."""
    first, second = _aligned(a, b)
    lines, borrow, result = [f"{first}-{second}"], 0, ""
    for x, y in zip(reversed(first), reversed(second), strict=True):
        digit = int(x) - int(y) - borrow
        owed = int(digit < 0)
        result = f"{digit + 10 * owed}{result}"
        lines.append(f"{x}-{y}-{borrow}={owed}{digit + 10 * owed} {result}")
        borrow = owed
    lines.append(f"= {a - b}")
    return "\n".join(lines)


def think_mul(a: int, digit: int) -> str:
    """The working of a * digit."""
    lines, carry, result = [f"{a}*{digit}"], 0, ""
    for x in reversed(str(a)):
        total = int(x) * digit + carry
        result = f"{total % 10}{result}"
        lines.append(f"{x}*{digit}+{carry}={total:02} {result}")
        carry = total // 10
    if carry:
        lines.append(f"{carry} {carry}{result}")
    return "\n".join(lines)


def think_compare(a: int, b: int) -> str:
    """Digit by digit from the left, padded to one length, up to the first difference."""
    first, second = _aligned(a, b)
    lines = [f"{first} {second}"]
    for x, y in zip(first, second, strict=True):
        sign = "=" if x == y else ">" if x > y else "<"
        lines.append(f"{x}{sign}{y}")
        if x != y:
            break
    return "\n".join([*lines, f"{max(a, b)}>{min(a, b)}"])


def _aligned(a: int, b: int) -> tuple[str, str]:
    width = max(len(str(a)), len(str(b)))
    return f"{a:0{width}}", f"{b:0{width}}"


def _number(rng: random.Random) -> int:
    digits = rng.choice((1, 2, 2, 3, 3, 3, 4, 4, 4, 4))
    return rng.randrange(0 if digits == 1 else 10 ** (digits - 1), 10**digits)


_ASK_EN = (
    "{}", "{}=?", "{} = ?", "What is {}?", "what is {}", "What's {}?", "Calculate {}.", "Compute {}.", "How much is {}?",
    "Please work out {}.", "Can you tell me {}?", "Tell me what {} is.", "Solve {}.",
)  # fmt: skip
_ASK_ZH = ("{}", "{}=?", "{}等于多少？", "{} 等于多少", "计算{}。", "请计算 {}。", "{}是多少？", "请问{}等于几？", "算一下 {}。", "求{}。")
_WORDED: dict[Language, dict[str, tuple[str, ...]]] = {
    "en": {
        "+": ("{} plus {}", "the sum of {} and {}", "{} added to {}"),
        "-": ("{} minus {}", "the difference of {} and {}"),
        "*": ("{} times {}", "the product of {} and {}", "{} multiplied by {}"),
    },
    "zh": {"+": ("{}加{}", "{}与{}的和", "{} 加上 {}"), "-": ("{}减{}", "{} 减去 {}"), "*": ("{}乘{}", "{} 乘以 {}")},
}
