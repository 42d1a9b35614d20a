"""Tools made up on the spot, and requests that exactly one of them fits.

A made-up tool is a verb and a noun (`create_invoice`), with up to three labelled parameters. A request repeats the words of the
tool's name or description and holds every argument value verbatim: that is the only way in which anybody, man or model,
can recognise a tool never seen before. Nouns, labels and values are disjoint between the two sides of the border. A
third of them are invented (in training about half), so that no finite list can be learned by heart.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from openglm.synth.invention import invented_han, invented_label, invented_word
from openglm.synth.lexicon import VERBS, WORDS, Noun, Verb
from openglm.synth.split import Split
from openglm.synth.values import KINDS, Kind, Language, Value, draw, kind_of
from openglm.text.messages import JSON, Tool, ToolCall

_INVENTED_HAN_SHARE = 0.6  # of Chinese words in training: the lists are short, and their characters are learned by heart


@dataclass(frozen=True)
class Parameter:
    """One parameter: `label` is how a request calls it."""

    name: str
    label: str
    kind: Kind
    required: bool = True
    description: str | None = None


@dataclass(frozen=True)
class ToolSpec:
    """A tool with what the generators know about it: `goal` names its purpose, `topics` the words no distractor may share."""

    name: str
    goal: str
    description: str | None
    parameters: tuple[Parameter, ...]
    topics: frozenset[str]

    def fits(self, request: Request) -> bool:
        """True if a request may seem to be for this tool: then it must not stand beside the fitting one as a wrong choice."""
        text = request.text.lower()
        wanted = request.target.topics
        return any(mine in text or any(mine in other or other in mine for other in wanted) for mine in self.topics)

    def tool(self, rng: random.Random) -> Tool:
        """The definition as a client would send it."""
        properties: dict[str, JSON] = {}
        for parameter in self.parameters:
            schema = parameter.kind.schema()
            if parameter.description is not None:
                schema["description"] = parameter.description
            properties[parameter.name] = schema
        parameters: dict[str, JSON] = {"type": "object", "properties": properties}
        required = [parameter.name for parameter in self.parameters if parameter.required]
        if required or rng.random() < 0.3:
            parameters["required"] = required
        if rng.random() < 0.04:
            parameters["additionalProperties"] = False
        function: dict[str, JSON] = {"name": self.name}
        if self.description is not None:
            function["description"] = self.description
        function["parameters"] = parameters
        return Tool(self.name, parameters, {"type": "function", "function": function})


@dataclass(frozen=True)
class Request:
    """What a user asks and the one call that does it. `goal` is the request in the words of the thinking."""

    text: str
    goal: str
    target: ToolSpec
    values: tuple[tuple[Parameter, Value], ...]

    @property
    def call(self) -> ToolCall:
        """The expected call, arguments in schema order."""
        return ToolCall(self.target.name, {parameter.name: value.json for parameter, value in self.values})


def compose_tool(
    rng: random.Random,
    split: Split,
    language: Language,
    *,
    verb: Verb | None = None,
    noun: Noun | None = None,
    num_parameters: int | None = None,
    may_be_optional: bool = True,
) -> ToolSpec:
    """A tool for `verb` and `noun` (drawn where not given), described in `language`."""
    verb = verb or rng.choice(VERBS)
    noun = noun or draw_noun(rng, split)
    verb_word, noun_word = (verb.zh, noun.zh) if language == "zh" else (verb.en, noun.en)
    if num_parameters is None:
        num_parameters = rng.choice((0, 1, 1, 1, 2, 2, 2, 3))
    parameters = _parameters(rng, split, language, num_parameters, may_be_optional=may_be_optional)
    if language == "zh":
        description: str | None = rng.choice(("{v}{n}", "{v}{n}。", "用于{v}{n}", "{v}一个{n}")).format(v=verb_word, n=noun_word)
        goal = f"{verb_word}{noun_word}"
    else:
        form = rng.choice(("{V} the {n}.", "{V} {a} {n}.", "{V} the {n}", "{V} {n}", "Use this to {v} the {n}."))
        description = form.format(V=verb_word.capitalize(), v=verb_word, n=noun_word, a=article(noun_word))
        goal = f"{verb_word} {noun_word}"
    name = _tool_name(rng, verb.en, noun.en)
    if language == "en" and rng.random() < 0.15 and name.startswith(f"{verb.en}_"):
        description = None
    return ToolSpec(name, goal, description, parameters, frozenset((noun.en, noun.zh)))


def draw_noun(rng: random.Random, split: Split) -> Noun:
    """A noun of one side; a third of them (in training half) are invented, most of those the same in both languages."""
    if rng.random() < (0.5 if split == "train" else 0.35):
        word = invented_word(rng, split)
        return Noun(word, invented_han(rng) if split == "train" and rng.random() < 0.4 else word)
    noun = rng.choice(WORDS[split].nouns)
    return Noun(noun.en, invented_han(rng)) if split == "train" and rng.random() < _INVENTED_HAN_SHARE else noun


def compose_request(rng: random.Random, split: Split, language: Language, spec: ToolSpec) -> Request:
    """A request that a made-up tool fits. Required parameters are always mentioned, optional ones sometimes."""
    chosen = [p for p in spec.parameters if p.required or rng.random() < 0.4]
    values = tuple((parameter, draw(rng, parameter.kind, split, language)) for parameter in chosen)
    spoken = [*values]
    if rng.random() < 0.3:
        rng.shuffle(spoken)
    form = _request_zh if language == "zh" else _request_en
    return Request(form(rng, spec.goal, spoken, bare=len(spec.parameters) == 1), spec.goal, spec, values)


def distractors(rng: random.Random, split: Split, language: Language, request: Request, count: int) -> list[ToolSpec]:
    """Tools that do not fit: mostly another noun (often with the same verb), now and then the same noun with another action."""
    verb = next((v for v in VERBS if request.goal.startswith((v.zh, v.en + " "))), None)
    found: list[ToolSpec] = []
    taken = {request.target.name}
    same_noun, same_verb = (0.12, 0.5) if split == "train" else (0.1, 0.35)  # near misses teach the most
    while len(found) < count:
        draw_kind = rng.random()
        size = rng.choice((0, 1, 1, 2))
        if verb is not None and draw_kind < same_noun:
            noun = Noun(*(request.goal.removeprefix(part) for part in (f"{verb.en} ", verb.zh)))
            if language == "zh":
                noun = _known_noun(noun.zh, split) or draw_noun(rng, split)
            other = rng.choice([v for v in VERBS if v.group != verb.group])
            spec = compose_tool(rng, split, language, verb=other, noun=noun, num_parameters=size)
        else:
            spec = compose_tool(rng, split, language, verb=verb if draw_kind < same_verb else None, num_parameters=size)
            if spec.fits(request):
                continue
        if spec.name not in taken:
            taken.add(spec.name)
            found.append(spec)
    return found


def article(noun: str) -> str:
    """The indefinite article."""
    return "an" if noun[0] in "aeiou" else "a"


def _known_noun(zh: str, split: Split) -> Noun | None:
    return next((noun for noun in WORDS[split].nouns if noun.zh == zh), None)


def _parameters(rng: random.Random, split: Split, language: Language, count: int, *, may_be_optional: bool) -> tuple[Parameter, ...]:
    made: list[Parameter] = []
    taken: set[str] = set()
    described = rng.random() < 0.5 or (language == "zh" and count > 1)
    while len(made) < count:
        if rng.random() < (0.45 if split == "train" else 0.3):
            en = zh = invented_label(rng, split)
            kind = kind_of(rng, rng.choice(KINDS))
        else:
            en, zh, kind_name = rng.choice(WORDS[split].labels)
            if split == "train" and rng.random() < _INVENTED_HAN_SHARE:
                zh = invented_han(rng)
            kind = kind_of(rng, kind_name)
        if en in taken or zh in taken:
            continue
        taken |= {en, zh}
        label = zh if language == "zh" else en
        description = None
        if described:
            description = label if language == "zh" else rng.choice(("{}", "The {}", "the {}", "{} to use")).format(label)
        required = not (may_be_optional and made and rng.random() < 0.3)
        made.append(Parameter(_parameter_name(rng, en, described), label, kind, required, description))
    return tuple(made)


def _parameter_name(rng: random.Random, label: str, described: bool) -> str:
    words = label.split()
    if len(words) > 1 and described and rng.random() < 0.15:
        return words[0] + "".join(word.capitalize() for word in words[1:])
    return "_".join(words)


def _tool_name(rng: random.Random, verb: str, noun: str) -> str:
    words = noun.split()
    draw_style = rng.random()
    if draw_style < 0.66:
        return "_".join((verb, *words))
    if draw_style < 0.74:
        return "_".join((*words, verb))
    if draw_style < 0.82:
        return verb + "".join(word.capitalize() for word in words)
    if draw_style < 0.90:
        return "-".join((verb, *words))
    if draw_style < 0.94:
        return f"{'_'.join(words)}.{verb}"
    return "_".join(words)


def _request_en(rng: random.Random, goal: str, spoken: Sequence[tuple[Parameter, Value]], *, bare: bool) -> str:
    verb, noun = goal.split(" ", 1)
    determiner = rng.choice(("the ", "the ", f"{article(noun)} ", "my ", ""))
    action = rng.choice(
        ("{V} {a}{n}{x}.", "{V} {a}{n}{x}.", "Please {v} {a}{n}{x}.", "Can you {v} {a}{n}{x}?", "I need to {v} {a}{n}{x}.",
         "{v} {a}{n}{x}", "I want to {v} {a}{n}{x}.", "Could you {v} {a}{n}{x}?", "Hi, {v} {a}{n}{x} please.")
    )  # fmt: skip
    return action.format(V=verb.capitalize(), v=verb, a=determiner, n=noun, x=_with_values_en(rng, spoken, bare=bare))


def _with_values_en(rng: random.Random, spoken: Sequence[tuple[Parameter, Value]], *, bare: bool) -> str:
    if not spoken:
        return ""
    pairs = [(parameter.label, value.spoken) for parameter, value in spoken]
    if len(pairs) == 1 and bare and spoken[0][0].kind.name != "bool" and rng.random() < 0.6:
        return rng.choice((" for {}", " of {}", " {}", ": {}", " with {}")).format(pairs[0][1])
    style = rng.choice((" with {} {}| and |, ", " where {} is {}| and |, ", ": {} {}|, |, ", " ({} = {})|, |, ", " using {} {}| and |, "))
    form, last, between = style.split("|")
    opening, closing = (" (", ")") if form.endswith(")") else (form[: form.index("{")], "")
    form = form.strip(" ()") if closing else form[form.index("{") :]
    texts = [form.format(label, value) for label, value in pairs]
    joined = between.join(texts[:-1]) + last + texts[-1] if len(texts) > 1 else texts[0]
    return f"{opening}{joined}{closing}"


def _request_zh(rng: random.Random, goal: str, spoken: Sequence[tuple[Parameter, Value]], *, bare: bool) -> str:
    pairs = [(parameter.label, value.spoken) for parameter, value in spoken]
    opening = rng.choice(("请{}", "帮我{}", "{}", "我想{}", "麻烦{}", "请帮我{}", "我需要{}")).format(goal)
    if not pairs:
        return opening + rng.choice(("。", "", "，谢谢。"))
    if len(pairs) == 1 and bare and spoken[0][0].kind.name != "bool" and rng.random() < 0.6:
        return opening + rng.choice(("：{}", " {}", "，{}", "：{}。")).format(pairs[0][1])
    form = rng.choice(("{}是{}", "{}为{}", "{}：{}", "{} {}", "{}={}"))
    return opening + "，" + "，".join(form.format(*pair) for pair in pairs) + rng.choice(("。", ""))
