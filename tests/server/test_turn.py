import contextlib

import pytest
from canned_engine import CannedEngine
from hypothesis import given, settings
from hypothesis import strategies as st
from text_model import text_model

from openglm.engine.request import SamplingParams
from openglm.engine.scheduling import SchedulingParams
from openglm.errors import ContextLengthError, DeadlineExceededError, EngineError, QueueFullError, RequestError
from openglm.server.turn import TurnRequest, choices, prepare, run
from openglm.text.messages import Conversation, Message, Tool
from openglm.text.turn_parser import ContentDelta, ToolCallStart, message_from_events

MODEL = text_model()
ENCODE = MODEL.tokenizer.encode_raw
TOOLS = (Tool("f", {}, {"type": "function", "function": {"name": "f"}}),)
CALL = "<tool_call>f\n<arg_key>x</arg_key>\n<arg_value>1</arg_value>\n</tool_call>"


def request(*, tools=(), thinking=True, max_tokens=None, **fields):
    conversation = Conversation((Message("user", "Hi"),), tools, thinking=thinking)
    return TurnRequest(conversation, SamplingParams(max_tokens=max_tokens), **fields)


async def steps_of(engine, turn_request):
    async with contextlib.aclosing(run(prepare(turn_request, MODEL), engine, MODEL.tokenizer)) as steps:
        return [step async for step in steps]


async def answer(text, *, ending="stop", chunk=1, **fields):
    """(message, end, engine) of a turn in which the engine generates `text`, `chunk` tokens per step."""
    ids = ENCODE(text)
    engine = CannedEngine([ids[i : i + chunk] for i in range(0, len(ids), chunk)], ending=ending)
    steps = await steps_of(engine, request(**fields))
    assert [step.end is not None for step in steps] == [False] * (len(steps) - 1) + [True]
    return message_from_events([event for step in steps for event in step.events]), steps[-1].end, engine


async def test_reasoning_and_answer_are_told_apart_and_counted():
    text = "\n<think>hm 🙂</think>\nHello"
    message, end, engine = await answer(text)
    assert (message.reasoning, message.content) == ("hm 🙂", "Hello")
    assert end.finish_reason == "stop"
    assert end.usage.completion_tokens == len(ENCODE(text))
    assert end.usage.reasoning_tokens == len(ENCODE("<think>hm 🙂</think>"))
    assert (end.usage.cached_tokens, end.usage.draft_tokens, end.usage.accepted_draft_tokens) == (3, 4, 2)
    assert end.usage.prompt_tokens == len(engine.requests[0].prompt_ids)
    assert not engine.aborted


@pytest.mark.parametrize(
    ("text", "ending", "finish"),
    [
        ("<think>a</think>b", "stop", "stop"),
        ("<think>a</think>b", "length", "length"),
        (f"<think>a</think>{CALL}", "stop", "tool_calls"),
        (f"<think>a{CALL}", "stop", "tool_calls"),
        (f"<think>a</think>{CALL}{CALL}", "length", "tool_calls"),
        (f"<think>a</think>{CALL}<tool_call>f\n<arg_key>x</arg_key>\n<arg_value>12", "length", "length"),
    ],
)
async def test_the_finish_reason_says_what_was_delivered(text, ending, finish):
    _, end, _ = await answer(text, ending=ending, tools=TOOLS)
    assert end.finish_reason == finish


async def test_an_answer_without_a_closed_think_block_is_not_lost():
    message, _, _ = await answer("<think>the answer is 4")
    assert message.content == "the answer is 4"
    message, _, _ = await answer("<think>I was still", ending="length")
    assert message.content == ""


async def test_a_call_is_text_when_no_tools_are_offered():
    message, end, _ = await answer(CALL, thinking=False)
    assert message.content == CALL
    assert end.finish_reason == "stop"


@settings(deadline=None)
@given(st.integers(1, 12))
async def test_stop_strings_cut_the_answer_and_end_the_request(chunk):
    message, end, engine = await answer("<think>one two</think>one, two, three" + "." * 12, chunk=chunk, stop=("two", "thr"))
    assert (message.reasoning, message.content) == ("one two", "one, ")
    assert end.finish_reason == "stop"
    assert engine.aborted == [engine.requests[0].id]


async def test_text_that_only_begins_like_a_stop_string_is_delivered():
    message, _, engine = await answer("one, tw", thinking=False, stop=("two",))
    assert message.content == "one, tw"
    assert not engine.aborted
    steps = await steps_of(CannedEngine([ENCODE("tw"), ENCODE(CALL)]), request(thinking=False, tools=TOOLS, stop=("two",)))
    assert [type(event) for step in steps for event in step.events][:2] == [ContentDelta, ToolCallStart]


async def test_parallel_tool_calls_false_ends_after_the_first_call():
    message, end, engine = await answer(
        CALL + "\n" + CALL, chunk=500, thinking=False, tools=TOOLS, parallel_tool_calls=False, ending="stop"
    )
    assert len(message.tool_calls) == 1
    assert end.finish_reason == "tool_calls"
    message, _, engine = await answer(CALL + "\n" + CALL, thinking=False, tools=TOOLS, parallel_tool_calls=False)
    assert engine.aborted
    message, _, _ = await answer(CALL + "\n" + CALL, thinking=False, tools=TOOLS)
    assert len(message.tool_calls) == 2


async def test_leaving_early_aborts_the_request():
    engine = CannedEngine([[65]] * 10, ending=None)
    async with contextlib.aclosing(run(prepare(request(thinking=False), MODEL), engine, MODEL.tokenizer)) as steps:
        assert (await anext(steps)).events
    assert engine.aborted == [engine.requests[0].id]


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (("queue_full", "full"), QueueFullError),
        (("deadline_exceeded", "late"), DeadlineExceededError),
        (("internal", "boom"), EngineError),
        (("invalid_request", "no", "top_p"), RequestError),
        (("context_length_exceeded", "long"), ContextLengthError),
    ],
)
async def test_an_engine_failure_becomes_its_error(failure, kind):
    with pytest.raises(kind):
        await steps_of(CannedEngine([[65]], ending="error", failure=failure), request())


async def test_every_choice_is_scheduled_as_the_request_says():
    engine, wanted = CannedEngine([[65]]), SchedulingParams(priority=3, cache_salt="s")
    for turn in choices(prepare(request(scheduling=wanted), MODEL), 2):
        async with contextlib.aclosing(run(turn, engine, MODEL.tokenizer)) as steps:
            assert [step async for step in steps]
    assert [sent.scheduling for sent in engine.requests] == [wanted, wanted]


async def test_output_that_ends_without_a_reason_is_an_error():
    class Breaks(CannedEngine):
        def generate(self, generation):
            async def nothing():
                return
                yield

            return nothing()

    with pytest.raises(EngineError, match="without a finish reason"):
        await steps_of(Breaks([]), request())


def test_the_wish_for_tokens_is_cut_to_what_fits():
    prompt = len(prepare(request(), MODEL).prompt_ids)
    assert prepare(request(max_tokens=10), MODEL).params.max_tokens == 10
    assert prepare(request(max_tokens=32_000), MODEL).params.max_tokens == MODEL.max_model_len - prompt
    assert prepare(request(), MODEL).params.max_tokens == MODEL.max_model_len - prompt


def test_a_prompt_that_fills_the_context_is_refused_with_both_numbers():
    small = text_model(max_model_len=5)
    with pytest.raises(ContextLengthError, match=r"maximum context length is 5 tokens. However, your request has \d+ input tokens"):
        prepare(request(), small)
