"""`glm eval nano`: the engine with the embedded model (or another directory) against the tasks of `tasks`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from openglm.engine.llm import LLM
from openglm.errors import ConfigError
from openglm.eval.report import Report
from openglm.eval.runner import evaluate
from openglm.eval.tasks import TASKS, EvalTask
from openglm.eval.terminal import EvaluationProgress


def evaluate_nano(model: Path | None, names: Sequence[str], *, per_task: int, seed: int, progress: EvaluationProgress) -> Report:
    """Score `model` (None: the embedded one) on the tasks called `names`, or on all."""
    tasks = select(names)
    name = "glm-nano" if model is None else str(model)
    llm = LLM(None if model is None else str(model), num_speculative_tokens=1)  # depth 1: the first draft's acceptance
    if llm.tokenizer is None:
        raise ConfigError(f"{name} has no tokenizer; evaluation asks in words and needs tokenizer.json")
    progress.begin(len(tasks))
    return evaluate(llm, llm.tokenizer, tasks, per_task=per_task, seed=seed, model=name, progress=progress.finished)


def select(names: Sequence[str]) -> tuple[EvalTask, ...]:
    """The tasks called `names` in their usual order; all of them for an empty list."""
    known = {task.name for task in TASKS}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError(f"no evaluation task is called {', '.join(map(repr, unknown))}; known: {', '.join(task.name for task in TASKS)}")
    return tuple(task for task in TASKS if not names or task.name in names)
