"""`glm eval`: score a model on held-out generated tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from openglm.cli.report_file import writable


def command(
    suite: Annotated[str, typer.Argument(help="What to ask. `nano` are the tasks of the embedded model.")] = "nano",
    model: Annotated[Path | None, typer.Option(help="Model directory; the embedded glm-nano if none is named.")] = None,
    per_task: Annotated[int, typer.Option(min=1, help="Questions per task.")] = 200,
    task: Annotated[list[str] | None, typer.Option(help="Only this task; may be repeated.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the questions.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", callback=writable, help="Write the report as JSON.")] = None,
    markdown_file: Annotated[Path | None, typer.Option("--markdown", callback=writable, help="Write the report as Markdown.")] = None,
    strict: Annotated[bool, typer.Option(help="Exit with code 1 if a target is missed.")] = False,
) -> None:
    """Ask a model questions it has never seen and count the right answers.

    Greedy decoding through the engine, template and parser that also serve it.
    Tools, names, words and number pairs are disjoint from training.

      glm eval nano                            the embedded model
      glm eval nano --task add --task no_tool  two tasks only
      glm eval nano --model DIR --json report.json --strict
    """
    import json

    from openglm.errors import ConfigError
    from openglm.eval.nano import evaluate_nano
    from openglm.eval.terminal import EvaluationProgress, show

    if suite != "nano":
        raise ConfigError(f"no suite is called {suite!r}; known: nano")
    with EvaluationProgress() as progress:
        report = evaluate_nano(model, task or [], per_task=per_task, seed=seed, progress=progress)
    show(report)
    if json_file is not None:
        json_file.write_text(json.dumps(report.to_json(), ensure_ascii=False, indent=1) + "\n", "utf-8")
    if markdown_file is not None:
        markdown_file.write_text(report.to_markdown(), "utf-8")
    if strict and report.missed:
        raise SystemExit(1)
