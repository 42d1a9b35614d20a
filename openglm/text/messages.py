"""The neutral conversation type that every dialect, the trainer and the evaluation share.

Owns the shape of a conversation and nothing else: wire formats (OpenAI, Anthropic) translate into it, `template` renders
it. Contents are plain text; parts, images and wire ids are the translators' business.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]
JSON = Any  # a value that `json` can write: None, bool, int, float, str, list, dict


@dataclass(frozen=True)
class ToolCall:
    """One call that an assistant turn made; `arguments` maps parameter names to JSON values, in the order written."""

    name: str
    arguments: dict[str, JSON] = field(default_factory=dict)
    id: str = ""


@dataclass(frozen=True)
class Tool:
    """A function the model may call. `definition` is the whole object as the client gave it; the template prints it."""

    name: str
    parameters: dict[str, JSON]
    definition: dict[str, JSON]


@dataclass(frozen=True)
class Message:
    """One turn. `reasoning` is None when the turn carries none; a tool turn answers one call (`tool_call_id`)."""

    role: Role
    content: str = ""
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None


@dataclass(frozen=True)
class Conversation:
    """What is rendered to one prompt. `thinking` off renders the closed think block; `keep_thinking` (GLM-4.7's
    `clear_thinking: false`) keeps the reasoning of every earlier turn."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    thinking: bool = True
    keep_thinking: bool = False

    @property
    def ends_with_answer(self) -> bool:
        """Whether the last turn is text of the model, without calls, so that it could go on."""
        last = self.messages[-1] if self.messages else None
        return last is not None and last.role == "assistant" and bool(last.content.strip()) and not last.tool_calls
