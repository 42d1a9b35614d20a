"""The evaluation on a terminal: a bar while it runs, one table at the end."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from openglm.eval.report import ACCEPTANCE_TARGET, Report, Share
from openglm.eval.tasks import EvalTask


class EvaluationProgress:
    """A bar over tasks that names each finished one with its score."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._bar.add_task("loading the model", total=None)

    def __enter__(self) -> EvaluationProgress:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()

    def begin(self, num_tasks: int) -> None:
        """The model is loaded; questions follow."""
        self._bar.update(self._task, description="asking", total=num_tasks)

    def finished(self, task: EvalTask, accuracy: Share) -> None:
        """One task is done."""
        self._bar.update(self._task, advance=1, description=f"{task.name} {accuracy.value:.1%}")


def show(report: Report, console: Console | None = None) -> None:
    """Print the table of all tasks; a missed target is red."""
    table = Table(title=f"{report.model}: {report.per_task} held-out questions per task", title_justify="left")
    for heading, justify in (
        ("task", "left"),
        ("accuracy", "right"),
        ("95 %", "right"),
        ("target", "right"),
        ("most frequent mistake", "left"),
    ):
        table.add_column(heading, justify="right" if justify == "right" else "left")
    for task in report.tasks:
        mistakes = report.mistakes(task)
        worst = next((f"{name} ({count})" for name, count in mistakes.items()), "")
        _row(table, task.name, report.accuracy(task), task.target, worst, missed=task.name in report.missed)
    if report.acceptance.total:
        missed = "mtp_acceptance" in report.missed
        _row(table, "MTP draft acceptance", report.acceptance, ACCEPTANCE_TARGET, "", missed=missed)
    (console or Console()).print(table)


def _row(table: Table, name: str, part: Share, target: float | None, note: str, *, missed: bool) -> None:
    low, high = part.interval
    shown = "" if target is None else f"{target:.0%}"
    style = "" if target is None else "red" if missed else "green"
    table.add_row(name, f"{part.value:.1%}", f"{low:.1%} - {high:.1%}", shown, note, style=style)
