"""The result of an evaluation, as numbers, as JSON and as Markdown.

Intervals are Wilson's at 95 %: honest also near 100 % and for few questions. A target counts as met when the measured share
reaches it, and the interval tells how sure that is.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from openglm.eval.scoring import Verdict
from openglm.eval.tasks import EvalTask, Item
from openglm.text.messages import JSON

ACCEPTANCE_TARGET = 0.75
_Z = 1.96
_MAX_FAILURES_SHOWN = 3
_MAX_CHARS_SHOWN = 400


@dataclass(frozen=True)
class Answer:
    """One question with what the model wrote and whether it counts."""

    item: Item
    text: str
    verdict: Verdict
    num_tokens: int
    num_drafted: int
    num_accepted: int


@dataclass(frozen=True)
class Share:
    """`right` out of `total`."""

    right: int
    total: int

    @property
    def value(self) -> float:
        """The share; 0 of nothing."""
        return self.right / self.total if self.total else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval."""
        if not self.total:
            return 0.0, 1.0
        n, p = self.total, self.value
        centre = (p + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
        half = _Z * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2)) / (1 + _Z**2 / n)
        return max(0.0, centre - half), min(1.0, centre + half)

    def to_json(self) -> dict[str, JSON]:
        """Counts, share and interval."""
        low, high = self.interval
        return {"right": self.right, "total": self.total, "share": round(self.value, 4), "low": round(low, 4), "high": round(high, 4)}


@dataclass(frozen=True)
class Report:
    """Everything that was asked and answered."""

    model: str
    seed: int
    per_task: int
    tasks: tuple[EvalTask, ...]
    answers: tuple[Answer, ...]

    def accuracy(self, task: EvalTask) -> Share:
        """The share of right answers of one task."""
        return share(self.of(task))

    def of(self, task: EvalTask) -> list[Answer]:
        """The answers of one task."""
        return [answer for answer in self.answers if answer.item.task == task.name]

    @property
    def acceptance(self) -> Share:
        """Accepted out of verified draft tokens over the headline tasks (all, where none is among those asked)."""
        headline = {task.name for task in self.tasks if task.target is not None} or {task.name for task in self.tasks}
        counted = [answer for answer in self.answers if answer.item.task in headline]
        return Share(sum(answer.num_accepted for answer in counted), sum(answer.num_drafted for answer in counted))

    @property
    def missed(self) -> tuple[str, ...]:
        """Names of the targets that were not reached."""
        names = [task.name for task in self.tasks if task.target is not None and self.accuracy(task).value < task.target]
        if self.acceptance.total and self.acceptance.value < ACCEPTANCE_TARGET:
            names.append("mtp_acceptance")
        return tuple(names)

    def groups(self, task: EvalTask) -> dict[str, dict[str, Share]]:
        """The accuracy of a task by language, number of tools and so on."""
        answers = self.of(task)
        kinds = sorted({kind for answer in answers for kind in answer.item.groups})
        table: dict[str, dict[str, Share]] = {}
        for kind in kinds:
            values = sorted({answer.item.groups[kind] for answer in answers if kind in answer.item.groups})
            if len(values) > 1:
                table[kind] = {value: share(a for a in answers if a.item.groups.get(kind) == value) for value in values}
        return table

    def mistakes(self, task: EvalTask) -> dict[str, int]:
        """How often each kind of mistake was made, most frequent first."""
        counts = Counter(answer.verdict.mistake for answer in self.of(task) if answer.verdict.mistake is not None)
        return dict(counts.most_common())

    def failures(self, task: EvalTask) -> list[Answer]:
        """A few wrong answers to look at."""
        return [answer for answer in self.of(task) if not answer.verdict.correct][:_MAX_FAILURES_SHOWN]

    def to_json(self) -> dict[str, JSON]:
        """The whole report without the right answers' texts."""
        return {
            "model": self.model,
            "seed": self.seed,
            "per_task": self.per_task,
            "missed_targets": list(self.missed),
            "mtp_acceptance": self.acceptance.to_json() | {"target": ACCEPTANCE_TARGET},
            "tasks": {
                task.name: {
                    "description": task.description,
                    "thinking": task.thinking,
                    "target": task.target,
                    "accuracy": self.accuracy(task).to_json(),
                    "groups": {kind: {value: part.to_json() for value, part in parts.items()} for kind, parts in self.groups(task).items()},
                    "mistakes": self.mistakes(task),
                    "mean_tokens": round(sum(a.num_tokens for a in self.of(task)) / max(1, len(self.of(task))), 1),
                    "failures": [_shown(answer) for answer in self.failures(task)],
                }
                for task in self.tasks
            },
        }

    def to_markdown(self) -> str:
        """The report for people: one table, then groups, mistakes and examples of failure."""
        lines = [
            f"# Evaluation of {self.model}",
            "",
            f"{self.per_task} held-out questions per task (seed {self.seed}), greedy decoding. Tool, parameter, city and person names,",
            "words and number pairs were never part of training. Brackets: 95 % interval (Wilson).",
            "",
            "| task | accuracy | 95 % | target | what counts |",
            "|---|---|---|---|---|",
        ]
        for task in self.tasks:
            accuracy = self.accuracy(task)
            target = "" if task.target is None else f"{task.target:.0%} {'met' if task.name not in self.missed else '**missed**'}"
            lines.append(f"| {task.name} | {accuracy.value:.1%} | {_interval(accuracy)} | {target} | {task.description} |")
        if self.acceptance.total:
            met = "met" if "mtp_acceptance" not in self.missed else "**missed**"
            lines.append(
                f"| MTP draft acceptance | {self.acceptance.value:.1%} | {_interval(self.acceptance)} | {ACCEPTANCE_TARGET:.0%} {met} | "
                "verified drafts that were right, headline tasks |"
            )
        for task in self.tasks:
            lines += self._details(task)
        return "\n".join(lines) + "\n"

    def _details(self, task: EvalTask) -> list[str]:
        lines: list[str] = []
        for kind, parts in self.groups(task).items():
            lines.append(f"- by {kind}: " + ", ".join(f"{value} {part.value:.1%} ({part.total})" for value, part in parts.items()))
        mistakes = self.mistakes(task)
        if mistakes:
            lines.append("- mistakes: " + ", ".join(f"{name} {count}" for name, count in mistakes.items()))
        for answer in self.failures(task):
            shown = _shown(answer)
            lines += ["", "```text", *(f"{key}: {value}" for key, value in shown.items()), "```"]
        return ["", f"## {task.name}", "", *lines] if lines else []


def share(answers: Iterable[Answer]) -> Share:
    """The share of right ones."""
    verdicts = [answer.verdict.correct for answer in answers]
    return Share(sum(verdicts), len(verdicts))


def _shown(answer: Answer) -> dict[str, str]:
    expected = answer.item.expected
    calls = "; ".join(f"{call.name}{call.arguments}" for call in expected.tool_calls)
    return {
        "tools": ", ".join(tool.name for tool in answer.item.prompt.tools) or "-",
        "asked": _cut(answer.item.prompt.messages[-1].content),
        "expected": _cut(calls or expected.content),
        "written": _cut(answer.text.replace("\n", "\\n")),
        "mistake": str(answer.verdict.mistake),
    }


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_CHARS_SHOWN else text[:_MAX_CHARS_SHOWN] + "..."


def _interval(part: Share) -> str:
    low, high = part.interval
    return f"[{low:.1%}, {high:.1%}]"
