"""The chat template in Python: a conversation becomes prompt segments, for inference and for training from one walk.

Two styles exist. GLM-4.5 and 4.6 put newlines around everything, close an empty think block as `\\n<think></think>` and switch
thinking off with a `/nothink` after each user text. GLM-4.7 uses no newlines, writes empty thinking as a lone `</think>`, opens
`<think>` in the prompt itself, and can keep the reasoning of earlier turns. Everything else is shared, so the walk is
written once over a `_Layout`.

Control segments hold exactly the template's own text. Contents, reasoning, tool definitions, tool names, argument names and
values, and tool results are ordinary text. One exception, by the template's own rule: with thinking off, a user text that
already ends with `/nothink` gets no second one, so that ending is the control token.

Reasoning is shown only for assistant turns after the last user turn (a tool loop keeps its thoughts, a new question blanks
them). Training follows the same text: `trained` marks what the model writes itself, i.e. an assistant turn without what the
generation prompt supplies, and the one role marker that ends the turn. A blanked think block is never trained, and neither is
a marker that the model would not write at that place (a system turn right after an answer).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Final, Literal, get_args

from openglm.errors import TemplateError
from openglm.text.messages import Conversation, Message, Tool
from openglm.text.schema_types import to_json
from openglm.text.segments import Segment, TrainingSegment
from openglm.text.tokenizer import Tokenizer

__all__ = [
    "Rendered",
    "Segment",
    "StartState",
    "TemplateStyle",
    "TrainingSegment",
    "encode_training",
    "render",
    "render_training",
]

TemplateStyle = Literal["glm-4.5", "glm-4.7"]
StartState = Literal["undecided", "reasoning", "content"]
"""Where the reply begins: the model decides itself (`\\n<think>`), inside an open think block, or after a closed one."""

_NOTHINK: Final = "/nothink"


@dataclass(frozen=True)
class Rendered:
    """A prompt. `start` is the state in which the turn parser must read the reply."""

    segments: tuple[Segment, ...]
    start: StartState

    @property
    def text(self) -> str:
        """The exact prompt text, as the official template would print it."""
        return "".join(segment.text for segment in self.segments)


def render(conversation: Conversation, style: TemplateStyle, *, add_generation_prompt: bool = True) -> Rendered:
    """The prompt for the next assistant turn (or, without generation prompt, the conversation so far)."""
    layout = _layout(style)
    pieces = list(_walk(conversation, layout))
    start: StartState = "undecided"
    if add_generation_prompt:
        supplied = layout.opening if conversation.thinking else layout.empty_thinking
        pieces.append(_control(f"<|assistant|>{supplied}"))
        start = layout.start if conversation.thinking else "content"
    merged = groupby((piece for piece in pieces if piece.text), key=lambda piece: piece.control)
    return Rendered(tuple(Segment("".join(p.text for p in group), control) for control, group in merged), start)


def render_training(conversation: Conversation, style: TemplateStyle) -> tuple[TrainingSegment, ...]:
    """The text of the whole conversation, with a mark on what the model must learn to write."""
    layout = _layout(style)
    pieces = list(_walk(conversation, layout, training=True))
    if conversation.messages and conversation.messages[-1].role == "assistant":
        pieces.append(_control(_closing_marker(conversation.messages[-1]), trained=True))
    merged = groupby((piece for piece in pieces if piece.text), key=lambda piece: (piece.control, piece.trained))
    return tuple(TrainingSegment("".join(p.text for p in group), *key) for key, group in merged)


def encode_training(tokenizer: Tokenizer, segments: Iterable[TrainingSegment]) -> tuple[list[int], list[bool]]:
    """Ids of a training text and, for each, whether it is trained. Trained spans begin and end at added tokens, so that
    the ids equal those the model sees at inference."""
    ids: list[int] = []
    trained: list[bool] = []
    for flag, group in groupby(segments, key=lambda segment: segment.trained):
        new = tokenizer.encode_segments(Segment(segment.text, segment.control) for segment in group)
        ids += new
        trained += [flag] * len(new)
    return ids, trained


@dataclass(frozen=True)
class _Layout:
    """What differs between the styles."""

    gap: str  # between a marker and its text
    empty_thinking: str  # a turn without (or with blanked) reasoning
    opening: str  # what the generation prompt supplies when the model may think
    start: StartState  # of the reply to such a prompt
    nothink_suffix: bool  # thinking off is said after each user text
    can_keep_thinking: bool  # `keep_thinking` has an effect


_LAYOUTS: Final[dict[TemplateStyle, _Layout]] = {
    "glm-4.5": _Layout("\n", "\n<think></think>", "", "undecided", nothink_suffix=True, can_keep_thinking=False),
    "glm-4.7": _Layout("", "</think>", "<think>", "reasoning", nothink_suffix=False, can_keep_thinking=True),
}


def _layout(style: TemplateStyle) -> _Layout:
    if style not in _LAYOUTS:
        raise TemplateError(f"unknown template style {style!r}; known: {', '.join(get_args(TemplateStyle))}")
    return _LAYOUTS[style]


def _control(text: str, trained: bool = False) -> TrainingSegment:
    return TrainingSegment(text, control=True, trained=trained)


def _ordinary(text: str, trained: bool = False) -> TrainingSegment:
    return TrainingSegment(text, control=False, trained=trained)


def _closing_marker(message: Message) -> str:
    return "<|observation|>" if message.tool_calls else "<|user|>"


def _walk(conversation: Conversation, layout: _Layout, *, training: bool = False) -> Iterator[TrainingSegment]:
    """Everything but the generation prompt."""
    yield _control("[gMASK]<sop>")
    if conversation.tools:
        yield from _tool_definitions(conversation.tools, layout)
    messages = conversation.messages
    last_user = max((i for i, message in enumerate(messages) if message.role == "user"), default=-1)
    for i, message in enumerate(messages):
        previous = messages[i - 1] if i else None
        if message.role == "assistant":
            kept = i > last_user or (conversation.keep_thinking and layout.can_keep_thinking)
            if training and kept and not conversation.thinking and split_reasoning(message)[0]:
                raise TemplateError(
                    f"message {i} carries reasoning but thinking is off: the model could never write it; "
                    "drop the reasoning or turn thinking on",
                    param=f"messages[{i}].reasoning",
                )
            yield _marker("<|assistant|>", previous)
            yield from _assistant_turn(message, layout, kept=kept, thinking=conversation.thinking)
        elif message.role == "tool":
            if previous is None or previous.role != "tool":
                yield _marker("<|observation|>", previous)
            yield _control(f"{layout.gap}<tool_response>{layout.gap}")
            yield _ordinary(message.content)
            yield _control(f"{layout.gap}</tool_response>")
        elif message.role == "user":
            yield _marker("<|user|>", previous)
            yield _control(layout.gap)
            yield from _user_text(message.content, layout, thinking=conversation.thinking)
        elif message.role == "system":
            yield _marker("<|system|>", previous)
            yield _control(layout.gap)
            yield _ordinary(message.content)
        else:
            raise TemplateError(f"message {i} has the unknown role {message.role!r}", param=f"messages[{i}].role")


def _marker(marker: str, previous: Message | None) -> TrainingSegment:
    """A role marker is trained where the assistant turn before it ends by writing it."""
    ended_turn = previous is not None and previous.role == "assistant" and marker == _closing_marker(previous)
    return _control(marker, trained=ended_turn)


def _user_text(text: str, layout: _Layout, *, thinking: bool) -> Iterator[TrainingSegment]:
    if thinking or not layout.nothink_suffix:
        yield _ordinary(text)
    else:
        yield _ordinary(text.removesuffix(_NOTHINK))
        yield _control(_NOTHINK)


def _assistant_turn(message: Message, layout: _Layout, *, kept: bool, thinking: bool) -> Iterator[TrainingSegment]:
    reasoning, content = split_reasoning(message)
    if kept and reasoning:
        yield _control(f"{layout.gap}<think>", trained=not layout.opening)
        yield _ordinary(reasoning.strip(), trained=True)
        yield _control("</think>", trained=True)
    else:
        # The 4.5 model writes an empty think block itself when it may think; the lone </think> of 4.7 only ever comes
        # from a template.
        writes_it = kept and thinking and not layout.opening
        yield _control(layout.empty_thinking, trained=writes_it)
    if content.strip():
        yield _control(layout.gap, trained=True)
        yield _ordinary(content.strip(), trained=True)
    for call in message.tool_calls:
        yield _control(f"{layout.gap}<tool_call>", trained=True)
        yield _ordinary(call.name, trained=True)
        yield _control(layout.gap, trained=True)
        for key, value in call.arguments.items():
            yield _control("<arg_key>", trained=True)
            yield _ordinary(key, trained=True)
            yield _control(f"</arg_key>{layout.gap}<arg_value>", trained=True)
            yield _ordinary(value if isinstance(value, str) else to_json(value), trained=True)
            yield _control(f"</arg_value>{layout.gap}", trained=True)
        yield _control("</tool_call>", trained=True)


def split_reasoning(message: Message) -> tuple[str, str]:
    """(reasoning, content). A turn without a reasoning field may carry it inside the content, as `<think>..</think>`."""
    if message.reasoning is not None or "</think>" not in message.content:
        return message.reasoning or "", message.content
    parts = message.content.split("</think>")
    return parts[0].rstrip("\n").split("<think>")[-1].lstrip("\n"), parts[-1].lstrip("\n")


def _tool_definitions(tools: tuple[Tool, ...], layout: _Layout) -> Iterator[TrainingSegment]:
    gap = layout.gap
    yield _control(
        "<|system|>\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
        "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
    )
    for tool in tools:
        yield _ordinary(to_json(tool.definition))
        yield _control("\n")
    pairs = "".join(f"<arg_key>{{arg-key-{n}}}</arg_key>{gap}<arg_value>{{arg-value-{n}}}</arg_value>{gap}" for n in (1, 2))
    yield _control(
        "</tools>\n\nFor each function call, output the function name and arguments within the following XML format:\n"
        f"<tool_call>{{function-name}}{gap}{pairs}...{gap}</tool_call>"
    )
