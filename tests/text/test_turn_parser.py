"""One turn, read in one piece and character by character: what becomes reasoning, content and calls."""

import json

import pytest

from openglm.text.messages import Message, Tool, ToolCall
from openglm.text.turn_events import merged
from openglm.text.turn_parser import (
    ContentDelta,
    ReasoningDelta,
    ToolCallArguments,
    ToolCallEnd,
    ToolCallStart,
    TurnParser,
    message_from_events,
    parse_turn,
)

SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "ratio": {"type": "number"},
        "deep": {"type": "object"},
        "items": {"type": "array"},
        "flag": {"type": "boolean"},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    },
}
TOOLS = (Tool("weather", SCHEMA, {}), Tool("browser.search", {}, {}), Tool("run", SCHEMA, {}), Tool("run_in_terminal", SCHEMA, {}))


def read(text, start="undecided", tools=TOOLS, **options):
    """The events, checked to be the same character by character."""
    ended = options.pop("ended", False)
    whole = TurnParser(start, tools, **options)
    events = merged([*whole.feed(text), *whole.finish(ended=ended)])
    slow = TurnParser(start, tools, **options)
    pieces = [event for character in text for event in slow.feed(character)]
    assert merged([*pieces, *slow.finish(ended=ended)]) == events
    return events


def message(text, start="undecided", tools=TOOLS, **options):
    return message_from_events(read(text, start, tools, **options))


def call(name, /, **arguments):
    return ToolCall(name, arguments)


def argument(key, value, gap="\n"):
    return f"<arg_key>{key}</arg_key>{gap}<arg_value>{value}</arg_value>{gap}"


def written(name, *arguments, gap="\n"):
    return f"<tool_call>{name}{gap}" + "".join(argument(k, v, gap) for k, v in arguments) + "</tool_call>"


@pytest.mark.parametrize(
    ("start", "text", "reasoning", "content"),
    [
        ("undecided", "\n<think>why</think>\nanswer", "why", "answer"),
        ("undecided", "<think>\nwhy\n</think>\n\nanswer\n", "why", "\nanswer\n"),
        ("undecided", "\n<think></think>\nanswer", None, "answer"),
        ("undecided", "\nanswer", None, "answer"),
        ("undecided", "answer with <think> inside", None, "answer with <think> inside"),
        ("undecided", "no opening</think>\nanswer", None, "no opening\nanswer"),
        ("undecided", "</think>\nanswer", None, "answer"),
        ("undecided", "\n<think>never closed", "never closed", ""),
        ("undecided", " \n\t ", None, ""),
        ("undecided", "", None, ""),
        ("undecided", "<think>a</think>\nabout </think> tags", "a", "about </think> tags"),
        ("undecided", "<think>a <think> b</think>c", "a <think> b", "c"),
        ("undecided", "<think>why</think>\n \n", "why", ""),
        ("reasoning", "why</think>answer", "why", "answer"),
        ("reasoning", "\n<think>why</think>answer", "why", "answer"),
        ("reasoning", "</think>answer", None, "answer"),
        ("reasoning", "only thought", "only thought", ""),
        ("content", "\nanswer", None, "answer"),
        ("content", "a <think>b</think>", None, "a <think>b</think>"),
        ("content", "if a < b: <|user|> </arg_value>", None, "if a < b: <|user|> </arg_value>"),
        ("content", "cut <tool_cal", None, "cut <tool_cal"),
        ("content", "  indented", None, "  indented"),
    ],
)
def test_reasoning_and_content(start, text, reasoning, content):
    assert message(text, start) == Message("assistant", content, reasoning=reasoning)


def test_unclosed_reasoning_of_an_ended_turn_is_also_the_answer():
    """A model that forgets </think> has still answered; a client must not get nothing. A cut reply stays reasoning."""
    assert read("the answer is 4", "reasoning", ended=True)[-1] == ContentDelta("the answer is 4")
    assert message("the answer is 4", "reasoning", ended=True) == Message("assistant", "the answer is 4", reasoning="the answer is 4")
    assert message("<think>x</think>", ended=True).content == ""


@pytest.mark.parametrize("gap", ["\n", ""])
def test_calls_in_both_layouts(gap):
    text = f"<think>t</think>{gap}Let me look.{gap}" + gap.join(
        [
            written("weather", ("city", "Beijing"), ("days", "3"), gap=gap),
            written("browser.search", gap=gap),
            written("weather", ("city", ""), ("deep", '{"a": [1, null]}'), ("flag", "true"), gap=gap),
        ]
    )
    assert message(text) == Message(
        "assistant",
        "Let me look.",
        reasoning="t",
        tool_calls=(
            call("weather", city="Beijing", days=3),
            call("browser.search"),
            call("weather", city="", deep={"a": [1, None]}, flag=True),
        ),
    )


@pytest.mark.parametrize(
    "text",
    ["<tool_call>run</tool_call>", "<tool_call>run\n</tool_call>", "<tool_call>\nrun\n\n</tool_call>", "<tool_call> run </tool_call>"],
)
def test_calls_without_arguments_in_every_layout(text):
    assert read(text) == [ToolCallStart(0, "run"), ToolCallArguments(0, "{}"), ToolCallEnd(0, call("run"))]


def test_string_arguments_flow_and_others_wait():
    parser = TurnParser("content", TOOLS)
    assert parser.feed("<tool_call>run\n<arg_key>city</arg_key>\n<arg_value>") == [
        ToolCallStart(0, "run"),
        ToolCallArguments(0, '{"city": "'),
    ]
    assert parser.feed('a "b"\n') == [ToolCallArguments(0, 'a \\"b\\"\\n')]
    assert parser.feed("</arg_") == []
    assert parser.feed("x</arg_value><arg_key>days</arg_key><arg_value>1") == [ToolCallArguments(0, '</arg_x"')]
    assert parser.feed("2") == []
    assert parser.feed("</arg_value>") == [ToolCallArguments(0, ', "days": 12')]
    assert parser.feed("</tool_call>") == [ToolCallArguments(0, "}"), ToolCallEnd(0, call("run", city='a "b"\n</arg_x', days=12))]


def test_optional_strings_flow_as_soon_as_they_cannot_be_null():
    parser = TurnParser("content", TOOLS)
    parser.feed("<tool_call>run\n<arg_key>note</arg_key>\n<arg_value>")
    assert parser.feed("nu") == []
    assert parser.feed("t") == [ToolCallArguments(0, '{"note": "nut')]
    assert parser.feed("s") == [ToolCallArguments(0, "s")]


def test_names_are_sent_only_when_complete():
    """`run` is a tool and so is `run_in_terminal`."""
    parser = TurnParser("content", TOOLS)
    assert parser.feed("<tool_call>run") == []
    assert parser.feed("_in_terminal") == []
    assert parser.feed("\n") == [ToolCallStart(0, "run_in_terminal")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<tool_call></tool_call>", ""),
        ("<tool_call>\n<arg_key>a</arg_key>\n<arg_value>1</arg_value>\n</tool_call>after", "after"),
        ("see <tool_call><tool_call>", "see"),
    ],
)
def test_a_call_without_a_name_is_skipped(text, expected):
    assert message(text) == Message("assistant", expected)


def test_an_unknown_tool_passes_through():
    assert message(written("mystery", ("x", "1"), ("y", "text"), ("z", '"quoted"'))).tool_calls == (
        call("mystery", x=1, y="text", z="quoted"),
    )


def test_a_call_ends_unclosed_reasoning():
    text = "<think>I should look" + "\n" + written("weather", ("city", "X")) + "</think>\nLooking."
    assert message(text) == Message("assistant", "Looking.", reasoning="I should look", tool_calls=(call("weather", city="X"),))


@pytest.mark.parametrize(
    "prose",
    [
        "I could use <tool_call> here, or </tool_call> there",
        "<tool_call>weather report",
        "the tag <tool_call> opens\na call",
        "<tool_call>" + "x" * 300 + "\n",
        "odd: <tool_call>name</arg_key>x",
        "ends in <tool_call>prose",
    ],
)
def test_prose_about_tool_calls_is_no_call(prose):
    assert message(f"<think>{prose}.</think>\nok") == Message("assistant", "ok", reasoning=f"{prose}.".strip())
    assert message(prose + ".", "content") == Message("assistant", prose + ".")


def test_nothing_is_read_as_a_call_when_no_tool_is_offered():
    text = "\nLook: " + written("weather", ("city", "X")) + " <think>"
    assert message(text, tools=()) == Message("assistant", text.strip())
    assert message(text, tools=(), parse_calls=True).tool_calls == (call("weather", city="X"),)
    assert message(text, parse_calls=False).tool_calls == ()


def test_values_keep_their_white_space_and_may_spell_tags():
    value = '  <tool_call>f\n<arg_key>k</arg_key> </tool_call> <think></think> \n"\\ \U0001f642 '
    assert message(written("weather", ("city", value)) + "tail") == Message("assistant", "tail", tool_calls=(call("weather", city=value),))


def test_duplicate_keys_last_one_wins_in_the_text_too():
    events = read(written("weather", ("city", "a"), ("days", "1"), ("city", "b")))
    assert json.loads(fragments(events)[0]) == events[-1].call.arguments == {"city": "b", "days": 1}


def test_keys_are_stripped():
    assert message(written("weather", ("\n city ", "x"))).tool_calls == (call("weather", city="x"),)


def fragments(events):
    texts = {}
    for event in events:
        if isinstance(event, ToolCallArguments):
            texts[event.index] = texts.get(event.index, "") + event.fragment
    return texts


@pytest.mark.parametrize(
    ("text", "sent"),
    [
        ("<tool_call>weather\n", "{}"),
        ("<tool_call>weather\n<arg_key>ci", "{}"),
        ("<tool_call>weather\n<arg_key>city</arg_key>\n", "{}"),
        ("<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Bei", '{"city": "Bei"}'),
        ("<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Bei</arg_val", '{"city": "Bei</arg_val"}'),
        ("<tool_call>weather\n<arg_key>days</arg_key>\n<arg_value>1", "{}"),
        ("<tool_call>weather\n" + argument("city", "B") + "<arg_key>deep</arg_key>\n<arg_value>{", '{"city": "B"}'),
        ("<tool_call>weather\n" + argument("city", "B"), '{"city": "B"}'),
    ],
)
def test_a_cut_call_is_valid_json_marked_incomplete_and_not_in_the_message(text, sent):
    events = read(text)
    assert fragments(events) == {0: sent}
    assert events[-1] == ToolCallEnd(0, ToolCall("weather", json.loads(sent)), complete=False)
    assert message(text).tool_calls == ()


def test_an_unknown_name_is_certain_only_at_a_tag():
    parser = TurnParser("content", TOOLS)
    assert parser.feed("<tool_call>mystery\n") == []
    assert parser.feed("</tool_call>") == [ToolCallStart(0, "mystery"), ToolCallArguments(0, "{}"), ToolCallEnd(0, call("mystery"))]


def test_a_cut_name_is_dropped():
    assert read("hi <tool_call>run_in") == [ContentDelta("hi")]
    assert read("hi <tool_call>") == [ContentDelta("hi")]


def test_an_ended_turn_completes_a_call_that_lacks_only_its_end_tag():
    text = "<tool_call>weather\n" + argument("city", "B")
    assert message(text, ended=True).tool_calls == (call("weather", city="B"),)
    assert message(text[:-15], ended=True).tool_calls == ()


def test_a_missing_value_end_is_supplied_by_the_call_end():
    text = "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Rome</tool_call>\nThen text <tool_call>run</tool_call>"
    assert message(text) == Message("assistant", "Then text", tool_calls=(call("weather", city="Rome"), call("run")))


def test_a_new_call_ends_an_open_one():
    text = "<tool_call>weather\n" + argument("city", "A") + written("run")
    assert message(text).tool_calls == (call("weather", city="A"), call("run"))


def test_broken_pairs_are_skipped():
    text = (
        "<tool_call>weather\n<arg_value>lost</arg_value><arg_key>days</arg_key>\n<arg_key>city\n<arg_value>A</arg_value>"
        "noise</arg_key><arg_key>gone</arg_key></tool_call>"
    )
    assert message(text).tool_calls == (call("weather", city="A"),)


def test_text_between_and_after_calls_is_content():
    text = "one\n" + written("run") + "\ntwo\n" + written("run") + "\n\nthree\n"
    assert message(text).content == "one\ntwo\n\nthree\n"
    assert message("one\n" + written("run") + "\n").content == "one"
    assert message(written("run") + "</tool_call>\n").content == ""


def test_events_of_several_calls_are_numbered_in_order_of_appearance():
    events = read(written("run") + written("browser.search") + written("weather"))
    assert [(e.index, e.name) for e in events if isinstance(e, ToolCallStart)] == [(0, "run"), (1, "browser.search"), (2, "weather")]


def test_no_block_is_opened_without_text():
    assert read("\n<think>\n</think>\n" + written("run"))[0] == ToolCallStart(0, "run")
    assert read("<think> </think>\n") == []


def test_text_is_not_held_longer_than_a_tag_could_last():
    parser = TurnParser("content", TOOLS)
    assert parser.feed("a <thi") == [ContentDelta("a")]
    assert parser.feed("s") == [ContentDelta(" <this")]
    assert TurnParser("reasoning", ()).feed("x<") == [ReasoningDelta("x")]


def test_a_parser_reads_one_turn():
    parser = TurnParser("content", TOOLS)
    parser.finish()
    assert parser.finish() == []
    with pytest.raises(ValueError, match="one turn"):
        parser.feed("x")


def test_long_replies_are_never_rescanned():
    """Each of these is quadratic in a parser that rescans what it holds, and then takes minutes."""
    n = 30_000
    for text in ["\n" * n + "x", "<" * n, "<tool_call>" + " " * n, "<tool_call>" * (n // 11)]:
        read(text)
    value = "<tool_call>run\n<arg_key>deep</arg_key><arg_value>"
    for text in ["[" * n, "1" * n, " " * n + "1", '"' + "a" * n, "</tool_call>" * (n // 12)]:
        read(value + text)
        read(value + text + "</arg_value></tool_call>")


def test_parse_turn_is_the_streaming_parser_in_one_go():
    text = "<think>a</think>b" + written("weather", ("days", "2"))
    assert parse_turn(text, "undecided", TOOLS) == message(text)
