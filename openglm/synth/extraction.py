"""Small structured answers: facts of a sentence as JSON, and sorting three numbers."""

from __future__ import annotations

import json
import random

from openglm.synth.episode import Episode, answered
from openglm.synth.lexicon import WORDS
from openglm.synth.split import Split, numbers_split
from openglm.synth.values import Language, draw, kind_of
from openglm.text.messages import JSON


def extract_json(rng: random.Random, split: Split, language: Language) -> Episode:
    """A sentence with two or three labelled facts becomes one JSON object."""
    facts: dict[str, JSON] = {}
    spoken: list[str] = []
    while len(facts) < len(range(rng.choice((2, 2, 3)))):
        label = rng.choice(WORDS[split].labels)
        if label.en in facts or label.kind in ("point", "text"):
            continue
        value = draw(rng, kind_of(rng, label.kind), split, language)
        facts[label.en.replace(" ", "_")] = value.json
        spoken.append(f"{label.en.replace(' ', '_')}{'是' if language == 'zh' else ' is '}{value.spoken}")
    if language == "zh":
        text = rng.choice(("转成JSON：{}", "提取JSON：{}。", "用JSON表示：{}")).format("，".join(spoken))
    else:
        text = rng.choice(("To JSON: {}", "Extract JSON: {}.", "Write as JSON: {}", "As JSON: {}")).format("; ".join(spoken))
    return answered("extract_json", text, json.dumps(facts, ensure_ascii=False), ", ".join(facts), thinking=rng.random() < 0.4)


def sort_numbers(rng: random.Random, split: Split, language: Language) -> Episode:
    """Three different numbers in rising order."""
    while True:
        numbers = [rng.randrange(10 ** rng.choice((1, 2, 2))) for _ in range(3)]
        if len(set(numbers)) == 3 and numbers_split(*numbers) == split:
            break
    shown = ", ".join(map(str, numbers))
    text = rng.choice(
        ("从小到大排序：{}", "把 {} 从小到大排列")
        if language == "zh"
        else ("Sort: {}", "Sort the numbers {}.", "Sort {} from small to large.")
    ).format(shown)
    low, *_, high = ordered = sorted(numbers)
    return answered("sort_numbers", text, ", ".join(map(str, ordered)), f"min {low}\nmax {high}", thinking=rng.random() < 0.6)
