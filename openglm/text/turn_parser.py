"""Generated text to reasoning, content and tool calls: one incremental state machine, the same result for every chunking.

Text is first cut into *tags* (`<think>`, `<tool_call>`, `<arg_key>`, ... and their ends) and the text between them; only a tail
that could be the start of a tag is held back. Then each piece moves the machine:

    START ──<think>──> REASONING ──</think>──> CONTENT <──────────────┐
      └──other text──────────────────────────> CONTENT               │
    any of the three ──<tool_call>──> NAME ──name is complete──> CALL ──</tool_call>
                                      CALL ──<arg_key>──> KEY ──> AFTER_KEY ──<arg_value>──> VALUE ──</arg_value>──> CALL

Decisions, where model output leaves room:
- The start state comes from the rendered prompt. "undecided": white space and `<think>` open reasoning, anything else is
  content; a `</think>` that was never opened is dropped from that content (it is already sent, so it cannot become reasoning).
  "content": thinking is closed, so think tags are text.
- Reasoning is stripped on both sides, as the template strips it in history. Of content, one leading newline is dropped and so is
  white space before and after tool calls; content that is all white space is none. Text after a call is content.
- Calls are recognised where tools are offered (`parse_calls` overrides). `<tool_call>` inside an open think block ends the
  reasoning. A call begins once its name is certain: a newline after the name of an offered tool, or a tag after any name. So
  unknown tools pass through, while a "name" followed by other words, or longer than 256 characters, is prose about tool calls
  and stays text. A call without a name is skipped. A new `<tool_call>` ends an open call.
- Only `</arg_value>` ends a value, so a value may spell any other tag. If it never comes, the first `</tool_call>` inside ends it.
- A reply that ends inside a call: a name that is not certain is dropped (kept as text when no offered tool begins so); otherwise
  the JSON is closed, with an unfinished string argument as far as it came and without any other unfinished argument, and the end
  event says `complete=False`. `message_from_events` leaves such calls out: acting on a cut argument (`rm -rf /tmp/x` cut at `/`)
  is worse than not acting. When the model ended its turn itself, pass `finish(ended=True)`: then a call that only lacks its end
  tag is complete.
- Never raises on any text. Work is linear in the text; buffers are bounded by the length of the reply.
"""

from __future__ import annotations

import re
from enum import Enum, auto
from typing import TYPE_CHECKING, Final

from openglm.text.argument_stream import ArgumentStream
from openglm.text.messages import Message, Tool, ToolCall
from openglm.text.turn_events import (
    ContentDelta,
    Event,
    ReasoningDelta,
    ToolCallArguments,
    ToolCallEnd,
    ToolCallStart,
    merged,
    message_from_events,
)

if TYPE_CHECKING:
    from openglm.text.template import StartState

__all__ = [
    "ContentDelta",
    "Event",
    "ReasoningDelta",
    "ToolCallArguments",
    "ToolCallEnd",
    "ToolCallStart",
    "TurnParser",
    "message_from_events",
    "parse_turn",
]

_TAGS: Final = tuple(f"<{slash}{name}>" for name in ("think", "tool_call", "arg_key", "arg_value") for slash in ("", "/"))
_TAG: Final = re.compile("|".join(_TAGS))
_LONGEST_TAG: Final = max(map(len, _TAGS))
_MAX_NAME: Final = 256


class _State(Enum):
    START = auto()
    REASONING = auto()
    CONTENT = auto()
    NAME = auto()
    CALL = auto()
    KEY = auto()
    AFTER_KEY = auto()
    VALUE = auto()
    VALUE_OR_AFTER = auto()  # a </tool_call> stood inside a value: part of it if </arg_value> still comes


class _Call:
    """The call being read; one without a name is read and thrown away."""

    def __init__(self, index: int, name: str, arguments: ArgumentStream) -> None:
        self.index = index
        self.name = name
        self.arguments = arguments


class TurnParser:
    """Reads one assistant turn. `feed` any number of chunks, then `finish` once."""

    __slots__ = (
        *("_any_content", "_call", "_content", "_drop_end_think", "_events", "_finished", "_held", "_just_called", "_key", "_name"),
        *("_name_space", "_name_text", "_no_value_end", "_num_calls", "_origin", "_parse_calls", "_reasoning", "_reasoning_pieces"),
        *("_state", "_tail", "_tools", "num_repairs"),
    )

    def __init__(self, start: StartState, tools: tuple[Tool, ...], *, parse_calls: bool | None = None) -> None:
        """`start` as `render` returned it. `parse_calls` None means: if tools are offered."""
        self._tools = {tool.name: tool for tool in tools}
        self._parse_calls = bool(tools) if parse_calls is None else parse_calls
        self._state = {"undecided": _State.START, "reasoning": _State.REASONING, "content": _State.CONTENT}[start]
        self._tail = ""  # text that may be the start of a tag
        self._events: list[Event] = []
        self._finished = False
        self.num_repairs = 0
        """How often the text broke its format and was read all the same."""

        self._reasoning = _Prose(drop_leading_space=True)
        self._reasoning_pieces: list[str] = []
        self._content = _Prose(drop_leading_space=False)
        self._any_content = False
        self._drop_end_think = start == "undecided"  # a </think> in content that nothing opened

        self._origin = _State.CONTENT  # where prose goes on if <tool_call> opens no call
        self._name = ""
        self._name_space = False  # white space followed the name
        self._name_text: list[str] = []  # everything since <tool_call>, in case it is prose
        self._num_calls = 0
        self._call: _Call | None = None
        self._just_called = False  # nothing but white space since the last call
        self._key: list[str] = []
        self._held: list[str] = []  # pieces since the </tool_call> inside a value
        self._no_value_end = False  # the reply is over and no </arg_value> follows

    def feed(self, text: str) -> list[Event]:
        """The events that `text` completes."""
        if self._finished:
            raise ValueError("feed after finish: a TurnParser reads one turn")
        if self._tail or "<" in text:
            text = self._tail + text
            held = _tag_start(text)
            self._tail = text[held:]
            self._read(text[:held])
        else:
            self._text(text)
        return self._take_events() if self._events else []

    def finish(self, *, ended: bool = False) -> list[Event]:
        """The events that the end of the text completes. `ended`: the model ended the turn itself (it was not cut off by
        a length limit); then reasoning that was never closed, with nothing after it, is also delivered as content, so that an
        answer is never lost to a missing tag."""
        if self._finished:
            return []
        self._finished = True
        self._text(self._tail)
        if self._state is _State.VALUE_OR_AFTER:
            self._end_value_at_call_end()
        if self._state is _State.NAME and self._name and not self._may_be_cut_name():
            self._name_was_prose()
        if self._state in (_State.CALL, _State.KEY, _State.AFTER_KEY):
            self.num_repairs += ended
            self._end_call(complete=ended and self._state is _State.CALL)
        elif self._state is _State.VALUE:
            self._send(self._call.arguments.cut() if self._call else "")
            self._end_call(complete=False)
        elif self._state is _State.REASONING and ended and not self._any_content and not self._num_calls:
            self.num_repairs += 1
            self._emit_content("".join(self._reasoning_pieces))
        if not self._just_called and self._state is not _State.NAME:
            self._emit_content(self._content.held())
        return self._take_events()

    def _read(self, text: str) -> None:
        start = 0
        for match in _TAG.finditer(text):
            self._text(text[start : match.start()])
            self._tag(match.group())
            start = match.end()
        self._text(text[start:])

    def _text(self, text: str) -> None:
        if not text:
            return
        match self._state:  # what nearly all text is comes first
            case _State.REASONING:
                self._write_reasoning(text)
            case _State.CONTENT:
                self._write_content(text)
            case _State.START:
                if not text.isspace():
                    self._state = _State.CONTENT
                self._write_content(text)
            case _State.NAME:
                self._read_name(text)
            case _State.KEY:
                self._key.append(text)
            case _State.VALUE:
                self._send(self._call.arguments.write(text) if self._call else "")
            case _State.VALUE_OR_AFTER:
                self._held.append(text)
            case _State.CALL | _State.AFTER_KEY:
                pass  # layout between the tags of a call

    def _tag(self, tag: str) -> None:
        match self._state:
            case _State.START | _State.REASONING | _State.CONTENT:
                self._tag_in_prose(tag)
            case _State.NAME:
                self._tag_in_name(tag)
            case _State.VALUE:
                self._tag_in_value(tag)
            case _State.VALUE_OR_AFTER:
                if tag != "</arg_value>":
                    self._held.append(tag)
                    return
                self._state = _State.VALUE
                self._text("".join(["</tool_call>", *self._held]))
                self._held = []
                self._tag_in_value(tag)
            case _State.CALL | _State.KEY | _State.AFTER_KEY:
                self._tag_in_call(tag)

    def _tag_in_prose(self, tag: str) -> None:
        if tag == "<tool_call>" and self._parse_calls:
            self._origin = self._state
            self._begin_name()
        elif self._state is _State.REASONING and tag == "</think>":
            self._open_content()
        elif self._state is _State.REASONING and tag == "<think>" and not self._reasoning.seen:
            self.num_repairs += 1  # the prompt opened the block and the model opens it again
        elif self._state is _State.START and tag == "<think>":
            self._content = _Prose(drop_leading_space=False)
            self._state = _State.REASONING
        elif self._state is _State.START and tag == "</think>":
            self._open_content()
        elif self._state is _State.CONTENT and tag == "</think>" and self._drop_end_think:
            self._drop_end_think = False
            self.num_repairs += 1
        elif self._state is _State.CONTENT and tag == "</tool_call>" and self._just_called:
            self.num_repairs += 1  # a call closed twice
        else:
            self._text(tag)

    def _open_content(self) -> None:
        self._state = _State.CONTENT
        self._content = _Prose(drop_leading_space=False)
        self._drop_end_think = False

    def _tag_in_name(self, tag: str) -> None:
        if tag in ("<arg_key>", "</tool_call>") or (tag == "<tool_call>" and self._name):
            self._open_call()
            self._tag_in_call(tag)
        elif tag == "<tool_call>":
            self.num_repairs += 1  # a call without a name
            self._begin_name()
        else:
            self._name_was_prose()
            self._tag(tag)

    def _begin_name(self) -> None:
        self._state = _State.NAME
        self._name = ""
        self._name_space = False
        self._name_text = []

    def _read_name(self, text: str) -> None:
        """Character by character, so that every chunking decides at the same place; a name is short."""
        for i, character in enumerate(text):
            if character == "\n" and self._name in self._tools:
                self._open_call()
                self._text(text[i + 1 :])
                return
            if character.isspace():
                self._name_space = bool(self._name)
                self._name_text.append(character)
            elif self._name_space or len(self._name) >= _MAX_NAME:
                self._name_was_prose()
                self._text(text[i:])
                return
            else:
                self._name += character
                self._name_text.append(character)

    def _open_call(self) -> None:
        if self._origin is _State.REASONING:
            self._drop_end_think = True
        self._content.drop_held()
        self._state = _State.CALL
        self._call = None
        if self._name:
            tool = self._tools.get(self._name)
            self._call = _Call(self._num_calls, self._name, ArgumentStream(tool.parameters if tool else None))
            self._num_calls += 1
            self._events.append(ToolCallStart(self._call.index, self._name))

    def _name_was_prose(self) -> None:
        self._state = self._origin
        self._text("".join(["<tool_call>", *self._name_text]))

    def _may_be_cut_name(self) -> bool:
        return not self._tools or any(name.startswith(self._name) for name in self._tools)

    def _tag_in_call(self, tag: str) -> None:
        if tag == "<arg_key>":
            self._key = []
            self._state = _State.KEY
        elif tag == "</arg_key>" and self._state is _State.KEY:
            self._state = _State.AFTER_KEY
        elif tag == "<arg_value>" and self._state in (_State.KEY, _State.AFTER_KEY):
            self._state = _State.VALUE
            self._send(self._call.arguments.begin("".join(self._key).strip()) if self._call else "")
        elif tag in ("</tool_call>", "<tool_call>"):
            self._end_call(complete=True)
            if tag == "<tool_call>":
                self.num_repairs += 1  # the call before it was not closed
                self._tag(tag)
        elif self._state is _State.KEY:
            self._key.append(tag)

    def _tag_in_value(self, tag: str) -> None:
        if tag == "</arg_value>":
            self._end_value()
        elif tag == "</tool_call>" and self._no_value_end:
            self._end_value()
            self._end_call(complete=True)
        elif tag == "</tool_call>":
            self._state = _State.VALUE_OR_AFTER
        else:
            self._text(tag)

    def _end_value(self) -> None:
        self._send(self._call.arguments.end() if self._call else "")
        self._state = _State.CALL

    def _end_value_at_call_end(self) -> None:
        """No </arg_value> came: the </tool_call> inside the value was meant, and what followed it is read again."""
        held, self._held = self._held, []
        self.num_repairs += 1
        self._no_value_end = True
        self._end_value()
        self._end_call(complete=True)
        for piece in held:
            self._read(piece)

    def _end_call(self, *, complete: bool) -> None:
        call, self._call = self._call, None
        self._state = _State.CONTENT
        self._just_called = True
        if call is not None:
            self._events.append(ToolCallArguments(call.index, call.arguments.close()))
            finished = ToolCall(call.name, call.arguments.arguments)
            self._events.append(ToolCallEnd(call.index, finished, complete))

    def _send(self, fragment: str) -> None:
        if fragment and self._call is not None:
            self._events.append(ToolCallArguments(self._call.index, fragment))

    def _write_content(self, text: str) -> None:
        if self._just_called:
            self._just_called = text.isspace()
        self._emit_content(self._content.write(text))

    def _write_reasoning(self, text: str) -> None:
        text = self._reasoning.write(text)
        if text:
            self._reasoning_pieces.append(text)
            self._events.append(ReasoningDelta(text))

    def _emit_content(self, text: str) -> None:
        if text:
            self._any_content = True
            self._events.append(ContentDelta(text))

    def _take_events(self) -> list[Event]:
        events, self._events = self._events, []
        return merged(events) if len(events) > 1 else events


class _Prose:
    """Reasoning or content on its way out: white space waits until something follows it."""

    __slots__ = ("_at_start", "_drop_leading_space", "_space", "seen")

    def __init__(self, *, drop_leading_space: bool) -> None:
        self.seen = False  # anything but white space
        self._drop_leading_space = drop_leading_space
        self._at_start = True
        self._space: list[str] = []

    def write(self, text: str) -> str:
        """What can be sent now."""
        if not self.seen:
            if self._drop_leading_space:
                text = text.lstrip()
            elif self._at_start:
                text = text.removeprefix("\n")
            self._at_start = False
        body = text.rstrip()
        if not body:
            self._space.append(text)
            return ""
        self.seen = True
        sent = body
        if self._space:
            sent = "".join([*self._space, body])
            self._space = []
        if len(body) < len(text):
            self._space.append(text[len(body) :])
        return sent

    def held(self) -> str:
        """The trailing white space of what was sent; none if nothing was."""
        return "".join(self._space) if self.seen else ""

    def drop_held(self) -> None:
        """A tool call follows: the white space before it is layout."""
        self._space = []


def parse_turn(text: str, start: StartState, tools: tuple[Tool, ...], *, ended: bool = False, parse_calls: bool | None = None) -> Message:
    """The assistant turn in a whole reply; the same machine as for a stream."""
    parser = TurnParser(start, tools, parse_calls=parse_calls)
    return message_from_events([*parser.feed(text), *parser.finish(ended=ended)])


def _tag_start(text: str) -> int:
    """Where a tail begins that may grow into a tag; the length of the text when there is none."""
    start = text.rfind("<", -(_LONGEST_TAG - 1))
    if start >= 0 and any(tag.startswith(text[start:]) and tag != text[start:] for tag in _TAGS):
        return start
    return len(text)
