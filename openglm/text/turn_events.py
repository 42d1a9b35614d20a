"""What one assistant turn consists of while it arrives: the events of the turn parser and the message they add up to.

Every dialect of the server translates these; none of them knows how the model spells them.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from openglm.text.messages import Message, ToolCall


class ReasoningDelta(msgspec.Struct, frozen=True, gc=False):
    """More reasoning."""

    text: str


class ContentDelta(msgspec.Struct, frozen=True, gc=False):
    """More of the answer."""

    text: str


class ToolCallStart(msgspec.Struct, frozen=True):
    """Call number `index` (0, 1, ... in order of appearance) begins; its name is final."""

    index: int
    name: str


class ToolCallArguments(msgspec.Struct, frozen=True, gc=False):
    """More of the call's arguments, as JSON text."""

    index: int
    fragment: str


class ToolCallEnd(msgspec.Struct, frozen=True):
    """The call is over and its fragments are one JSON object. `complete` is False when the reply ended inside the call."""

    index: int
    call: ToolCall
    complete: bool = True


Event = ReasoningDelta | ContentDelta | ToolCallStart | ToolCallArguments | ToolCallEnd


def message_from_events(events: Iterable[Event]) -> Message:
    """The assistant turn that the events of one reply describe; calls the reply did not complete are left out."""
    content: list[str] = []
    reasoning: list[str] = []
    calls: list[ToolCall] = []
    for event in events:
        match event:
            case ContentDelta(text):
                content.append(text)
            case ReasoningDelta(text):
                reasoning.append(text)
            case ToolCallEnd(_, call, True):
                calls.append(call)
    return Message("assistant", "".join(content), reasoning="".join(reasoning) or None, tool_calls=tuple(calls))


def merged(events: list[Event]) -> list[Event]:
    """Adjacent pieces of the same thing joined."""
    joined: list[Event] = []
    for event in events:
        last = joined[-1] if joined else None
        match last, event:
            case ReasoningDelta(a), ReasoningDelta(b):
                joined[-1] = ReasoningDelta(a + b)
            case ContentDelta(a), ContentDelta(b):
                joined[-1] = ContentDelta(a + b)
            case ToolCallArguments(i, a), ToolCallArguments(j, b) if i == j:
                joined[-1] = ToolCallArguments(i, a + b)
            case _:
                joined.append(event)
    return joined
