"""What a training run shows: a progress bar on a terminal, one plain line per report elsewhere."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class TrainingProgress:
    """Shows reports of the loop; use as a context manager."""

    def __init__(self, num_steps: int) -> None:
        self.console = Console()
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[status]}"))
        self.bar = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self.task = self.bar.add_task("train", total=num_steps, status="")

    def __enter__(self) -> TrainingProgress:
        self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.bar.stop()

    def show(self, report: dict[str, float]) -> None:
        """Print one report of the loop; held-out accuracies get a line of their own."""
        status = f"loss {report['loss']:.3f}  mtp {report['mtp_loss']:.3f}  {report['tokens_per_second']:.0f} tok/s"
        self.bar.update(self.task, completed=int(report["step"]), status=status)
        if not self.console.is_terminal:
            self.console.print(f"step {int(report['step'])}  {status}", highlight=False)
        scores = {name.removeprefix("heldout/"): value for name, value in report.items() if name.startswith("heldout/")}
        if scores:
            line = "  ".join(f"{task} {value:.2f}" for task, value in scores.items())
            self.console.print(f"held-out after step {int(report['step'])}: {line}", highlight=False, soft_wrap=True)
