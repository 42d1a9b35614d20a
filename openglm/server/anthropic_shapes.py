"""What /v1/messages and its counting answer, as types (`reply_shape`)."""

# ruff: noqa: D101  # the names are the wire's own

from __future__ import annotations

from typing import Any, Literal

from msgspec import UNSET, UnsetType

from openglm.server.reply_shape import Shape


class AnthropicErrorDetail(Shape):
    type: str
    message: str


class AnthropicError(Shape, tag_field="type", tag="error"):
    error: AnthropicErrorDetail
    request_id: str | UnsetType = UNSET


class ThinkingBlock(Shape, tag_field="type", tag="thinking"):
    thinking: str
    signature: str


class TextBlock(Shape, tag_field="type", tag="text"):
    text: str


class ToolUseBlock(Shape, tag_field="type", tag="tool_use"):
    id: str
    name: str
    input: dict[str, Any]


Block = ThinkingBlock | TextBlock | ToolUseBlock
StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"]


class ThinkingTokens(Shape):
    thinking_tokens: int


class MessageUsage(Shape):
    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int
    output_tokens_details: ThinkingTokens


class MessageObject(Shape, tag_field="type", tag="message"):
    id: str
    role: Literal["assistant"]
    model: str
    content: list[Block]
    stop_reason: StopReason | None
    stop_sequence: str | None
    usage: MessageUsage


class MessageStart(Shape, tag_field="type", tag="message_start"):
    message: MessageObject


class Ping(Shape, tag_field="type", tag="ping"):
    pass


class BlockStart(Shape, tag_field="type", tag="content_block_start"):
    index: int
    content_block: Block


class ThinkingDelta(Shape, tag_field="type", tag="thinking_delta"):
    thinking: str


class SignatureDelta(Shape, tag_field="type", tag="signature_delta"):
    signature: str


class TextDelta(Shape, tag_field="type", tag="text_delta"):
    text: str


class InputDelta(Shape, tag_field="type", tag="input_json_delta"):
    partial_json: str


class BlockDelta(Shape, tag_field="type", tag="content_block_delta"):
    index: int
    delta: ThinkingDelta | SignatureDelta | TextDelta | InputDelta


class BlockStop(Shape, tag_field="type", tag="content_block_stop"):
    index: int


class MessageEnd(Shape):
    stop_reason: StopReason
    stop_sequence: str | None


class MessageDelta(Shape, tag_field="type", tag="message_delta"):
    delta: MessageEnd
    usage: MessageUsage


class MessageStop(Shape, tag_field="type", tag="message_stop"):
    pass


MessageEvent = MessageStart | Ping | BlockStart | BlockDelta | BlockStop | MessageDelta | MessageStop | AnthropicError


class CountedTokens(Shape):
    input_tokens: int
