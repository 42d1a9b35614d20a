"""The table of tasks, how often each appears as training proceeds, and the endless seeded stream of episodes."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate, islice

from openglm.errors import DataError
from openglm.synth import arithmetic, extraction, smalltalk, tool_tasks
from openglm.synth.episode import Episode
from openglm.synth.split import Split
from openglm.synth.values import Language
from openglm.text.template import render

CHINESE_SHARE = 0.35
_TRAINING_CHINESE_SHARE = 0.5  # the harder language for so small a model: more characters, fewer words


@dataclass(frozen=True)
class Task:
    """A generator with its share of episodes at the start and at the end of training."""

    make: Callable[[random.Random, Split, Language], Episode]
    early: float
    late: float

    @property
    def description(self) -> str:
        """The first line of the generator's docstring."""
        return (self.make.__doc__ or "").strip().splitlines()[0]


# Arithmetic and copying come early (they are learned in minutes), calls are there all along, and the late mix keeps requests
# with and without a fitting tool in balance: deciding between them is the last skill to arrive. Nothing ever drops to zero.
TASKS: Mapping[str, Task] = {
    "add": Task(arithmetic.add, 0.34, 0.10),
    "add3": Task(arithmetic.add3, 0.03, 0.01),
    "sub": Task(arithmetic.sub, 0.06, 0.02),
    "mul_digit": Task(arithmetic.mul_digit, 0.06, 0.02),
    "compare": Task(arithmetic.compare, 0.03, 0.01),
    "echo": Task(smalltalk.echo, 0.12, 0.03),
    "chat": Task(smalltalk.chat, 0.06, 0.03),
    "persona": Task(smalltalk.persona, 0.02, 0.01),
    "dialogue": Task(smalltalk.dialogue, 0.03, 0.01),
    "extract_json": Task(extraction.extract_json, 0.03, 0.01),
    "sort_numbers": Task(extraction.sort_numbers, 0.01, 0.01),
    "tool_call": Task(tool_tasks.tool_call, 0.16, 0.32),
    "tool_call_parallel": Task(tool_tasks.tool_call_parallel, 0.02, 0.02),
    "follow_up": Task(tool_tasks.follow_up, 0.02, 0.01),
    "tool_session": Task(tool_tasks.tool_session, 0.05, 0.04),
    "no_tool": Task(tool_tasks.no_tool, 0.07, 0.28),
    "tools_unneeded": Task(tool_tasks.tools_unneeded, 0.02, 0.02),
    "tool_result": Task(tool_tasks.tool_result, 0.06, 0.18),
}


def generate(task: str, rng: random.Random, split: Split, *, language: Language | None = None) -> Episode:
    """One episode of `task`; two of three are English where the language is not given."""
    if task not in TASKS:
        raise DataError(f"no task is called {task!r}; there are: {', '.join(TASKS)}")
    share = _TRAINING_CHINESE_SHARE if split == "train" else CHINESE_SHARE
    return TASKS[task].make(rng, split, language or ("zh" if rng.random() < share else "en"))


def mixture(progress: float) -> dict[str, float]:
    """The share of each task at `progress` (0 = start, 1 = end of training); the late mix holds from 60 % on."""
    late = min(max(progress / 0.6, 0.0), 1.0)
    weights = {name: (1 - late) * task.early + late * task.late for name, task in TASKS.items()}
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


DEFAULT_MIXTURE: Mapping[str, float] = mixture(0.5)


def stream(seed: int, split: Split, weights: Mapping[str, float] = DEFAULT_MIXTURE) -> Iterator[Episode]:
    """Episodes without end, the same for the same seed, side and weights."""
    unknown = set(weights) - set(TASKS)
    if unknown or not weights or min(weights.values()) < 0 or sum(weights.values()) <= 0:
        raise DataError(f"a mixture needs positive weights of known tasks; unknown: {sorted(unknown) or 'none'}, got {dict(weights)}")
    rng = random.Random(f"{split}/{seed}")
    names = list(weights)
    cumulative = list(accumulate(weights.values()))
    while True:
        yield generate(rng.choices(names, cum_weights=cumulative)[0], rng, split)


def corpus_sample(seed: int, count: int) -> Iterator[str]:
    """Ordinary text of `count` training episodes, control tokens cut out: what a tokenizer is trained on."""
    for episode in islice(stream(seed, "train"), count):
        for piece in _CONTROL.split(render(episode.conversation, "glm-4.5", add_generation_prompt=False).text):
            if piece.strip():
                yield piece


_CONTROL = re.compile(r"<\|[a-z_]+\|>|\[gMASK\]|<sop>|/nothink|</?(?:think|tool_call|tool_response|arg_key|arg_value)>")
