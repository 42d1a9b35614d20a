"""Conversations with tools: choosing and filling a call, refusing when nothing fits, reading what a tool returned.

The same requests appear with the fitting tool and without it, so that only the tools in the context can tell call from
refusal. Thinking makes that decision step by step and writes down whatever a step leans on: the goal, then each tool in order
with its description and yes or no, then for each call every parameter of the schema with its description and the value of the
request (`-` where the request has none). So no step has to look up in one place what it must look for in another.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence

from openglm.synth.arithmetic import operands, question, think_add
from openglm.synth.catalog import Entry, catalogue_request, catalogue_tool
from openglm.synth.episode import Episode, reply
from openglm.synth.invention import invented_label
from openglm.synth.lexicon import VERBS, WORDS
from openglm.synth.open_tools import open_request
from openglm.synth.smalltalk import small_talk
from openglm.synth.split import Split
from openglm.synth.toolset import Request, ToolSpec, compose_request, compose_tool, distractors, draw_noun
from openglm.synth.values import KINDS, Language, draw, kind_of, written
from openglm.text.messages import JSON, Conversation, Message, ToolCall

REFUSAL: dict[Language, str] = {"en": "I have no tool for that.", "zh": "我没有可以做这件事的工具。"}
NOT_NEEDED: dict[Language, str] = {"en": "No tool needed.", "zh": "不需要工具。"}

_NUM_TOOLS = (1, 1, 1, 2, 2, 2, 2, 3, 3, 4)
_CATALOGUE_SHARE = {"train": 0.22, "heldout": 0.15}
_OPEN_SHARE = 0.18  # of training requests: natural words about any noun
_THINKING_SHARE = 0.8


def tool_call(rng: random.Random, split: Split, language: Language) -> Episode:
    """One request, one to four tools, one of which fits."""
    request, _ = draw_request(rng, split, language)
    specs = [request.target, *_others(rng, split, language, request, rng.choice(_NUM_TOOLS) - 1)]
    rng.shuffle(specs)
    thinking = rng.random() < _THINKING_SHARE
    turn = calling([request.call], think_call(language, request.goal, specs, [request.call]), thinking)
    return Episode("tool_call", _conversation(rng, specs, [Message("user", request.text), turn], thinking))


def tool_call_parallel(rng: random.Random, split: Split, language: Language) -> Episode:
    """Two calls in one turn: one tool with two values, or two tools."""
    thinking = rng.random() < _THINKING_SHARE
    if rng.random() < 0.5:
        requests = list(_same_tool_twice(rng, split, language))
        specs = [requests[0].target]
        text = requests[0].text
        goal = requests[0].goal
    else:
        requests = _two_tools(rng, split, language)
        specs = [request.target for request in requests]
        first, second = (request.text.removesuffix("，谢谢。").rstrip(".?。？") for request in requests)
        text = f"{first}，然后{second}。" if language == "zh" else f"{first}, and then {second[0].lower()}{second[1:]}."
        goal = (", " if language == "en" else "，").join(request.goal for request in requests)
    specs += _others(rng, split, language, requests[0], rng.choice((0, 0, 1)), also=requests[1:])
    rng.shuffle(specs)
    calls = [request.call for request in requests]
    turn = calling(calls, think_call(language, goal, specs, calls), thinking)
    return Episode("tool_call_parallel", _conversation(rng, specs, [Message("user", text), turn], thinking))


def no_tool(rng: random.Random, split: Split, language: Language) -> Episode:
    """The requests of `tool_call`, but nothing in the context fits."""
    request, entry = draw_request(rng, split, language)
    while entry is not None and entry.is_calculator:  # without a calculator a sum is worked out, not refused
        request, entry = draw_request(rng, split, language)
    specs = _others(rng, split, language, request, rng.choice(_NUM_TOOLS) if rng.random() < 0.93 else 0)
    thinking = rng.random() < _THINKING_SHARE
    turn = reply(REFUSAL[language], think_call(language, request.goal, specs, []), thinking)
    return Episode("no_tool", _conversation(rng, specs, [Message("user", request.text), turn], thinking))


def tools_unneeded(rng: random.Random, split: Split, language: Language) -> Episode:
    """Tools are there, but the question needs none: a sum or small talk."""
    thinking = rng.random() < 0.7
    if rng.random() < 0.4:
        a, b = operands(rng, split)
        thinking = thinking or max(a, b) >= 100
        text, answer = question(rng, a, "+", b, language), f"{a} + {b} = {a + b}"
        thought = f"{NOT_NEEDED[language]}\n{think_add(a, b)}"
    else:
        text, answer, thought = small_talk(rng, language)
        thought = NOT_NEEDED[language]
    specs = [compose_tool(rng, split, language) for _ in range(rng.choice((1, 1, 2, 3)))]
    return Episode("tools_unneeded", _conversation(rng, specs, [Message("user", text), reply(answer, thought, thinking)], thinking))


def tool_result(rng: random.Random, split: Split, language: Language) -> Episode:
    """The whole loop: request, call, what the tool returned, and an answer that states values of it."""
    fields = _fields(rng, split, rng.choice((1, 2, 2, 3, 4)))
    wanted: str | None = None
    entry: Entry | None = None
    if rng.random() < 0.5:
        wanted = rng.choice(fields)[0]
        request = _field_request(rng, split, language, wanted)
    else:
        request, entry = draw_request(rng, split, language)
        fields = fields[:3] if entry is None else _entry_fields(rng, entry)
    specs = [request.target, *_others(rng, split, language, request, rng.choice((0, 0, 0, 1)))]
    rng.shuffle(specs)
    thinking = rng.random() < _THINKING_SHARE
    values = _drawn_fields(rng, split, language, fields)
    content, thought, answer = _result(rng, split, language, values, wanted)
    messages = [
        Message("user", request.text),
        calling([request.call], think_call(language, request.goal, specs, [request.call]), thinking),
        Message("tool", content),
        reply(answer, thought, thinking),
    ]
    return Episode("tool_result", _conversation(rng, specs, messages, thinking))


def follow_up(rng: random.Random, split: Split, language: Language) -> Episode:
    """After an answered call the user asks the same for another value: call the same tool again."""
    one, two = _same_tool_twice(rng, split, language)
    thinking = rng.random() < _THINKING_SHARE
    fields = _fields(rng, split, 1)
    values = _drawn_fields(rng, split, language, fields)
    first_text = one.text.replace(_both(one, two, language), one.values[0][1].spoken)
    value = two.values[0][1].spoken
    again = (
        rng.choice(("And for {}?", "What about {}?", "And {}?", "Now for {}."))
        if language == "en"
        else rng.choice(("那{}呢？", "{}呢？", "再查{}。"))
    )
    specs = [one.target]
    messages = [
        Message("user", first_text),
        calling([one.call], think_call(language, one.goal, specs, [one.call]), thinking),
        Message("tool", json.dumps(values, ensure_ascii=False)),
        reply(state(values, language), think_result(values), thinking),
        Message("user", again.format(value)),
        calling([two.call], think_call(language, one.goal, specs, [two.call]), thinking),
    ]
    return Episode("follow_up", _conversation(rng, specs, messages, thinking))


def tool_session(rng: random.Random, split: Split, language: Language) -> Episode:
    """Two or three requests in a row over the same tools; usually one of them fits none."""
    described = draw_language(rng, language)
    requests: list[Request] = []
    count = rng.choice((2, 2, 2, 3))
    while len(requests) < count:
        if rng.random() < 2 * _CATALOGUE_SHARE[split]:
            request, entry = catalogue_request(rng, split, language)
        else:
            spec = compose_tool(rng, split, described, num_parameters=rng.choice((0, 1, 1, 1, 2)))
            request, entry = compose_request(rng, split, language, spec), None
        apart = all(not request.target.fits(other) and not other.target.fits(request) for other in requests)
        if apart and not (entry and entry.is_calculator) and request.target.name not in {other.target.name for other in requests}:
            requests.append(request)
    misfit = rng.choice(requests) if rng.random() < 0.75 else None
    specs = [request.target for request in requests if request is not misfit]
    thinking = rng.random() < _THINKING_SHARE
    messages: list[Message] = []
    rng.shuffle(requests)
    rng.shuffle(specs)
    for request in requests:
        messages.append(Message("user", request.text))
        if request is misfit:
            messages.append(reply(REFUSAL[language], think_call(language, request.goal, specs, []), thinking))
            continue
        messages.append(calling([request.call], think_call(language, request.goal, specs, [request.call]), thinking))
        if request is requests[-1] and rng.random() < 0.6:
            break
        values = _drawn_fields(rng, split, language, _fields(rng, split, 1))
        messages.append(Message("tool", json.dumps(values, ensure_ascii=False)))
        messages.append(reply(state(values, language), think_result(values), thinking))
        if request is not requests[-1] and rng.random() < 0.1:
            text, answer, _ = small_talk(rng, language)
            messages += [Message("user", text), reply(answer, NOT_NEEDED[language], thinking)]
    return Episode("tool_session", _conversation(rng, specs, messages, thinking))


def draw_language(rng: random.Random, language: Language) -> Language:
    """The language in which tools are described: English, or in a Chinese conversation mostly Chinese."""
    return "en" if language == "en" or rng.random() < 0.3 else "zh"


def _drawn_fields(rng: random.Random, split: Split, language: Language, fields: Sequence[tuple[str, str]]) -> dict[str, JSON]:
    return {name: draw(rng, kind_of(rng, kind), split, language).json for name, kind in fields}


def draw_request(rng: random.Random, split: Split, language: Language) -> tuple[Request, Entry | None]:
    """A request with its fitting tool: made up, or now and then from the catalogue."""
    if split == "train" and rng.random() < _OPEN_SHARE:
        return open_request(rng, split, language), None
    if rng.random() < _CATALOGUE_SHARE[split]:
        return catalogue_request(rng, split, language)
    described = draw_language(rng, language)
    return compose_request(rng, split, language, compose_tool(rng, split, described)), None


def calling(calls: Sequence[ToolCall], thought: str, thinking: bool) -> Message:
    """An assistant turn that calls tools."""
    return Message("assistant", reasoning=thought if thinking else None, tool_calls=tuple(calls))


def think_call(language: Language, goal: str, specs: Sequence[ToolSpec], calls: Sequence[ToolCall]) -> str:
    """The goal, a verdict on each tool, and the parameters of each call; without a fitting tool, that nothing fits."""
    by_name = {spec.name: spec for spec in specs}
    chosen = {call.name for call in calls}
    lines = [f"The user wants: {goal}" if language == "en" else f"用户想要：{goal}"]
    for spec in specs:
        described = f"{spec.name}: {spec.description}" if spec.description else spec.name
        lines.append(f"{described} -> {'yes' if spec.name in chosen else 'no'}")
    for call in calls:
        lines.append(f"call {call.name}")
        for parameter in by_name[call.name].parameters:
            described = f"{parameter.name} ({parameter.description})" if parameter.description else parameter.name
            value = written(call.arguments[parameter.name]) if parameter.name in call.arguments else "-"
            lines.append(f"{described} = {value}")
    if not calls:
        lines.append("No tool fits." if language == "en" else "没有合适的工具。")
    return "\n".join(lines)


def think_result(values: dict[str, JSON]) -> str:
    """The values that the answer will state."""
    return "\n".join(f"{name} = {written(value)}" for name, value in values.items())


def state(values: dict[str, JSON], language: Language) -> str:
    """The answer that states `values`."""
    if language == "zh":
        return "，".join(f"{name}是{_stated(value, language)}" for name, value in values.items()) + "。"
    parts = [f"the {name.replace('_', ' ')} is {_stated(value, language)}" for name, value in values.items()]
    text = ", ".join(parts[:-1]) + " and " + parts[-1] if len(parts) > 1 else parts[0]
    return f"T{text[1:]}."


def _stated(value: JSON, language: Language) -> str:
    if isinstance(value, list):
        return ("、" if language == "zh" else ", ").join(str(item) for item in value)
    return written(value)


def _result(rng: random.Random, split: Split, language: Language, values: dict[str, JSON], wanted: str | None) -> tuple[str, str, str]:
    """What the tool returns, the thought about it, and the answer."""
    shape = rng.random()
    if shape < 0.12:
        error = rng.choice(_ERRORS)
        if rng.random() < 0.4:
            error = f"{rng.choice(WORDS[split].labels).en} {rng.choice(('not found', 'is invalid', 'is missing', 'unknown'))}"
        content = rng.choice((json.dumps({"error": error}), f"Error: {error}", json.dumps({"status": "error", "message": error})))
        answer = f"The tool reported an error: {error}." if language == "en" else f"工具报错：{error}。"
        return content, f"error = {error}", answer
    if shape < 0.22 and wanted is None:
        value = draw(rng, kind_of(rng, rng.choice(("int", "float", "word", "text", "person", "city"))), split, language)
        answer = f"The result is {value.written}." if language == "en" else f"结果是{value.written}。"
        return value.written, f"result = {value.written}", answer
    stated = values if wanted is None else {wanted: values[wanted]}
    indent = 1 if rng.random() < 0.05 else None
    return json.dumps(values, ensure_ascii=False, indent=indent), think_result(stated), state(stated, language)


_ERRORS = (
    "not found",
    "timeout",
    "permission denied",
    "rate limit exceeded",
    "internal error",
    "invalid input",
    "service unavailable",
    "no access",
)


def _fields(rng: random.Random, split: Split, count: int) -> list[tuple[str, str]]:
    """Names and kinds of result fields."""
    found: dict[str, str] = {}
    while len(found) < count:
        if rng.random() < 0.25:
            found[invented_label(rng, split).replace(" ", "_")] = rng.choice(KINDS)
        else:
            label = rng.choice(WORDS[split].labels)
            found["_".join(label.en.split())] = "word" if label.kind == "point" else label.kind
    return list(found.items())


def _entry_fields(rng: random.Random, entry: Entry) -> list[tuple[str, str]]:
    count = rng.randrange(1, len(entry.fields) + 1)
    return list(entry.fields[:count])


def _field_request(rng: random.Random, split: Split, language: Language, field: str) -> Request:
    """A request for one field of a thing: `What is the amount of the invoice K12?`."""
    described = draw_language(rng, language)
    verb = rng.choice([v for v in VERBS if v.group == "read"])
    spec = compose_tool(rng, split, described, verb=verb, num_parameters=rng.choice((0, 1, 1, 1)), may_be_optional=False)
    plain = compose_request(rng, split, language, spec)
    noun = spec.goal.removeprefix(f"{verb.en} ").removeprefix(verb.zh)
    name = field.replace("_", " ")
    value = "" if not plain.values else plain.values[0][1].spoken
    if language == "zh":
        of = rng.choice((f"{noun}{value}的{field}", f"{value}这个{noun}的{field}") if value else (f"{noun}的{field}",))
        text = rng.choice(("{}是多少？", "{}是什么？", "查一下{}", "告诉我{}。")).format(of)
    else:
        of = f"the {name} of the {noun}" + (
            rng.choice((f" {value}", f" for {value}", f" with {spec.parameters[0].label} {value}")) if value else ""
        )
        text = rng.choice(("What is {}?", "What's {}?", "Tell me {}.", "I need {}.", "Give me {}.")).format(of)
    return Request(text, spec.goal, spec, plain.values)


def _same_tool_twice(rng: random.Random, split: Split, language: Language) -> tuple[Request, Request]:
    """One request text that names two values for the only parameter of a tool, as two requests."""
    kind = rng.choice(("city", "city", "person", "word", "code", "date"))
    described = draw_language(rng, language)
    while True:
        spec = compose_tool(rng, split, described, num_parameters=1, may_be_optional=False)
        if spec.parameters[0].kind.name == kind:
            break
        if rng.random() < 0.25:
            kind = rng.choice(("city", "person", "word", "code", "date"))
    parameter = spec.parameters[0]
    first, second = (draw(rng, parameter.kind, split, language) for _ in range(2))
    while second.json == first.json:
        second = draw(rng, parameter.kind, split, language)
    both = f"{first.spoken}和{second.spoken}" if language == "zh" else f"{first.spoken} and {second.spoken}"
    verb, noun = _parts(spec)
    if language == "zh":
        text = rng.choice(("请{g}：{x}", "帮我{g}，{x}。", "{g} {x}")).format(g=spec.goal, x=both)
    else:
        text = rng.choice(("{V} the {n} for {x}.", "Please {v} the {n} of {x}.", "Can you {v} the {n} for {x}?", "{V} {n}: {x}")).format(
            V=verb.capitalize(), v=verb, n=noun, x=both
        )
    one, two = (Request(text, spec.goal, spec, ((parameter, value),)) for value in (first, second))
    return one, two


def _both(one: Request, two: Request, language: Language) -> str:
    joint = "和" if language == "zh" else " and "
    return f"{one.values[0][1].spoken}{joint}{two.values[0][1].spoken}"


def _parts(spec: ToolSpec) -> tuple[str, str]:
    verb, _, noun = spec.goal.partition(" ")
    return verb, noun


def _two_tools(rng: random.Random, split: Split, language: Language) -> list[Request]:
    described = draw_language(rng, language)
    while True:
        first, second = draw_noun(rng, split), draw_noun(rng, split)
        specs = [
            compose_tool(rng, split, described, noun=noun, num_parameters=rng.choice((0, 1, 1)), may_be_optional=False)
            for noun in (first, second)
        ]
        if first.en not in second.en and second.en not in first.en and specs[0].name != specs[1].name:
            return [compose_request(rng, split, language, spec) for spec in specs]


def _others(
    rng: random.Random, split: Split, language: Language, request: Request, count: int, *, also: Sequence[Request] = ()
) -> list[ToolSpec]:
    """Distractors, described in the language of the fitting tool; in training now and then a catalogue tool."""
    described: Language = "zh" if any(ord(char) > 0x2E80 for char in request.target.description or "") else "en"
    found = distractors(rng, split, described, request, count)
    taken = {request.target.name, *(other.target.name for other in also)}
    text = " ".join((request.text, *(other.text for other in also))).lower()
    kept: list[ToolSpec] = []
    for spec in found:
        candidate = spec
        if rng.random() < 0.2:
            natural = split == "train" and rng.random() < 0.5
            tool = open_request(rng, split, described).target if natural else catalogue_tool(rng, split, described)
            if not tool.topics & request.target.topics and not any(topic in text for topic in tool.topics):
                candidate = tool
        if candidate.name not in taken:
            taken.add(candidate.name)
            kept.append(candidate)
    return kept


def _conversation(rng: random.Random, specs: Sequence[ToolSpec], messages: Sequence[Message], thinking: bool) -> Conversation:
    system = [Message("system", rng.choice(_SYSTEM))] if rng.random() < 0.06 else []
    return Conversation((*system, *messages), tools=tuple(spec.tool(rng) for spec in specs), thinking=thinking)


_SYSTEM = (
    "You are a helpful assistant.",
    "You are a helpful AI assistant with tools.",
    "Use the tools when they fit.",
    "你是一个有用的助手。",
)
