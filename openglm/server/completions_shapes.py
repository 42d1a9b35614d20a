"""What /v1/completions answers, as types (`reply_shape`)."""

# ruff: noqa: D101  # the names are the wire's own

from __future__ import annotations

from typing import Literal

from msgspec import UNSET, UnsetType

from openglm.server.openai_shapes import FinishReason, Usage
from openglm.server.reply_shape import Shape


class CompletionScores(Shape):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(Shape):
    index: int
    text: str
    logprobs: CompletionScores | None
    finish_reason: FinishReason | None
    stop_reason: str | int | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class Completion(Shape):
    """Whole, or one event of a stream."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | UnsetType | None = UNSET
