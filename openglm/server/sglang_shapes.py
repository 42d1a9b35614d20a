"""What /generate answers, as types (`reply_shape`)."""

# ruff: noqa: D101  # the names are the wire's own

from __future__ import annotations

from typing import Literal

from msgspec import UNSET, UnsetType

from openglm.server.reply_shape import Shape

Triple = tuple[float | None, int, str | None]


class GenerateFinish(Shape):
    type: Literal["stop", "length", "abort"]
    matched: str | int | UnsetType | None = UNSET
    length: int | UnsetType = UNSET
    message: str | UnsetType = UNSET


class MetaInfo(Shape):
    id: str
    finish_reason: GenerateFinish | None
    prompt_tokens: int
    completion_tokens: int
    weight_version: str
    cached_tokens: int | UnsetType = UNSET
    e2e_latency: float | UnsetType = UNSET
    spec_draft_tokens: int | UnsetType = UNSET
    spec_accepted_tokens: int | UnsetType = UNSET
    output_token_logprobs: list[Triple] | UnsetType = UNSET
    output_top_logprobs: list[list[Triple]] | UnsetType = UNSET
    input_token_logprobs: list[Triple] | UnsetType = UNSET
    input_top_logprobs: list[list[Triple] | None] | UnsetType = UNSET


class Generated(Shape):
    """Whole, or one event of a stream: everything from the beginning."""

    text: str
    output_ids: list[int]
    meta_info: MetaInfo
    index: int | UnsetType = UNSET
