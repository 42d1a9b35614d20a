"""The loop of `glm chat` with a source of answers that plays back a plan; what it asks is what is checked."""

import asyncio
import io

import pytest
from rich.console import Console

from openglm.cli.chat_loop import ChatLoop
from openglm.errors import RequestError
from openglm.server.openai_client import SamplingWishes
from openglm.server.turn import TurnEnd, TurnStep, TurnUsage
from openglm.text.messages import Message, ToolCall
from openglm.text.turn_parser import ContentDelta, ReasoningDelta, ToolCallEnd

END = TurnEnd("stop", TurnUsage(1, 0, 1, 0, 0, 0))


class Planned:
    """Answers with one list of events after the other; an exception in the plan is raised."""

    def __init__(self, *plan) -> None:
        self.plan = list(plan)
        self.asked = []
        self.closed = 0

    async def open(self):
        return "planned"

    async def answer(self, conversation, wishes):
        self.asked.append(conversation)
        events = self.plan.pop(0)
        if isinstance(events, BaseException):
            raise events
        try:
            for event in events:
                yield TurnStep((event,))
            yield TurnStep((), end=END)
        finally:
            self.closed += 1

    async def close(self):
        pass


def chat(source, text, monkeypatch, *, terminal=False, **settings):
    out = io.StringIO()
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    console = Console(file=out, width=100, highlight=False)
    loop = ChatLoop(console, source, SamplingWishes(), **{"system": None, "thinking": True, "tools": True, **settings})
    if terminal:
        lines = iter(text.splitlines())

        def typed(prompt):
            line = next(lines, None)
            if line is None:
                raise EOFError
            return line

        loop._interactive = True
        monkeypatch.setattr("builtins.input", typed)
    with asyncio.Runner() as runner:
        loop.run(runner)
    return out.getvalue()


def test_a_call_is_run_and_the_model_reads_its_result(monkeypatch):
    call = ToolCall("calculator", {"expression": "6*7"})
    source = Planned([ReasoningDelta("hm"), ToolCallEnd(0, call)], [ContentDelta("It is 42.")])
    out = chat(source, "What is 6*7?\n", monkeypatch, system="Be brief.")
    assert out == "[calculator(expression='6*7') -> {\"result\": 42}]\nIt is 42.\n"
    system, question, turn, result = source.asked[1].messages
    assert (system, question) == (Message("system", "Be brief."), Message("user", "What is 6*7?"))
    assert turn.reasoning == "hm" and turn.tool_calls[0].id
    assert result == Message("tool", '{"result": 42}', tool_call_id=turn.tool_calls[0].id)


def test_commands_change_what_is_asked(monkeypatch):
    source = Planned(*([[ContentDelta("ok")]] * 3))
    out = chat(source, "a\n/think off\n/tools off\n/nonsense\n/help\nb\n/clear\nc\n/exit\nd\n", monkeypatch, terminal=True)
    first, second, third = source.asked
    assert (first.thinking, bool(first.tools)) == (True, True)
    assert (second.thinking, bool(second.tools)) == (False, False)
    assert [message.content for message in second.messages] == ["a", "ok", "b"]
    assert [message.content for message in third.messages] == ["c"]
    assert "thinking off" in out and "/clear          forget" in out and "no command is called /nonsense" in out


def test_a_backslash_goes_on_in_the_next_line(monkeypatch):
    source = Planned([ContentDelta("ok")])
    chat(source, "one\\\ntwo\\\nthree\n", monkeypatch)
    assert source.asked[0].messages[0].content == "one\ntwo\nthree"


def test_an_interrupt_stops_the_answer_and_forgets_the_question(monkeypatch):
    source = Planned(KeyboardInterrupt(), [ContentDelta("ok")])
    out = chat(source, "a\nb\n", monkeypatch, terminal=True)
    assert "(stopped; the question is forgotten)" in out
    assert [message.content for message in source.asked[1].messages] == ["b"]


def test_an_error_is_shown_to_a_person_and_ends_a_pipe(monkeypatch):
    source = Planned(RequestError("too [long]"), [ContentDelta("ok")])
    out = chat(source, "a\nb\n", monkeypatch, terminal=True)
    assert "RequestError: too [long]" in out and out.endswith("ok\n\n")
    with pytest.raises(RequestError):
        chat(Planned(RequestError("no")), "a\n", monkeypatch)
