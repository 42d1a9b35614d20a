"""The held-out questions. Each is a conversation cut before its last turn, with that turn as the expected answer.

Words, names, schemas and number pairs come from the held-out side of `openglm.synth`, so that nothing here was ever trained
on. The four headline tasks have targets and are asked with thinking on, the default of GLM; the others show how far
the same skills carry.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from openglm.errors import DataError
from openglm.synth import Episode, generate
from openglm.text.messages import Conversation, Message

_HAN = re.compile(r"[\u4e00-\u9fff]")
_MAX_DRAWS_PER_ITEM = 2000


@dataclass(frozen=True)
class EvalTask:
    """What to ask: episodes of generator `source` with thinking on or off. `target` is the accuracy promised, if any."""

    name: str
    source: str
    description: str
    thinking: bool = True
    target: float | None = None
    accept: Callable[[Episode], bool] = lambda _: True


@dataclass(frozen=True)
class Item:
    """One question: the conversation up to the model's turn, the turn expected, and the groups it counts in (`language`: `zh`)."""

    task: str
    prompt: Conversation
    expected: Message
    groups: Mapping[str, str]


def _has_tools(episode: Episode) -> bool:
    return bool(episode.conversation.tools)


def _adds_no_single_digits(episode: Episode) -> bool:
    """Single digits are left out: 55 pairs are too few to hold out in earnest."""
    return any(number >= 10 for number in numbers(episode.conversation.messages[-2].content))


TASKS: tuple[EvalTask, ...] = (
    EvalTask("add", "add", "sum of two numbers of up to four digits", target=0.95, accept=_adds_no_single_digits),
    EvalTask("tool_call", "tool_call", "the right tool of one to four, every argument exact", target=0.85),
    EvalTask("tool_result", "tool_result", "answer from what a tool returned", target=0.95),
    EvalTask("no_tool", "no_tool", "refuse when no tool fits", target=0.85, accept=_has_tools),
    EvalTask("tool_call_direct", "tool_call", "tool call with thinking off", thinking=False),
    EvalTask("no_tool_direct", "no_tool", "refusal with thinking off", thinking=False, accept=_has_tools),
    EvalTask("tool_result_direct", "tool_result", "answer from a tool result with thinking off", thinking=False),
    EvalTask("tool_call_parallel", "tool_call_parallel", "two calls in one turn"),
    EvalTask("follow_up", "follow_up", "'And for London?' after an answered call"),
    EvalTask("tool_session", "tool_session", "the last of several requests over the same tools"),
    EvalTask("tools_unneeded", "tools_unneeded", "a sum or small talk while tools are there"),
    EvalTask("sub", "sub", "difference of two numbers"),
    EvalTask("mul_digit", "mul_digit", "a number times one digit"),
    EvalTask("echo", "echo", "repeat words never seen", thinking=False),
    EvalTask("persona", "persona", "speak as the system prompt says"),
)


def draw_items(task: EvalTask, count: int, seed: int) -> list[Item]:
    """`count` different questions of `task`, the same for the same seed."""
    rng = random.Random(f"eval/{task.name}/{seed}")
    items: dict[str, Item] = {}
    for _ in range(count * _MAX_DRAWS_PER_ITEM):
        if len(items) == count:
            return list(items.values())
        episode = generate(task.source, rng, "heldout")
        if episode.conversation.thinking is task.thinking and task.accept(episode):
            item = _item(task.name, episode)
            items.setdefault(repr((item.prompt.messages, item.prompt.tools)), item)
    raise DataError(f"task {task.name!r} has fewer than {count} different held-out questions; ask for fewer per task")


def numbers(text: str) -> list[int]:
    """The whole numbers in a text, in order."""
    return [int(digits) for digits in re.findall(r"\d+", text)]


def _item(name: str, episode: Episode) -> Item:
    messages = episode.conversation.messages
    question = next(message for message in reversed(messages) if message.role == "user").content
    groups = {"language": "zh" if _HAN.search(question) else "en"}
    if episode.conversation.tools:
        groups["tools"] = str(len(episode.conversation.tools))
        groups["arguments"] = str(sum(len(call.arguments) for call in episode.answer.tool_calls))
    elif episode.task == "add":
        groups["digits"] = str(max(len(str(number)) for number in numbers(question)))
    return Item(name, replace(episode.conversation, messages=messages[:-1]), episode.answer, groups)
