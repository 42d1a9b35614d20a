"""The shapes of everything that the server answers, as types: `/openapi.json` is made from them, and the tests read every recorded answer
with them, unknown fields forbidden. Answers are written by the dialects' `_response` files; nothing is written with these.
"""

# ruff: noqa: D101  # the names are the wire's own

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType


class Shape(msgspec.Struct, forbid_unknown_fields=True):
    """A field with a default may be missing; all others are always there."""


# OpenAI: errors, usage, models


class ErrorDetail(Shape):
    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIError(Shape):
    """How a request is refused, on every route that no other dialect owns."""

    error: ErrorDetail


class PromptDetails(Shape):
    cached_tokens: int


class CompletionDetails(Shape):
    reasoning_tokens: int
    draft_tokens: int
    accepted_draft_tokens: int


class Usage(Shape):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails | UnsetType = UNSET
    cache_read_input_tokens: int | UnsetType = UNSET
    completion_tokens_details: CompletionDetails | UnsetType = UNSET


class ModelCard(Shape):
    id: str
    object: Literal["model"]
    type: Literal["model"]
    display_name: str
    created: int
    created_at: str
    owned_by: str
    root: str
    max_model_len: int
    max_input_tokens: int
    max_tokens: int


class ModelList(Shape):
    object: Literal["list"]
    data: list[ModelCard]
    has_more: bool
    first_id: str
    last_id: str


# OpenAI: chat completions; Z.ai's differ in `request_id` and in errors

FinishReason = Literal["stop", "length", "tool_calls", "abort"]


class CalledFunction(Shape):
    name: str
    arguments: str


class ChatToolCall(Shape):
    id: str
    type: Literal["function"]
    function: CalledFunction


class ChatMessage(Shape):
    role: Literal["assistant"]
    content: str | None
    tool_calls: list[ChatToolCall] | UnsetType = UNSET
    reasoning_content: str | UnsetType | None = UNSET
    reasoning: str | UnsetType | None = UNSET


class Alternative(Shape):
    token: str
    logprob: float
    bytes: list[int]


class ScoredToken(Alternative):
    top_logprobs: list[Alternative]


class ChatScores(Shape):
    content: list[ScoredToken]
    refusal: None


class ChatChoice(Shape):
    index: int
    message: ChatMessage
    logprobs: ChatScores | None
    finish_reason: FinishReason


class ChatCompletion(Shape):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    request_id: str | UnsetType = UNSET


class FunctionPiece(Shape):
    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET


class CallPiece(Shape):
    index: int
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET
    function: FunctionPiece | UnsetType = UNSET


class ChatDelta(Shape):
    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    tool_calls: list[CallPiece] | UnsetType = UNSET


class ChunkChoice(Shape):
    index: int
    delta: ChatDelta
    logprobs: ChatScores | None
    finish_reason: FinishReason | None


class ChatChunk(Shape):
    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | UnsetType | None = UNSET
    request_id: str | UnsetType = UNSET


class StoppedThinking(Shape):
    id: str
    object: Literal["chat.completion.stop_thinking"]


class ZaiErrorDetail(Shape):
    code: str
    message: str


class ZaiError(Shape):
    error: ZaiErrorDetail


# OpenAI: completions


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


# OpenAI: responses


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

# Anthropic: messages


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


# SGLang: generate

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


# Tokens


class Tokenized(Shape):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class Detokenized(Shape):
    prompt: str
    content: str


class TokenizerInfo(Shape):
    tokenizer_class: str
    eos_token: str
    pad_token: str
    bos_token: None
    unk_token: None
    vocab_size: int
    model_max_length: int
    chat_template: str | None
    additional_special_tokens: list[str]
    stop_token_ids: list[int]


# Operation


class Version(Shape):
    version: str


class ModelInfo(Shape):
    model_path: str
    tokenizer_path: str
    served_model_names: list[str]
    is_generation: bool
    max_model_len: int
    preferred_sampling_params: dict[str, float]


class IgnoredFieldCounts(Shape):
    total: int
    by_name: dict[str, int]


class InternalState(Shape):
    avg_spec_accept_length: float | None
    stats: dict[str, Any]


class ServerInfo(Shape):
    version: str
    status: Literal["starting", "ready", "restarting", "dead", "draining"]
    served_model_name: str
    max_model_len: int
    max_total_num_tokens: int
    page_size: int
    max_queued_requests: int
    default_thinking: bool
    reasoning_field: str
    ignored_fields: IgnoredFieldCounts
    internal_states: list[InternalState]


class Load(Shape):
    dp_rank: int
    num_running_reqs: int
    num_waiting_reqs: int
    num_total_reqs: int
    num_used_tokens: int
    max_total_num_tokens: int
    token_usage: float
    cache_hit_rate: float
    max_running_requests: int
    utilization: float
    queues: dict[str, int]


class Loads(Shape):
    timestamp: str
    version: str
    dp_rank_count: int
    loads: list[Load]
    aggregate: dict[str, int]


class DrainState(Shape):
    draining: bool
    ready: bool
    in_flight: int


class Aborted(Shape):
    aborted: int
