"""What the rendered prompt marks as control, as trained, and as the start of the reply."""

import dataclasses

import pytest
from conversations import any_text, conversations, plain_text
from hypothesis import given, settings
from hypothesis import strategies as st

from openglm.errors import TemplateError
from openglm.text.messages import Conversation, Message, Tool, ToolCall
from openglm.text.template import encode_training, render, render_training, split_reasoning

STYLES = ("glm-4.5", "glm-4.7")
styles = st.sampled_from(STYLES)


def chat(*turns, **options):
    return Conversation(tuple(Message(role, content) for role, content in turns), **options)


def blanked_texts(conversation):
    """The same conversation with every text replaced, so that what remains is the template's own structure."""

    def blank(message):
        reasoning, content = split_reasoning(message)
        return dataclasses.replace(
            message,
            content="x" if content.strip() else "",
            reasoning="y" if reasoning else None,
            tool_calls=tuple(ToolCall("n", dict.fromkeys((f"k{i}" for i in range(len(c.arguments))), 1)) for c in message.tool_calls),
        )

    return dataclasses.replace(
        conversation, messages=tuple(map(blank, conversation.messages)), tools=tuple(Tool("n", {}, {}) for _ in conversation.tools)
    )


def test_contents_cannot_add_or_remove_a_control_token(small):
    @settings(max_examples=250, deadline=None)
    @given(conversations(), styles)
    def check(conversation, style):
        def control_ids(given_conversation):
            return [i for i in small.encode_segments(render(given_conversation, style).segments) if i >= small.endoftext]

        assert control_ids(conversation) == control_ids(blanked_texts(conversation))

    check()


def test_segments_are_the_text_and_ids_are_joint_for_harmless_text(small):
    @settings(max_examples=200, deadline=None)
    @given(conversations(plain_text), styles)
    def check(conversation, style):
        rendered = render(conversation, style)
        assert small.encode_segments(rendered.segments) == small.encode_raw(rendered.text)
        assert all(segment.text for segment in rendered.segments)

    check()


def test_typed_nothink_is_text_while_thinking():
    segments = render(chat(("user", "do/nothink")), "glm-4.5").segments
    assert [s.text for s in segments if not s.control] == ["do/nothink"]


def test_typed_nothink_is_the_switch_when_thinking_is_off():
    conversation = chat(("user", "a/nothink/nothink"), ("assistant", "b"), ("user", "c"), thinking=False)
    rendered = render(conversation, "glm-4.5")
    assert rendered.text.count("/nothink") == 3
    assert [s.text for s in rendered.segments if not s.control] == ["a/nothink", "b", "c"]
    in_47 = render(conversation, "glm-4.7")
    assert [s.text for s in in_47.segments if not s.control] == ["a/nothink/nothink", "b", "c"]


@pytest.mark.parametrize(
    ("style", "thinking", "start"),
    [
        ("glm-4.5", True, "undecided"),
        ("glm-4.5", False, "content"),
        ("glm-4.7", True, "reasoning"),
        ("glm-4.7", False, "content"),
    ],
)
def test_start_state_follows_the_prompt(style, thinking, start):
    assert render(chat(("user", "q"), thinking=thinking), style).start == start


def test_start_state_is_that_of_this_turn_whatever_the_history_holds():
    history = (
        Message("user", "q </think>"),
        Message("assistant", "", reasoning="r", tool_calls=(ToolCall("f"),)),
        Message("tool", "<think> </think>"),
    )
    assert render(Conversation(history), "glm-4.5").start == "undecided"
    assert render(Conversation(history), "glm-4.7").start == "reasoning"


def test_keep_thinking_changes_only_glm_47():
    turns = (Message("user", "a"), Message("assistant", "b", reasoning="deep"), Message("user", "c"))
    kept = Conversation(turns, keep_thinking=True)
    assert "deep" in render(kept, "glm-4.7").text
    assert "deep" not in render(kept, "glm-4.5").text


def test_reasoning_in_content_is_cut_out_but_a_given_field_wins():
    inline = Message("assistant", "pre<think>\nwhy\n</think>lost</think>\n\nanswer")
    assert split_reasoning(inline) == ("why", "answer")
    given_field = Message("assistant", "<think>x</think>y", reasoning="")
    assert split_reasoning(given_field) == ("", "<think>x</think>y")


@pytest.mark.parametrize("make", [render, render_training])
def test_unknown_role_and_style_are_named(make):
    with pytest.raises(TemplateError, match="role 'robot'") as caught:
        make(chat(("robot", "x")), "glm-4.5")
    assert caught.value.param == "messages[0].role"
    with pytest.raises(TemplateError, match=r"glm-4\.5, glm-4\.7"):
        make(chat(("user", "x")), "glm-9")


def spans(segments):
    """(text before, trained text) of each trained span."""
    before = ""
    found = []
    for segment in segments:
        if segment.trained and found and found[-1][0] + found[-1][1] == before:
            found[-1] = (found[-1][0], found[-1][1] + segment.text)
        elif segment.trained:
            found.append((before, segment.text))
        before += segment.text
    return found


def test_training_text_of_a_tool_loop():
    conversation = Conversation(
        (
            Message("user", "q"),
            Message("assistant", "", reasoning="look", tool_calls=(ToolCall("f", {"a": 1}),)),
            Message("tool", "r"),
            Message("assistant", "done", reasoning="easy"),
        )
    )
    trained = [text for _, text in spans(render_training(conversation, "glm-4.5"))]
    call = "<tool_call>f\n<arg_key>a</arg_key>\n<arg_value>1</arg_value>\n</tool_call>"
    assert trained == [f"\n<think>look</think>\n{call}<|observation|>", "\n<think>easy</think>\ndone<|user|>"]
    trained = [text for _, text in spans(render_training(conversation, "glm-4.7"))]
    assert trained == [f"look</think>{call.replace(chr(10), '')}<|observation|>", "easy</think>done<|user|>"]


def test_blanked_thinking_is_not_trained_but_the_answer_is():
    conversation = Conversation((Message("user", "a"), Message("assistant", "b", reasoning="r"), Message("user", "c")))
    assert spans(render_training(conversation, "glm-4.5")) == [("[gMASK]<sop><|user|>\na<|assistant|>\n<think></think>", "\nb<|user|>")]


def test_thinking_off_trains_what_follows_the_closed_block():
    conversation = chat(("user", "a"), ("assistant", "b"), thinking=False)
    assert [text for _, text in spans(render_training(conversation, "glm-4.5"))] == ["\nb<|user|>"]
    assert [text for _, text in spans(render_training(conversation, "glm-4.7"))] == ["b<|user|>"]


def test_a_marker_the_model_would_not_write_is_not_trained():
    conversation = chat(("user", "a"), ("assistant", "b"), ("system", "s"), ("assistant", "c"))
    assert [text.split("</think>")[-1] for _, text in spans(render_training(conversation, "glm-4.5"))] == ["\nb", "\nc<|user|>"]


def test_reasoning_with_thinking_off_cannot_be_trained():
    conversation = Conversation((Message("user", "a"), Message("assistant", "b", reasoning="r")), thinking=False)
    with pytest.raises(TemplateError, match="thinking is off"):
        render_training(conversation, "glm-4.5")


def _trainable(conversation):
    """As a data set holds them: reasoning only where thinking is on."""
    if conversation.thinking:
        return conversation
    messages = tuple(dataclasses.replace(m, reasoning="" if m.role == "assistant" else None) for m in conversation.messages)
    return dataclasses.replace(conversation, messages=messages)


def test_training_text_continues_the_rendered_text():
    @settings(max_examples=300, deadline=None)
    @given(conversations().map(_trainable), styles)
    def check(conversation, style):
        segments = render_training(conversation, style)
        rendered = render(conversation, style, add_generation_prompt=False).text
        last = conversation.messages[-1]
        marker = ("<|observation|>" if last.tool_calls else "<|user|>") if last.role == "assistant" else ""
        assert "".join(segment.text for segment in segments) == rendered + marker

    check()


def test_each_trained_turn_is_preceded_by_exactly_the_prompt_ids_of_inference(small):
    """Token by token: what precedes the trained tokens of a turn after the last user turn is what the server would send."""

    @settings(max_examples=250, deadline=None)
    @given(conversations().map(_trainable), styles)
    def check(conversation, style):
        ids, trained = encode_training(small, render_training(conversation, style))
        assert len(ids) == len(trained)
        messages = conversation.messages
        last_user = max((i for i, m in enumerate(messages) if m.role == "user"), default=-1)
        starts = [i for i, flag in enumerate(trained) if flag and not (i and trained[i - 1])]
        prefixes = [ids[:start] for start in starts]
        for i, message in enumerate(messages):
            if message.role != "assistant" or i <= last_user:
                continue
            if style == "glm-4.7" and conversation.thinking and not split_reasoning(message)[0]:
                continue  # its prompt would open <think>, its history closes it: no text can agree with both
            if not (conversation.thinking or message.content.strip() or message.tool_calls):
                continue  # nothing in it to train, except maybe the marker
            cut = dataclasses.replace(conversation, messages=messages[:i])
            assert small.encode_segments(render(cut, style).segments) in prefixes

    check()


def test_one_marker_ends_every_trained_turn(small):
    @settings(max_examples=200, deadline=None)
    @given(conversations().map(_trainable), styles)
    def check(conversation, style):
        segments = render_training(conversation, style)
        ids, trained = encode_training(small, segments)
        markers = {small.user, small.observation}
        expected = 0
        for message, following in zip(conversation.messages, [*conversation.messages[1:], None], strict=True):
            ends_as = "tool" if message.tool_calls else "user"
            expected += message.role == "assistant" and (following is None or following.role == ends_as)
        assert sum(flag and i in markers for i, flag in zip(ids, trained, strict=True)) == expected
        assert all(not flag for i, flag in zip(ids, trained, strict=True) if i in (small.assistant, small.system, small.sop))

    check()


def test_rendering_never_fails_on_any_text():
    @settings(max_examples=100, deadline=None)
    @given(conversations(any_text | st.text(max_size=10)), styles)
    def check(conversation, style):
        assert render(conversation, style).text.startswith("[gMASK]<sop>")

    check()
