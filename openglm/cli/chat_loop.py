"""The loop of `glm chat`: read a line, obey a command or answer it, run the tools that the model calls.

Synchronous between answers, so that the prompt has line editing; the event loop runs only while there is an answer to wait
for. Ctrl-C cancels the running answer, which aborts it in the engine. Without a terminal every input line is a question, only
answers are printed, and the first error ends the command.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from rich.console import Console

from openglm.cli.answering import AnswerSource
from openglm.cli.demo_tools import DEMO_TOOLS, run_demo_tool
from openglm.cli.transcript import TurnPrinter, print_tool_call
from openglm.errors import OpenGLMError
from openglm.server.openai_client import SamplingWishes
from openglm.text.messages import Conversation, Message

_MAX_TOOL_ROUNDS: Final = 8
_HELP: Final = """\
/think on|off   think before answering, or answer at once
/tools on|off   offer the calculator and the clock
/clear          forget the conversation
/help           this text
/exit           leave (also Ctrl-D)
A line that ends with \\ goes on in the next one. Ctrl-C stops the running answer."""


class ChatLoop:
    """One conversation with one source of answers."""

    def __init__(
        self, console: Console, source: AnswerSource, wishes: SamplingWishes, *, system: str | None, thinking: bool, tools: bool
    ) -> None:
        self._console = console
        self._source = source
        self._wishes = wishes
        self._thinking = thinking
        self._tools = tools
        self._start = (Message("system", system),) if system else ()
        self._messages: tuple[Message, ...] = self._start
        self._interactive = sys.stdin.isatty()

    def run(self, runner: asyncio.Runner) -> None:
        """Until the end of input, or /exit."""
        name = self._open_source(runner)
        if self._interactive:
            _enable_line_editing()
            self._console.print(
                f"{name}: thinking {_on(self._thinking)}, tools {_on(self._tools)}. /help lists the commands.", markup=False
            )
        while (line := self._read()) is not None:
            text = line.strip()
            if text in ("/exit", "/quit"):
                return
            if text.startswith("/"):
                self._obey(text)
            elif text:
                self._converse(runner, line)

    def _open_source(self, runner: asyncio.Runner) -> str:
        if not self._console.is_terminal:
            return runner.run(self._source.open())
        with self._console.status("starting ..."):
            return runner.run(self._source.open())

    def _read(self) -> str | None:
        """One message, which may span lines; None at the end of input."""
        prompt = "> "
        lines: list[str] = []
        while True:
            try:
                line = input(prompt) if self._interactive else _line_of_pipe()
            except KeyboardInterrupt:  # pressed a moment too late to stop an answer; the conversation must not be lost
                self._console.print("\n(Ctrl-D or /exit leaves)", style="dim")
                prompt, lines = "> ", []
                continue
            except EOFError:
                if self._interactive:
                    self._console.print()
                return "\n".join(lines) if lines else None
            if not line.endswith("\\"):
                return "\n".join([*lines, line])
            lines.append(line[:-1])
            prompt = "… "

    def _obey(self, text: str) -> None:
        words = text.split()
        commands: dict[str, Callable[[str], str]] = {
            "/think": self._set_thinking,
            "/tools": self._set_tools,
            "/clear": self._clear,
            "/help": lambda _: _HELP,
        }
        known = commands.get(words[0])
        answer = known(words[1] if len(words) > 1 else "") if known else f"no command is called {words[0]}; /help lists them"
        if self._interactive:
            self._console.print(answer, markup=False)

    def _set_thinking(self, word: str) -> str:
        self._thinking = {"on": True, "off": False}.get(word, not self._thinking)
        return f"thinking {_on(self._thinking)}"

    def _set_tools(self, word: str) -> str:
        self._tools = {"on": True, "off": False}.get(word, not self._tools)
        return f"tools {_on(self._tools)}" + (f": {', '.join(tool.name for tool in DEMO_TOOLS)}" if self._tools else "")

    def _clear(self, word: str) -> str:
        del word
        self._messages = self._start
        return "the conversation is empty"

    def _converse(self, runner: asyncio.Runner, text: str) -> None:
        """Answer one message; when that fails or is stopped, the message is forgotten."""
        before = self._messages
        try:
            runner.run(self._answer(text))
        except KeyboardInterrupt:
            self._messages = before
            self._console.print("(stopped; the question is forgotten)", style="dim")
        except OpenGLMError as error:
            self._messages = before
            if not self._interactive:
                raise
            self._console.print(f"{type(error).__name__}: {error}", style="red", markup=False)

    async def _answer(self, text: str) -> None:
        """Turns and tool results until the model has answered."""
        self._messages += (Message("user", text),)
        for _ in range(_MAX_TOOL_ROUNDS):
            message = await self._turn()
            self._messages += (message,)
            if not message.tool_calls:
                return
            for call in message.tool_calls:
                result = run_demo_tool(call)
                print_tool_call(self._console, call, result)
                self._messages += (Message("tool", result, tool_call_id=call.id),)
        self._console.print(f"(stopped after {_MAX_TOOL_ROUNDS} rounds of tool calls)", style="dim")

    async def _turn(self) -> Message:
        conversation = Conversation(self._messages, DEMO_TOOLS if self._tools else (), thinking=self._thinking)
        printer = TurnPrinter(self._console, show_thinking=self._console.is_terminal)
        try:
            async with contextlib.aclosing(self._source.answer(conversation, self._wishes)) as steps:
                async for step in steps:
                    printer.show(step)
        finally:
            printer.end_line()
        if self._console.is_terminal and (figures := printer.figures()):
            self._console.print(figures, style="dim")
        message = printer.message
        # A server names its calls; our own engine does not, and results must say which call they answer.
        named = tuple(replace(call, id=call.id or f"call_{len(self._messages)}_{i}") for i, call in enumerate(message.tool_calls))
        return replace(message, tool_calls=named)


def _line_of_pipe() -> str:
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.removesuffix("\n")


def _on(value: bool) -> str:
    return "on" if value else "off"


def _enable_line_editing() -> None:
    """Arrow keys and history at the prompt, where the platform has readline."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # importing it is what switches editing on
