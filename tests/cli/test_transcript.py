import io

from rich.console import Console

from openglm.cli.transcript import TurnPrinter, print_tool_call, printable
from openglm.server.turn import TurnEnd, TurnStep, TurnUsage
from openglm.text.messages import ToolCall
from openglm.text.turn_parser import ContentDelta, ReasoningDelta, ToolCallEnd

USAGE = TurnUsage(prompt_tokens=10, cached_tokens=4, completion_tokens=8, reasoning_tokens=3, draft_tokens=4, accepted_draft_tokens=3)


def printed(*steps, terminal=False):
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=20, highlight=False)
    printer = TurnPrinter(console, show_thinking=terminal)
    for step in steps:
        printer.show(step)
    printer.end_line()
    return out.getvalue(), printer


TURN = (
    TurnStep((ReasoningDelta("hm, a longer thought than the line is wide"),)),
    TurnStep((ContentDelta("The "),)),
    TurnStep((ContentDelta("answer."),), end=TurnEnd("stop", USAGE)),
)


def test_a_pipe_gets_the_answer_alone():
    assert printed(*TURN)[0] == "The answer.\n"


def test_a_terminal_gets_dim_thinking_and_then_the_answer():
    text, _ = printed(*TURN, terminal=True)
    assert "\x1b[2;3mhm, a longer thought than the line is wide\x1b[0m\n\nThe answer.\n" in text


def test_pieces_add_up_to_the_message_and_its_figures():
    call = ToolCall("f", {"x": 1})
    _, printer = printed(*TURN[:2], TurnStep((ToolCallEnd(0, call),), end=TurnEnd("length", USAGE)))
    assert (printer.message.content, printer.message.tool_calls) == ("The ", (call,))
    figures = printer.figures()
    assert figures.startswith("8 tokens · ")
    assert "drafts 75% right" in figures and "4 of 10 prompt tokens cached" in figures and "token limit" in figures


def test_a_model_cannot_steer_the_terminal():
    hostile = "\x1b[2J\x1b]0;title\x07a\rb\x9b1m\x00"
    text, _ = printed(TurnStep((ContentDelta(hostile),), end=TurnEnd("stop", USAGE)))
    assert not any(character in text for character in "\x1b\x07\r\x9b\x00")
    assert printable("a\tb\nc") == "a\tb\nc"


def test_a_call_and_its_result_are_one_line_on_a_pipe_and_a_card_on_a_terminal():
    for terminal, wanted in ((False, ["[f(x='1') -> [bold]2\n"]), (True, ["tool", "f(x='1')", "[bold]2"])):
        out = io.StringIO()
        print_tool_call(Console(file=out, force_terminal=terminal, width=60, highlight=False), ToolCall("f", {"x": "1"}), "[bold]2")
        for piece in wanted:
            assert piece.rstrip("\n") in out.getvalue()
