"""A turn on the terminal while it arrives: dim thinking, the answer, tool cards, one line of figures.

On a pipe only the answer (and one plain line per tool call) is written, so that output can be used by programs. Control
characters in generated text are made visible: a model must not be able to move the cursor or set a window title.
"""

from __future__ import annotations

import re
import time
from typing import Final

from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from openglm.server.turn import TurnStep, TurnUsage
from openglm.text.messages import Message, ToolCall
from openglm.text.turn_parser import ContentDelta, Event, ReasoningDelta, message_from_events

_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """`text` with control characters (but not newline and tab) shown as their code points' pictures."""
    return _CONTROL.sub(lambda match: chr(0x2400 + ord(match[0])) if ord(match[0]) < 0x20 else "\ufffd", text)


class TurnPrinter:
    """Prints the steps of one turn and remembers what they add up to."""

    def __init__(self, console: Console, *, show_thinking: bool) -> None:
        self._console = console
        self._show_thinking = show_thinking
        self._events: list[Event] = []
        self._began = time.monotonic()
        self._first: float | None = None
        self._inside: type[Event] | None = None
        self._ends_line = True
        self.usage: TurnUsage | None = None
        self.finish_reason: str | None = None

    @property
    def message(self) -> Message:
        """The turn so far."""
        return message_from_events(self._events)

    def show(self, step: TurnStep) -> None:
        """Print what a step brings."""
        if self._first is None and step.events:
            self._first = time.monotonic()
        self._events += step.events
        for event in step.events:
            if isinstance(event, ReasoningDelta) and self._show_thinking:
                self._write(event.text, type(event), style="dim italic")
            elif isinstance(event, ContentDelta):
                self._write(event.text, type(event), style="")
        if step.end is not None:
            self.usage, self.finish_reason = step.end.usage, step.end.finish_reason

    def end_line(self) -> None:
        """Finish the line that is being written."""
        if not self._ends_line:
            self._console.print()
        self._ends_line = True

    def figures(self) -> str:
        """Speed and cache figures of the finished turn; empty where the server reported no usage."""
        usage = self.usage
        if usage is None or not usage.completion_tokens or self._first is None:
            return ""
        seconds = time.monotonic() - self._first
        parts = [f"{usage.completion_tokens} tokens"]
        if usage.completion_tokens > 1 and seconds > 0:
            parts.append(f"{(usage.completion_tokens - 1) / seconds:.1f} tok/s")
        parts.append(f"first after {self._first - self._began:.2f} s")
        if usage.draft_tokens:
            parts.append(f"drafts {usage.accepted_draft_tokens / usage.draft_tokens:.0%} right")
        if usage.cached_tokens:
            parts.append(f"{usage.cached_tokens} of {usage.prompt_tokens} prompt tokens cached")
        if self.finish_reason == "length":
            parts.append("cut off at the token limit")
        return " · ".join(parts)

    def _write(self, text: str, kind: type[Event], *, style: str) -> None:
        if self._inside not in (None, kind):
            self.end_line()
            if self._console.is_terminal:
                self._console.print()
        self._inside = kind
        text = printable(text)
        self._console.print(Text(text, style=style), end="", soft_wrap=True)
        self._ends_line = text.endswith("\n")


def print_tool_call(console: Console, call: ToolCall, result: str | None) -> None:
    """A card with the call and, once there is one, its result."""
    arguments = ", ".join(f"{name}={value!r}" for name, value in call.arguments.items())
    line = printable(f"{call.name}({arguments})")
    if not console.is_terminal:
        console.print(Text(f"[{line}" + (f" -> {printable(result)}" if result is not None else "") + "]"), soft_wrap=True)
        return
    body = Text(line, style="cyan")
    if result is not None:
        body.append("\n" + printable(result), style="default")
    console.print(Panel(body, title="tool", title_align="left", border_style="dim", expand=False))
