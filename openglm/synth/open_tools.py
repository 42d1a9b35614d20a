"""Tools asked for in natural words whose subject is any noun: `Which ferry goes from Oslo to Rome?` For training only.

The catalogue teaches natural requests for a few fixed subjects, made-up tools teach any subject in fixed words. Only both together
show that the subject of a question is what must be found in a tool's name or description, whatever it is.
"""

# ruff: noqa: E501  (tables read better unbroken)
from __future__ import annotations

import random
from dataclasses import dataclass

from openglm.synth.invention import invented_label
from openglm.synth.lexicon import WORDS
from openglm.synth.split import Split
from openglm.synth.toolset import Parameter, Request, ToolSpec, article, draw_noun
from openglm.synth.values import Language, Value, draw, kind_of


@dataclass(frozen=True)
class _Form:
    """Names, descriptions and questions around a noun ({n} English, {z} Chinese, {a} the article) and values {0}, {1}."""

    kinds: tuple[str, ...]
    names: tuple[str, ...]
    en: tuple[str, ...]
    zh: tuple[str, ...]
    ask_en: tuple[str, ...]
    ask_zh: tuple[str, ...]


_FORMS = (
    _Form(
        ("person",),
        ("get_{n}", "{n}", "{n}_now", "my_{n}", "{n}_lookup"),
        ("The {n} of a user.", "{N}", "Tells the {n} of somebody", "Look up {a} {n}"),
        ("查询{z}", "某人的{z}", "{z}"),
        ("How is the {n} of {0} today?", "I would like to know the {n} of {0}.", "Do you know {0}'s {n}?", "Which {n} has {0}?", "{n} of {0}"),
        ("{0}今天{z}好吗？", "我想知道{0}的{z}", "{0}有什么{z}？", "告诉我{0}的{z}。"),
    ),
    _Form(
        ("city", "city"),
        ("{n}_search", "search_{n}", "{n}", "{n}_schedule", "get_{n}"),
        ("Search {a} {n} between two places.", "{N} schedule", "{N} from one city to another"),
        ("搜索{z}", "两地之间的{z}", "{z}时刻表"),
        ("Which {n} goes from {0} to {1}?", "Any {n} between {0} and {1}?", "I need {a} {n} from {0} to {1}.", "How long is the {n} from {0} to {1}?"),
        ("从{0}到{1}坐什么{z}？", "我要{0}到{1}的{z}", "{0}和{1}之间有{z}吗？"),
    ),
    _Form(
        ("word",),
        ("lookup_{n}", "{n}", "{n}_of", "get_{n}"),
        ("Gives {a} {n} for a word.", "{N} dictionary", "Looks up the {n}"),
        ("给出{z}", "{z}词典", "查{z}"),
        ("Which {n} does {0} have?", "Look up the {n} of {0}.", "{n} for {0}?", "I am looking for {a} {n} of {0}."),
        ("{0}有什么{z}？", "查一下{0}的{z}", "给我{0}的{z}。"),
    ),
    _Form(
        ("int",),
        ("move_{n}", "{n}", "set_{n}", "{n}_control"),
        ("Move the {n}.", "Controls the {n}", "{N} control"),
        ("移动{z}", "控制{z}"),
        ("Move the {n} to {0}.", "{N} to {0} please", "I want the {n} at {0}.", "Could the {n} come to {0}?"),
        ("把{z}移到{0}", "{z}到{0}", "让{z}来{0}。"),
    ),
    _Form(
        ("code",),
        ("{n}_sensor", "measure_{n}", "{n}", "get_{n}"),
        ("Measure the {n} at a station.", "{N} sensor", "Current {n}"),
        ("测量{z}", "当前{z}", "{z}传感器"),
        ("How high is the {n} at {0}?", "Measure the {n} of {0}.", "{n} at {0}", "Is the {n} at {0} fine?"),
        ("{0}的{z}高吗？", "测一下{0}的{z}", "{0}现在{z}如何？"),
    ),
    _Form(
        (),
        ("{n}_status", "{n}", "show_{n}", "check_{n}"),
        ("The present {n}.", "{N} status", "Shows the {n}"),
        ("当前{z}", "显示{z}"),
        ("What about the {n}?", "Is there {a} {n} today?", "How is the {n}?", "{N}, please."),
        ("{z}怎么样？", "今天有{z}吗？", "{z}如何"),
    ),
)  # fmt: skip


def open_request(rng: random.Random, split: Split, language: Language) -> Request:
    """A natural request about any noun, with the tool that fits it."""
    form, noun = rng.choice(_FORMS), draw_noun(rng, split)
    word, written = noun.en, "_".join(noun.en.split())
    parameters: list[Parameter] = []
    values: list[tuple[Parameter, Value]] = []
    described = rng.random() < 0.5
    for kind_name in form.kinds:
        kind = kind_of(rng, kind_name)
        labels = [label for label in WORDS[split].labels if label.kind == kind_name]
        name = zh = invented_label(rng, split)
        if labels and rng.random() < 0.5:
            name, zh, _ = rng.choice(labels)
        if any(name == other.label for other in parameters):
            name = zh = f"{name} {len(parameters) + 1}"
        label = zh if language == "zh" else name
        parameter = Parameter("_".join(name.split()), name, kind, description=label if described else None)
        parameters.append(parameter)
        values.append((parameter, draw(rng, kind, split, language)))
    fill = {"n": word, "N": word.capitalize(), "z": noun.zh, "a": article(word)}
    described_zh = language == "zh" and rng.random() < 0.6
    ask = rng.choice(form.ask_zh if language == "zh" else form.ask_en)
    text = ask.format(*(value.spoken for _, value in values), **fill)
    goal = noun.zh if language == "zh" else word
    spec = ToolSpec(
        rng.choice(form.names).format(n=written),
        goal,
        rng.choice(form.zh if described_zh else form.en).format(**fill) if language == "zh" or rng.random() < 0.9 else None,
        tuple(parameters),
        frozenset((noun.en, noun.zh)),
    )
    return Request(text, goal, spec, tuple(values))
