"""The generators: deterministic, disjoint between the sides, short enough, and their answers true."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from itertools import islice

import pytest

from openglm.errors import DataError
from openglm.synth import TASKS, Episode, corpus_sample, generate, mixture, split_of, stream
from openglm.synth.tool_tasks import REFUSAL
from openglm.text.messages import JSON
from openglm.text.template import render, render_training
from openglm.text.turn_parser import parse_turn

SIDES = ("train", "heldout")


def _episodes(task: str, split: str, count: int) -> Iterator[Episode]:
    rng = random.Random(f"{task}/{split}")
    return (generate(task, rng, split) for _ in range(count))


@pytest.fixture(scope="module")
def with_tools() -> dict[str, list[Episode]]:
    return {side: [e for task in TASKS for e in _episodes(task, side, 600) if e.conversation.tools] for side in SIDES}


def _schemas(episodes: list[Episode]) -> Iterator[tuple[str, dict[str, JSON]]]:
    for episode in episodes:
        for tool in episode.conversation.tools:
            yield tool.name, tool.definition["function"]["parameters"]["properties"]


def test_same_seed_same_stream_and_other_seed_another():
    first, again, other = (list(islice(stream(seed, "train"), 200)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_tool_names_of_the_sides_are_disjoint(with_tools):
    train, heldout = ({name for name, _ in _schemas(with_tools[side])} for side in SIDES)
    assert len(train) > 500
    assert len(heldout) > 500
    assert not train & heldout


def test_parameter_names_of_the_sides_are_disjoint(with_tools):
    train, heldout = ({name for _, properties in _schemas(with_tools[side]) for name in properties} for side in SIDES)
    assert not train & heldout


def test_result_fields_of_the_sides_are_disjoint(with_tools):
    def fields(side: str) -> set[str]:
        return {
            field
            for episode in with_tools[side]
            for message in episode.conversation.messages
            if message.role == "tool"
            for field in re.findall(r'"([a-z_]+)":', message.content)
        } - {"error", "status", "message", "x", "y"}

    assert not fields("train") & fields("heldout")


def test_string_arguments_of_the_sides_are_disjoint(with_tools):
    def strings(side: str) -> set[str]:
        found = set()
        for episode in with_tools[side]:
            for call in episode.answer.tool_calls:
                schema = next(t for t in episode.conversation.tools if t.name == call.name).parameters["properties"]
                for name, value in call.arguments.items():
                    for item in value if isinstance(value, list) else [value]:
                        if isinstance(item, str) and "enum" not in schema[name] and not re.search(r"\d", item):
                            found.add(item)
        return found

    assert not strings("train") & strings("heldout")


@pytest.mark.parametrize("task", ["add", "sub", "mul_digit", "compare"])
def test_operands_of_the_sides_are_disjoint(task):
    def pairs(side: str) -> set[tuple[int, ...]]:
        return {tuple(sorted(int(n) for n in re.findall(r"\d+", e.conversation.messages[-2].content))) for e in _episodes(task, side, 3000)}

    assert not pairs("train") & pairs("heldout")


@pytest.mark.parametrize("task", ["add", "add3", "sub", "mul_digit"])
@pytest.mark.parametrize("side", SIDES)
def test_sums_are_right_and_the_working_ends_in_the_result(task, side):
    for episode in _episodes(task, side, 400):
        expression, _, result = episode.answer.content.partition(" = ")
        assert eval(expression, {"__builtins__": {}}) == int(result)  # (digits and signs of our own making)
        if episode.answer.reasoning is not None:
            assert episode.answer.reasoning.split()[-1] == result


@pytest.mark.parametrize("side", SIDES)
def test_every_argument_of_a_call_is_said_in_the_request(side):
    for episode in _episodes("tool_call", side, 800):
        request = episode.conversation.messages[-2].content
        (call,) = episode.answer.tool_calls
        for value in call.arguments.values():
            for item in value if isinstance(value, list) else value.values() if isinstance(value, dict) else [value]:
                said = str(item).lower() if isinstance(item, bool) else str(item)
                assert said in request


@pytest.mark.parametrize("side", SIDES)
def test_calls_fit_the_schema_of_their_tool(side):
    for task in ("tool_call", "tool_call_parallel", "tool_result", "follow_up", "tool_session"):
        for episode in _episodes(task, side, 200):
            tools = {tool.name: tool.parameters for tool in episode.conversation.tools}
            assert len(tools) == len(episode.conversation.tools)
            for message in episode.conversation.messages:
                for call in message.tool_calls:
                    parameters = tools[call.name]
                    assert set(parameters.get("required", ())) <= set(call.arguments) <= set(parameters["properties"])
                    order = [name for name in parameters["properties"] if name in call.arguments]
                    assert order == list(call.arguments)


def test_refusals_and_calls_come_from_the_same_requests():
    rng = random.Random(0)
    calls, refusals = ([generate(task, rng, "train") for _ in range(3000)] for task in ("tool_call", "no_tool"))
    opening = [
        {e.conversation.messages[-2].content.split()[0] for e in group if e.conversation.messages[-2].content.isascii()}
        for group in (calls, refusals)
    ]
    common = {word for word in opening[0] & opening[1] if word.isalpha()}
    assert {"What", "Can", "Please", "Could", "I"} <= common
    assert all(not e.answer.tool_calls and e.answer.content in REFUSAL.values() for e in refusals)


@pytest.mark.parametrize("task", sorted(TASKS))
def test_the_trained_turn_parses_back_to_the_answer(task):
    for episode in _episodes(task, "heldout", 60):
        prompt = render(
            type(episode.conversation)(episode.conversation.messages[:-1], episode.conversation.tools, episode.conversation.thinking),
            "glm-4.5",
        )
        whole = "".join(segment.text for segment in render_training(episode.conversation, "glm-4.5"))
        assert whole.startswith(prompt.text)
        turn = whole[len(prompt.text) :].removesuffix("<|user|>").removesuffix("<|observation|>")
        parsed = parse_turn(turn, prompt.start, episode.conversation.tools)
        assert (parsed.content, parsed.reasoning) == (episode.answer.content, episode.answer.reasoning)
        assert [(c.name, c.arguments) for c in parsed.tool_calls] == [(c.name, c.arguments) for c in episode.answer.tool_calls]


def test_both_languages_and_both_thinking_modes_appear_in_every_task():
    for task in TASKS:
        episodes = list(_episodes(task, "train", 200))
        chinese = sum(any("\u4e00" <= char <= "\u9fff" for m in e.conversation.messages for char in m.content) for e in episodes)
        assert 30 < chinese < 170, task
        if task != "add3":
            assert {e.conversation.thinking for e in episodes} == {True, False}, task


def test_mixtures_sum_to_one_and_keep_every_task():
    for progress in (0.0, 0.3, 1.0):
        weights = mixture(progress)
        assert set(weights) == set(TASKS)
        assert sum(weights.values()) == pytest.approx(1)
        assert min(weights.values()) > 0


def test_the_corpus_holds_no_control_tokens():
    text = "".join(corpus_sample(0, 200))
    assert not re.search(r"<\|[a-z]+\|>|</?think>|</?arg_key>", text)


def test_unknown_tasks_are_named():
    with pytest.raises(DataError, match="no task is called 'subtract'"):
        generate("subtract", random.Random(0), "train")
    with pytest.raises(DataError, match="subtract"):
        next(stream(0, "train", {"subtract": 1.0}))


def test_a_word_keeps_its_side_whatever_its_case():
    assert split_of("Paris") == split_of("paris") == split_of("PARIS")
