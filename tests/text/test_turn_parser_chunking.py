"""The result must not depend on how a reply is cut into chunks, and no text may break the parser."""

import json

from conversations import hostile_text
from hypothesis import given, settings
from hypothesis import strategies as st

from openglm.text.messages import Conversation, Message, Tool, ToolCall
from openglm.text.schema_types import to_json
from openglm.text.template import render, render_training
from openglm.text.turn_events import merged
from openglm.text.turn_parser import ToolCallArguments, ToolCallEnd, ToolCallStart, TurnParser, message_from_events, parse_turn

KINDS = ("string", "integer", "number", "boolean", "array", "object", "null")
SCHEMA = {
    "type": "object",
    "properties": {
        **{kind: {"type": kind} for kind in KINDS},
        "maybe": {"type": ["string", "null"]},
        "either": {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/Count"}, {"type": "object"}]},
    },
    "$defs": {"Count": {"type": "integer"}},
}
TOOLS = (Tool("act", SCHEMA, {}), Tool("a.b", {}, {}))

STARTS = st.sampled_from(["undecided", "reasoning", "content"])
TAGS = [f"<{slash}{name}>" for name in ("think", "tool_call", "arg_key", "arg_value") for slash in ("", "/")]
words = st.text(st.sampled_from(list('ab <>/\n"\\1{}[],天🙂')), max_size=8)
typed_values = {
    "string": words,
    "integer": st.integers(-999, 999).map(str),
    "number": st.floats(allow_nan=False, allow_infinity=False).map(str),
    "boolean": st.sampled_from(["true", "false", "True"]),
    "array": st.sampled_from(["[]", "[1, 2]", '["a"', '["]", {}]']),
    "object": st.sampled_from(["{}", '{"a": 1}', "{'a': 1}"]),
    "null": st.sampled_from(["null", "None", ""]),
    "maybe": st.one_of(words, st.sampled_from(["null", "nul", "None", " null "])),
    "either": st.one_of(words, st.sampled_from(["12", "12a", '{"a": 2}', "-", " 7 "])),
    "unknown": st.one_of(words, st.sampled_from(["12", '"q"', "[1", "true", "t"])),
}
pairs = st.sampled_from(sorted(typed_values)).flatmap(lambda key: st.tuples(st.just(key), typed_values[key]))


@st.composite
def written_calls(draw):
    gap = draw(st.sampled_from(["\n", ""]))
    name = draw(st.sampled_from(["act", "a.b", "other"]))
    body = "".join(f"<arg_key>{key}</arg_key>{gap}<arg_value>{value}</arg_value>{gap}" for key, value in draw(st.lists(pairs, max_size=3)))
    return f"<tool_call>{name}{gap}{body}</tool_call>"


noise = st.one_of(words, st.sampled_from([*TAGS, *(tag[:-1] for tag in TAGS), "<tool_call>two words ", "<tool_call>name\n"]))


@st.composite
def transcripts(draw):
    """Mostly well-formed turns; some with noise in between, some cut short."""
    parts = [draw(st.sampled_from(["", "\n<think>", "<think>"])), draw(words), draw(st.sampled_from(["</think>\n", "</think>", ""]))]
    parts.append(draw(words))
    for _ in range(draw(st.integers(0, 2))):
        parts += [draw(written_calls()), draw(st.sampled_from(["", "\n"]))]
        if draw(st.integers(0, 3)) == 0:
            parts.append(draw(noise))
    text = "".join(parts)
    return text[: draw(st.integers(0, len(text)))] if draw(st.integers(0, 3)) == 0 else text


def read(chunks, start, tools=TOOLS, ended=False):
    parser = TurnParser(start, tools)
    events = [event for chunk in chunks for event in parser.feed(chunk)]
    return merged([*events, *parser.finish(ended=ended)])


def check_invariants(events):
    """Calls are numbered, start before and end after their fragments, and the fragments are exactly the arguments."""
    texts, names, ends = {}, {}, {}
    for event in events:
        if isinstance(event, ToolCallStart):
            assert event.index == len(names) == len(ends)
            assert event.name
            names[event.index] = event.name
        elif isinstance(event, ToolCallArguments):
            assert event.index in names
            assert event.index not in ends
            texts[event.index] = texts.get(event.index, "") + event.fragment
        elif isinstance(event, ToolCallEnd):
            ends[event.index] = event.call
    assert names.keys() == ends.keys() == texts.keys()
    for index, call in ends.items():
        assert call.name == names[index]
        parsed = json.loads(texts[index])
        assert parsed == call.arguments
        assert to_json(parsed) == to_json(call.arguments)
        if len(call.arguments) == texts[index].count('": '):
            assert texts[index] == to_json(call.arguments)


@settings(max_examples=300, deadline=None)
@given(transcripts(), STARTS, st.booleans())
def test_every_split_point_gives_the_same_events(text, start, ended):
    whole = read([text], start, ended=ended)
    check_invariants(whole)
    for i in range(1, len(text)):
        assert read([text[:i], text[i:]], start, ended=ended) == whole, i
    assert read(text, start, ended=ended) == whole


@settings(max_examples=300, deadline=None)
@given(st.lists(noise, max_size=14), STARTS, st.booleans(), st.data())
def test_noise_never_breaks_the_parser(parts, start, ended, data):
    text = "".join(parts)
    whole = read([text], start, ended=ended)
    check_invariants(whole)
    size = data.draw(st.integers(1, 7))
    assert read([text[i : i + size] for i in range(0, len(text), size)], start, ended=ended) == whole


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60) | hostile_text, STARTS)
def test_any_text_is_accepted_with_and_without_tools(text, start):
    check_invariants(read([text], start))
    message = message_from_events(read([text], start, tools=()))
    assert not message.tool_calls
    if start == "content":
        assert message.content == (text.removeprefix("\n") if text.removeprefix("\n").strip() else "")


@settings(max_examples=200, deadline=None)
@given(transcripts(), STARTS)
def test_stream_and_one_shot_agree(text, start):
    assert parse_turn(text, start, TOOLS) == message_from_events(read(text, start))


JSON_VALUES = {
    "string": st.text(max_size=12),
    "integer": st.integers(),
    "number": st.floats(allow_nan=False, allow_infinity=False),
    "boolean": st.booleans(),
    "array": st.lists(st.text(max_size=5) | st.integers() | st.none(), max_size=3),
    "object": st.dictionaries(st.text(max_size=3), st.text(max_size=5), max_size=2),
    "null": st.none(),
    "maybe": st.none() | st.text(max_size=8).filter(lambda text: text.strip() not in ("null", "None")),
}
arguments = st.lists(st.sampled_from(sorted(JSON_VALUES)).flatmap(lambda key: st.tuples(st.just(key), JSON_VALUES[key])), max_size=4).map(
    dict
)
clean = st.text(max_size=12).filter(lambda text: "<" not in text)


@settings(max_examples=300, deadline=None)
@given(
    clean,
    st.none() | clean,
    st.lists(st.builds(ToolCall, st.just("act"), arguments), max_size=2),
    st.booleans(),
    st.sampled_from(["glm-4.5", "glm-4.7"]),
)
def test_what_the_template_writes_is_read_back(content, reasoning, calls, thinking, style):
    """Training text and parser are inverse: the trained text of a turn parses to that turn."""
    reasoning = reasoning if thinking else None
    if style == "glm-4.7" and thinking and not (reasoning or "").strip():
        reasoning = "r"
    turn = Message("assistant", content, reasoning=reasoning or "", tool_calls=tuple(calls))
    conversation = Conversation((Message("user", "q"), turn), TOOLS, thinking=thinking)
    prompt = render(Conversation((Message("user", "q"),), TOOLS, thinking=thinking), style)
    trained = "".join(segment.text for segment in render_training(conversation, style) if segment.trained)
    reply = trained.removesuffix("<|observation|>" if calls else "<|user|>")
    assert parse_turn(reply, prompt.start, TOOLS) == Message(
        "assistant", content.strip(), reasoning=(reasoning or "").strip() or None, tool_calls=tuple(calls)
    )
