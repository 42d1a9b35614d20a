"""What /v1/responses answers, as types (`reply_shape`)."""

# ruff: noqa: D101  # the names are the wire's own

from __future__ import annotations

from typing import Any, Literal

from msgspec import UNSET, UnsetType

from openglm.server.reply_shape import Shape


class ReasoningPart(Shape, tag_field="type", tag="reasoning_text"):
    text: str


class TextPart(Shape, tag_field="type", tag="output_text"):
    text: str
    annotations: list[Any]
    logprobs: list[Any]


ItemStatus = Literal["in_progress", "completed"]


class ReasoningItem(Shape, tag_field="type", tag="reasoning"):
    id: str
    summary: list[Any]
    content: list[ReasoningPart]
    encrypted_content: None
    status: ItemStatus


class MessageItem(Shape, tag_field="type", tag="message"):
    id: str
    role: Literal["assistant"]
    status: ItemStatus
    content: list[TextPart]


class CallItem(Shape, tag_field="type", tag="function_call"):
    id: str
    call_id: str
    name: str
    arguments: str
    status: ItemStatus
    namespace: str | UnsetType = UNSET


Item = ReasoningItem | MessageItem | CallItem


class CachedInput(Shape):
    cached_tokens: int
    cache_write_tokens: int


class ReasoningOutput(Shape):
    reasoning_tokens: int


class ResponseUsage(Shape):
    input_tokens: int
    input_tokens_details: CachedInput
    output_tokens: int
    output_tokens_details: ReasoningOutput
    total_tokens: int


class ResponseError(Shape):
    code: str
    message: str


class IncompleteDetails(Shape):
    reason: str


class EchoedReasoning(Shape):
    effort: str | None
    summary: str | None


class EchoedText(Shape):
    format: dict[str, Any]
    verbosity: str


class ResponseObject(Shape):
    """The response; what the request said comes back in it."""

    id: str
    object: Literal["response"]
    created_at: int
    model: str
    status: Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
    output: list[Item]
    error: ResponseError | None
    incomplete_details: IncompleteDetails | None
    usage: ResponseUsage | None
    completed_at: int | None
    background: bool
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    previous_response_id: str | None
    prompt_cache_key: str | None
    reasoning: EchoedReasoning
    safety_identifier: str | None
    service_tier: str
    store: bool
    temperature: float
    text: EchoedText
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    truncation: str
    user: str | None


class DeletedResponse(Shape):
    id: str
    object: Literal["response"]
    deleted: bool


def _dotted(name: str) -> str:
    """`OutputItem_Added` -> `output_item.added`."""
    words = "".join([f"_{letter.lower()}" if letter.isupper() else letter for letter in name.replace("_", ".")])
    return words.replace("._", ".").strip("_")


class _ResponseEvent(Shape, tag_field="type", tag=lambda name: f"response.{_dotted(name)}"):
    sequence_number: int


class _Snapshot(_ResponseEvent):
    response: ResponseObject


class Created(_Snapshot):
    pass


class InProgress(_Snapshot):
    pass


class Completed(_Snapshot):
    pass


class Incomplete(_Snapshot):
    pass


class Failed(_Snapshot):
    pass


class _ItemEvent(_ResponseEvent):
    output_index: int
    item: Item


class OutputItem_Added(_ItemEvent):  # a dot in the event's name
    pass


class OutputItem_Done(_ItemEvent):
    pass


class _InItem(_ResponseEvent):
    item_id: str
    output_index: int


class _PartEvent(_InItem):
    content_index: int
    part: ReasoningPart | TextPart


class ContentPart_Added(_PartEvent):
    pass


class ContentPart_Done(_PartEvent):
    pass


class ReasoningText_Delta(_InItem):
    content_index: int
    delta: str


class ReasoningText_Done(_InItem):
    content_index: int
    text: str


class OutputText_Delta(_InItem):
    content_index: int
    delta: str
    logprobs: list[Any]


class OutputText_Done(_InItem):
    content_index: int
    text: str
    logprobs: list[Any]


class FunctionCallArguments_Delta(_InItem):
    delta: str


class FunctionCallArguments_Done(_InItem):
    name: str
    arguments: str


ResponseEvent = (
    Created
    | InProgress
    | Completed
    | Incomplete
    | Failed
    | OutputItem_Added
    | OutputItem_Done
    | ContentPart_Added
    | ContentPart_Done
    | ReasoningText_Delta
    | ReasoningText_Done
    | OutputText_Delta
    | OutputText_Done
    | FunctionCallArguments_Delta
    | FunctionCallArguments_Done
)
