"""Ask a model every question, greedily, and collect what it answered.

The runner renders prompts exactly as the server does and reads replies with the same turn parser, so a score is about what
a client would have received. Draft acceptance is taken from the same generation: it is the acceptance users see.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from openglm.engine.request import RequestFailure, SamplingParams
from openglm.eval.report import Answer, Report, Share, share
from openglm.eval.scoring import judge
from openglm.eval.tasks import EvalTask, Item, draw_items
from openglm.text.template import TemplateStyle, render
from openglm.text.tokenizer import Tokenizer
from openglm.text.turn_parser import parse_turn

MAX_ANSWER_TOKENS = 640  # the longest expected turn, a thought over four tools with two calls, has less than half of that


class Generation(Protocol):
    """What came of one prompt. `finish_reason` is "stop" when the model ended its turn itself."""

    @property
    def token_ids(self) -> Sequence[int]:
        """Generated tokens, without the one that stopped them."""

    @property
    def finish_reason(self) -> str | None:
        """Why it ended."""

    @property
    def num_drafted(self) -> int:
        """Draft tokens that were verified."""

    @property
    def num_accepted(self) -> int:
        """Draft tokens that were right."""

    @property
    def error(self) -> RequestFailure | None:
        """What failed in the engine."""


class Generator(Protocol):
    """Anything that continues prompts of token ids: the engine's `LLM`, or a fake in tests."""

    def generate(self, prompts: list[list[int]], params: SamplingParams) -> Sequence[Generation]:
        """One result per prompt, in order."""


def evaluate(
    generator: Generator,
    tokenizer: Tokenizer,
    tasks: Sequence[EvalTask],
    *,
    style: TemplateStyle = "glm-4.5",
    per_task: int = 200,
    seed: int = 0,
    model: str = "glm-nano",
    progress: Callable[[EvalTask, Share], None] | None = None,
) -> Report:
    """Ask `per_task` held-out questions of every task; `progress` hears the accuracy after each one."""
    answers: list[Answer] = []
    for task in tasks:
        given = ask(generator, tokenizer, draw_items(task, per_task, seed), style=style)
        answers += given
        if progress is not None:
            progress(task, share(given))
    return Report(model, seed, per_task, tuple(tasks), tuple(answers))


def ask(generator: Generator, tokenizer: Tokenizer, items: Sequence[Item], *, style: TemplateStyle) -> list[Answer]:
    """The model's answers to `items`, judged. A failure of the engine is raised: it must not look like a wrong answer."""
    rendered = [render(item.prompt, style) for item in items]
    prompts = [tokenizer.encode_segments(prompt.segments) for prompt in rendered]
    params = SamplingParams(max_tokens=MAX_ANSWER_TOKENS, temperature=0.0)
    answers = []
    for item, prompt, generation in zip(items, rendered, generator.generate(prompts, params), strict=True):
        if generation.error is not None:
            raise generation.error.to_error()
        finished = generation.finish_reason == "stop"
        text = tokenizer.decode(list(generation.token_ids))
        message = parse_turn(text, prompt.start, item.prompt.tools, ended=finished)
        verdict = judge(item, message, finished=finished)
        answers.append(Answer(item, text, verdict, len(generation.token_ids), generation.num_drafted, generation.num_accepted))
    return answers
