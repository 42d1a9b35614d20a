"""Scoring on given texts: the right answer counts, each way to be wrong is named, and the report adds up."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from rich.console import Console

from openglm.engine.request import RequestFailure, SamplingParams
from openglm.errors import ConfigError, DataError, EngineError
from openglm.eval.report import Answer, Report, Share
from openglm.eval.runner import evaluate
from openglm.eval.scoring import Verdict, judge
from openglm.eval.tasks import TASKS, EvalTask, Item, draw_items
from openglm.eval.terminal import show
from openglm.synth import corpus_sample
from openglm.synth.tool_tasks import REFUSAL
from openglm.text.messages import Conversation, Message, ToolCall
from openglm.text.template import render, render_training
from openglm.text.tokenizer import Tokenizer
from openglm.train.tokenizer import train_tokenizer

BY_NAME = {task.name: task for task in TASKS}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path: Path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(train_tokenizer(corpus_sample(0, 800), num_tokens=1024), "utf-8")
    return Tokenizer.from_file(path)


def _item(expected: Message) -> Item:
    return Item("test", Conversation((Message("user", "?"),)), expected, {})


def _call(name: str, **arguments: object) -> ToolCall:
    return ToolCall(name, dict(arguments))


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_the_expected_answer_counts_as_right(task):
    for item in draw_items(task, 20, seed=1):
        assert judge(item, item.expected, finished=True).correct
        assert judge(item, item.expected, finished=False).mistake == "unfinished"


@pytest.mark.parametrize(
    ("made", "mistake"),
    [
        ((), "made no call"),
        ((_call("get_a", x=1),), "wrong number of calls"),
        ((_call("get_a", x=1), _call("get_c", y="2")), "wrong tool"),
        ((_call("get_a", x=1), _call("get_b", y=2)), "wrong arguments"),
        ((_call("get_a", x=True), _call("get_b", y="2")), "wrong arguments"),
        ((_call("get_a", x=1, z=0), _call("get_b", y="2")), "wrong arguments"),
        ((_call("get_a"), _call("get_b", y="2")), "wrong arguments"),
        ((_call("get_b", y="2"), _call("get_a", x=1)), None),
    ],
)
def test_calls_must_agree_in_name_number_and_every_typed_argument(made, mistake):
    item = _item(Message("assistant", tool_calls=(_call("get_a", x=1), _call("get_b", y="2"))))
    assert judge(item, Message("assistant", tool_calls=made), finished=True).mistake == mistake


@pytest.mark.parametrize(
    ("content", "mistake"),
    [("12 + 30 = 42", None), ("42", None), ("The sum is 42.", None), ("42 + 1", "wrong number"), ("", "wrong number")],
)
def test_sums_are_judged_by_their_last_number(content, mistake):
    item = _item(Message("assistant", "12 + 30 = 42"))
    assert judge(item, Message("assistant", content), finished=True).mistake == mistake


def test_refusals_count_in_both_languages_and_calls_instead_do_not():
    item = _item(Message("assistant", REFUSAL["en"]))
    assert judge(item, Message("assistant", REFUSAL["zh"]), finished=True).correct
    assert judge(item, Message("assistant", "Sure!"), finished=True).mistake == "wrong words"
    assert judge(item, Message("assistant", REFUSAL["en"], tool_calls=(_call("get_a"),)), finished=True).mistake == "called a tool"


def test_questions_are_different_reproducible_and_asked_in_the_right_mode():
    for task in TASKS:
        items = draw_items(task, 50, seed=3)
        assert items == draw_items(task, 50, seed=3)
        assert len({repr(item.prompt) for item in items}) == 50
        assert {item.prompt.thinking for item in items} == {task.thinking}
        assert all(item.prompt.messages[-1].role in ("user", "tool") for item in items)
    assert draw_items(BY_NAME["add"], 50, seed=3) != draw_items(BY_NAME["add"], 50, seed=4)


def test_more_questions_than_there_are_is_an_error():
    never = replace(BY_NAME["add"], accept=lambda _: False)
    with pytest.raises(DataError, match="fewer than 1 different"):
        draw_items(never, 1, seed=0)


@dataclass(frozen=True)
class Written:
    token_ids: list[int]
    finish_reason: str
    num_drafted: int = 10
    num_accepted: int = 8
    error: RequestFailure | None = None


class Scripted:
    """Answers in the order of the questions, given as texts."""

    def __init__(self, tokenizer: Tokenizer, texts: Iterator[str]) -> None:
        self._tokenizer, self._texts = tokenizer, texts
        self.prompts: list[list[int]] = []

    def generate(self, prompts: list[list[int]], params: SamplingParams) -> Sequence[Written]:
        assert params.greedy
        self.prompts += prompts
        return [Written(self._tokenizer.encode_raw(text), "stop") for _, text in zip(prompts, self._texts, strict=False)]


def _expected_text(item: Item) -> str:
    """The turn that training teaches for this question."""
    whole = replace(item.prompt, messages=(*item.prompt.messages, item.expected))
    text = "".join(segment.text for segment in render_training(whole, "glm-4.5"))
    return text[len(render(item.prompt, "glm-4.5").text) :].removesuffix("<|user|>").removesuffix("<|observation|>")


def test_a_model_that_writes_what_training_teaches_scores_full_marks(tokenizer):
    texts = (_expected_text(item) for task in TASKS for item in draw_items(task, 8, seed=0))
    heard: list[tuple[str, float]] = []
    report = evaluate(
        Scripted(tokenizer, texts), tokenizer, TASKS, per_task=8, progress=lambda task, accuracy: heard.append((task.name, accuracy.value))
    )
    assert heard == [(task.name, 1.0) for task in TASKS]
    assert report.missed == ()
    assert report.acceptance == Share(8 * 4 * 8, 8 * 4 * 10)


def test_prompts_are_what_the_server_would_send(tokenizer):
    task = BY_NAME["tool_call"]
    model = Scripted(tokenizer, iter([""] * 4))
    evaluate(model, tokenizer, [task], per_task=4)
    expected = [tokenizer.encode_segments(render(item.prompt, "glm-4.5").segments) for item in draw_items(task, 4, seed=0)]
    assert model.prompts == expected


def test_an_engine_failure_is_raised_and_not_counted_as_a_wrong_answer(tokenizer):
    class Failing:
        def generate(self, prompts: list[list[int]], params: SamplingParams) -> Sequence[Written]:
            return [Written([], "error", 0, 0, RequestFailure("not_finite", "logits are not finite")) for _ in prompts]

    with pytest.raises(EngineError, match="not finite"):
        evaluate(Failing(), tokenizer, [BY_NAME["add"]], per_task=1)


def test_reports_name_missed_targets_groups_mistakes_and_examples(tokenizer):
    task = BY_NAME["no_tool"]
    texts = [_expected_text(item) for item in draw_items(task, 10, seed=0)]
    texts[:5] = ["\n<think>hm</think>\nSure, it is done."] * 5
    report = evaluate(Scripted(tokenizer, iter(texts)), tokenizer, [task], per_task=10)
    assert report.missed == ("no_tool",)
    assert report.mistakes(task) == {"wrong words": 5}
    data = json.loads(json.dumps(report.to_json()))
    assert data["tasks"]["no_tool"]["accuracy"]["share"] == 0.5
    assert len(data["tasks"]["no_tool"]["failures"]) == 3
    markdown = report.to_markdown()
    assert "| no_tool | 50.0% | [23.7%, 76.3%] | 85% **missed** |" in markdown
    assert "Sure, it is done." in markdown
    out = io.StringIO()
    show(report, Console(file=out, width=120))
    assert "no_tool" in out.getvalue()
    assert "wrong words (5)" in out.getvalue()


def test_groups_split_the_answers_without_losing_any():
    task = BY_NAME["add"]
    items = draw_items(task, 60, seed=0)
    report = Report("m", 0, 60, (task,), tuple(Answer(item, "", Verdict(), 1, 0, 0) for item in items))
    for parts in report.groups(task).values():
        assert sum(part.total for part in parts.values()) == 60
    assert set(report.groups(task)) == {"digits", "language"}


@pytest.mark.parametrize(
    ("right", "total", "low", "high"), [(0, 0, 0.0, 1.0), (200, 200, 0.981, 1.0), (0, 200, 0.0, 0.019), (100, 200, 0.431, 0.569)]
)
def test_intervals_are_those_of_wilson(right, total, low, high):
    assert Share(right, total).interval == pytest.approx((low, high), abs=5e-4)


def test_unknown_tasks_are_refused_by_name():
    from openglm.eval import nano

    assert nano.select([]) == TASKS
    assert [task.name for task in nano.select(["no_tool", "add"])] == ["add", "no_tool"]
    with pytest.raises(ConfigError, match="'addition'"):
        nano.select(["addition"])


def test_every_target_of_the_project_is_asked_with_thinking_on():
    targets = {task.name: task.target for task in TASKS if task.target is not None}
    assert targets == {"add": 0.95, "tool_call": 0.85, "tool_result": 0.95, "no_tool": 0.85}
    assert all(isinstance(task, EvalTask) and task.thinking for task in TASKS if task.target is not None)
