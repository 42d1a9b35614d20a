"""OpenAI requests to conversations: what is normalised, what is refused and how the place is named."""

import copy
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openglm.errors import RequestError
from openglm.text.messages import Message, ToolCall
from openglm.text.openai_messages import conversation_from_openai, message_to_openai
from openglm.text.template import render
from openglm.text.turn_parser import parse_turn


def tool(name="f", **function):
    return {"type": "function", "function": {"name": name, **function}}


def first(message):
    return conversation_from_openai([message], None).messages[0]


@pytest.mark.parametrize(
    ("given_message", "expected"),
    [
        ({"role": "user", "content": "a", "name": "me", "x": 1}, Message("user", "a")),
        ({"role": "user", "content": [{"type": "text", "text": "a"}, "b", {"type": "input_text", "text": "c"}]}, Message("user", "abc")),
        ({"role": "user", "content": []}, Message("user", "")),
        ({"role": "developer", "content": "a"}, Message("system", "a")),
        ({"role": "function", "name": "f", "content": "a"}, Message("tool", "a")),
        ({"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "1"}]}, Message("tool", "1", tool_call_id="c1")),
        ({"role": "tool", "content": None}, Message("tool", "")),
        ({"role": "assistant"}, Message("assistant", "")),
        ({"role": "assistant", "content": None, "tool_calls": None}, Message("assistant", "")),
        ({"role": "assistant", "content": "a", "reasoning_content": "r"}, Message("assistant", "a", reasoning="r")),
        ({"role": "assistant", "content": "a", "reasoning": "r", "reasoning_content": None}, Message("assistant", "a", reasoning="r")),
        ({"role": "user", "content": "a", "reasoning_content": "r"}, Message("user", "a")),
        ({"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}, Message("assistant", "no")),
    ],
)
def test_messages_are_normalised(given_message, expected):
    assert first(given_message) == expected


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [('{"a": 1}', {"a": 1}), ("", {}), (" ", {}), (None, {}), ({"a": [1]}, {"a": [1]}), ('{"b": 1, "a": 2}', {"b": 1, "a": 2})],
)
def test_call_arguments_become_an_object(arguments, expected):
    """Clients send JSON text; a template that met the text would fail or print it."""
    message = first({"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": arguments}}]})
    assert message.tool_calls == (ToolCall("f", expected, id="c"),)
    assert list(message.tool_calls[0].arguments) == list(expected)


def test_older_and_bare_calls_are_understood():
    assert first({"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}}).tool_calls == (ToolCall("f"),)
    assert first({"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"a": 1}}]}).tool_calls == (ToolCall("f", {"a": 1}),)


def test_tools_are_kept_whole():
    definition = tool("browser.search", description="d", parameters={"type": "object"}, strict=True)
    conversation = conversation_from_openai([{"role": "user", "content": "q"}], [definition, tool("now")], thinking=False)
    assert [t.name for t in conversation.tools] == ["browser.search", "now"]
    assert conversation.tools[0].definition == definition
    assert conversation.tools[0].parameters == {"type": "object"}
    assert conversation.tools[1].parameters == {}
    assert not conversation.thinking


def call(**function):
    return {"role": "assistant", "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", **function}}]}


@pytest.mark.parametrize(
    ("messages", "tools", "param"),
    [
        ("hi", None, "messages"),
        (None, None, "messages"),
        ([], None, "messages"),
        ([3], None, "messages[0]"),
        ([{"content": "x"}], None, "messages[0].role"),
        ([{"role": "robot", "content": "x"}], None, "messages[0].role"),
        ([{"role": ["user"], "content": "x"}], None, "messages[0].role"),
        ([{"role": "user", "content": 3}], None, "messages[0].content"),
        ([{"role": "user", "content": {"text": "x"}}], None, "messages[0].content"),
        ([{"role": "user", "content": [3]}], None, "messages[0].content[0]"),
        ([{"role": "user", "content": [{"type": "text"}]}], None, "messages[0].content[0].text"),
        ([{"role": "user", "content": ["a", {"type": "image_url", "image_url": {}}]}], None, "messages[0].content[1].type"),
        ([{"role": "user", "content": [{"type": ["text"]}]}], None, "messages[0].content[0].type"),
        ([{"role": "assistant", "reasoning_content": 3}], None, "messages[0].reasoning_content"),
        ([{"role": "assistant", "tool_calls": {}}], None, "messages[0].tool_calls"),
        ([{"role": "assistant", "tool_calls": [3]}], None, "messages[0].tool_calls[0]"),
        ([{"role": "assistant", "tool_calls": [{"type": "custom"}]}], None, "messages[0].tool_calls[0].type"),
        ([{"role": "assistant", "tool_calls": [{"function": 3}]}], None, "messages[0].tool_calls[0].function"),
        ([{"role": "assistant", "tool_calls": [{"id": 3, "function": {"name": "f"}}]}], None, "messages[0].tool_calls[0].id"),
        ([call(name="two words")], None, "messages[0].tool_calls[0].function.name"),
        ([call(arguments='{"a": ')], None, "messages[0].tool_calls[0].function.arguments"),
        ([call(arguments="[1]")], None, "messages[0].tool_calls[0].function.arguments"),
        ([call(arguments='{"a": NaN}')], None, "messages[0].tool_calls[0].function.arguments"),
        ([call(arguments="[" * 100_000)], None, "messages[0].tool_calls[0].function.arguments"),
        ([call(arguments='{"a":' * 70 + "1" + "}" * 70)], None, "messages[0].tool_calls[0].function.arguments"),
        ([{"role": "tool", "tool_call_id": 3}], None, "messages[0].tool_call_id"),
        ([{"role": "user", "content": "x"}], {}, "tools"),
        ([{"role": "user", "content": "x"}], ["f"], "tools[0]"),
        ([{"role": "user", "content": "x"}], [{"type": "web_search"}], "tools[0].type"),
        ([{"role": "user", "content": "x"}], [{"type": "function"}], "tools[0].function"),
        ([{"role": "user", "content": "x"}], [tool("")], "tools[0].function.name"),
        ([{"role": "user", "content": "x"}], [tool("a<b>")], "tools[0].function.name"),
        ([{"role": "user", "content": "x"}], [tool(parameters=[])], "tools[0].function.parameters"),
        ([{"role": "user", "content": "x"}], [tool(description=3)], "tools[0].function.description"),
        ([{"role": "user", "content": "x"}], [tool("f"), tool("f")], "tools[1].function.name"),
    ],
)
def test_wrong_requests_name_the_place(messages, tools, param):
    with pytest.raises(RequestError) as caught:
        conversation_from_openai(messages, tools)
    assert caught.value.param == param
    assert str(caught.value).startswith(f"{param}: ")
    assert len(str(caught.value)) < 300


def test_a_parsed_turn_goes_out_and_comes_back():
    text = "<think>why</think>\nLook.\n<tool_call>f\n<arg_key>天</arg_key>\n<arg_value>气</arg_value>\n</tool_call>"
    message = parse_turn(text, "undecided", conversation_from_openai([{"role": "user"}], [tool()]).tools)
    wire = message_to_openai(message)
    assert wire == {
        "role": "assistant",
        "content": "Look.",
        "reasoning_content": "why",
        "tool_calls": [{"id": "call_0", "type": "function", "function": {"name": "f", "arguments": '{"天": "气"}'}}],
    }
    assert message_to_openai(Message("assistant", "", tool_calls=(ToolCall("f", id="x"),)))["content"] is None
    assert message_to_openai(Message("tool", "r", tool_call_id="x")) == {"role": "tool", "content": "r", "tool_call_id": "x"}
    assert first(json.loads(json.dumps(wire))).reasoning == "why"


def test_tool_results_as_parts_are_not_printed_as_python():
    """The raw template would print the repr of each part."""
    conversation = conversation_from_openai([{"role": "tool", "content": [{"type": "text", "text": "12°"}]}], None)
    assert "\n12°\n" in render(conversation, "glm-4.5").text


documents = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=5)
    | st.sampled_from(["user", "assistant", "tool", "text", "function", "{}"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "type", "text", "tool_calls", "function", "name", "arguments", "parameters"]), inner
        )
    ),
    max_leaves=15,
)


@settings(max_examples=200, deadline=None)
@given(documents | st.lists(documents), st.none() | documents | st.lists(documents))
def test_any_document_is_a_conversation_or_a_named_mistake(messages, tools):
    before = copy.deepcopy((messages, tools))
    try:
        conversation = conversation_from_openai(messages, tools)
    except RequestError as error:
        assert error.param is not None
        assert error.param.startswith(("messages", "tools"))
    else:
        assert render(conversation, "glm-4.5").text
    assert (messages, tools) == before
