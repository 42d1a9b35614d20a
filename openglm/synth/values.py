"""Argument and result values: how each kind is drawn, written in JSON, in a schema and in a sentence.

The sentence always holds the value in the very words that the call must hold, because a model of this size can copy but knows
nothing about the world.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from typing import Literal

from openglm.synth.invention import invented_han, invented_word
from openglm.synth.lexicon import ENUMS, WORDS
from openglm.synth.split import Split
from openglm.text.messages import JSON

Language = Literal["en", "zh"]

# How often each kind is drawn where a label does not fix it.
KINDS = ("city", "person", "word", "int", "int", "float", "bool", "enum", "date", "code", "text", "words", "ints")

_SCHEMA_TYPES: dict[str, dict[str, JSON]] = {
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "bool": {"type": "boolean"},
    "words": {"type": "array", "items": {"type": "string"}},
    "people": {"type": "array", "items": {"type": "string"}},
    "ints": {"type": "array", "items": {"type": "integer"}},
    "point": {"type": "object", "properties": {"x": {"type": "integer"}, "y": {"type": "integer"}}},
}
# Small closed sets that only the catalogue uses.
_CLOSED_KINDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "language": (("French", "German", "Spanish", "Chinese", "Japanese", "English"), ("法语", "德语", "中文", "日语", "英语")),
    "currency": (("USD", "EUR", "CNY", "JPY", "GBP"), ("USD", "EUR", "人民币", "日元", "美元")),
    "room": (("kitchen", "bedroom", "bathroom", "office", "hall"), ("厨房", "卧室", "书房", "客厅")),
    "weather": (("sunny", "rainy", "cloudy", "windy", "snowy"), ("晴", "雨", "多云", "雪")),
    "done": (("ok", "done", "success", "sent"), ("ok", "done", "成功")),
}


@dataclass(frozen=True)
class Value:
    """One value: `json` as the call holds it, `spoken` as a sentence says it."""

    json: JSON
    spoken: str

    @property
    def written(self) -> str:
        """The value as GLM writes it between `<arg_value>` tags: strings bare, everything else JSON."""
        return written(self.json)


@dataclass(frozen=True)
class Kind:
    """A kind of value with what a schema must state about it."""

    name: str
    choices: tuple[str, ...] = field(default=())

    def schema(self) -> dict[str, JSON]:
        """The JSON schema of this kind (a fresh object)."""
        if self.choices:
            return {"type": "string", "enum": list(self.choices)}
        return dict(_SCHEMA_TYPES.get(self.name, {"type": "string"}))


def written(value: JSON) -> str:
    """`value` as GLM's template writes an argument."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def kind_of(rng: random.Random, name: str) -> Kind:
    """The kind called `name`; an enum draws its choices here, so that tool and value agree on them."""
    if name != "enum":
        return Kind(name)
    choices = list(rng.choice(ENUMS))
    rng.shuffle(choices)
    return Kind(name, tuple(choices))


def draw(rng: random.Random, kind: Kind, split: Split, language: Language) -> Value:
    """One value of `kind`, its words from `split`."""
    match kind.name:
        case "int":
            number = _integer(rng)
            return Value(number, str(number))
        case "float":
            number_text = f"{rng.randrange(0, 10 ** rng.choice((1, 2, 3)))}.{rng.choice((rng.randrange(1, 10), 25, 75, 15))}"
            return Value(float(number_text), number_text)
        case "bool":
            flag = rng.random() < 0.5
            return Value(flag, "true" if flag else "false")
        case "enum":
            choice = rng.choice(kind.choices)
            return Value(choice, choice)
        case "words" | "people":
            one = "word" if kind.name == "words" else "person"
            return _series([string(rng, one, split, language) for _ in range(rng.choice((2, 2, 3)))], language)
        case "ints":
            return _series([_integer(rng) for _ in range(rng.choice((2, 2, 3)))], language)
        case "point":
            point = {"x": rng.randrange(100), "y": rng.randrange(100)}
            return Value(point, f"x {point['x']} y {point['y']}")
        case "text":
            text = string(rng, "text", split, language)
            return Value(text, f'"{text}"')
        case _:
            text = string(rng, kind.name, split, language)
            return Value(text, text)


def string(rng: random.Random, kind: str, split: Split, language: Language) -> str:
    """A string of one of the textual kinds."""
    words = WORDS[split]
    chinese = language == "zh" and rng.random() < 0.6
    match kind:
        case "city":
            if rng.random() < 0.2:
                return invented_word(rng, split).capitalize()
            if chinese and split == "train" and rng.random() < 0.5:
                return invented_han(rng)
            return rng.choice(words.cities)[1 if chinese else 0]
        case "person":
            if rng.random() < 0.2:
                return invented_word(rng, split).capitalize()
            return rng.choice(words.people_zh if chinese else words.people)
        case "word":
            if chinese:
                return invented_han(rng) if split == "train" and rng.random() < 0.7 else rng.choice(words.plain_zh)
            return invented_word(rng, split) if rng.random() < 0.35 else rng.choice(words.plain)
        case "text":
            count = rng.choice((2, 2, 3))
            parts = [string(rng, "word", split, "zh" if chinese else "en") for _ in range(count)]
            return ("" if all(ord(part[0]) > 0x2E80 for part in parts) else " ").join(parts)
        case "date":
            return f"{rng.randrange(2020, 2030)}-{rng.randrange(1, 13):02}-{rng.randrange(1, 29):02}"
        case "time":
            return f"{rng.randrange(24):02}:{rng.choice((0, 15, 30, 45, rng.randrange(60))):02}"
        case "email":
            return f"{string(rng, 'person', split, 'en').lower()}@{string(rng, 'word', split, 'en')}.{rng.choice(('com', 'org', 'net'))}"
        case "code":
            letters = "".join(rng.choice("ABCDEFGHJKLMNPQRSTUVWXYZ") for _ in range(rng.choice((1, 2))))
            return f"{letters}{rng.choice(('', '-'))}{rng.randrange(10, 10 ** rng.choice((2, 3, 4)))}"
        case "phrase":
            return " ".join(string(rng, "word", split, language) for _ in range(rng.choice((1, 1, 2))))
        case "path":
            folder, name = (string(rng, "word", split, "en") for _ in range(2))
            return f"{rng.choice(('', '/', f'{folder}/', f'/{folder}/'))}{name}{rng.choice(('.txt', '.py', '.md', '.json', ''))}"
        case "command":
            return f"{rng.choice(('ls', 'cat', 'rm', 'mkdir', 'cd', 'echo'))} {string(rng, 'word', split, 'en')}"
        case "symbol":
            return invented_word(rng, split)[: rng.choice((3, 4))].upper()
        case _ if kind in _CLOSED_KINDS:
            return rng.choice(_CLOSED_KINDS[kind][1 if language == "zh" else 0])
        case _:
            raise ValueError(f"no such kind of value: {kind!r}")


def _integer(rng: random.Random) -> int:
    return rng.randrange(10 ** rng.choice((1, 2, 2, 3, 3, 4)))


def _series(items: list[JSON], language: Language) -> Value:
    texts = [str(item) for item in items]
    if language == "zh":
        return Value(items, "、".join(texts))
    return Value(items, ", ".join(texts[:-1]) + " and " + texts[-1])
