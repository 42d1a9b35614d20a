"""What the OpenAI chat route and the models answer, as types (`reply_shape`). Usage and errors are those of several dialects."""

# ruff: noqa: D101  # the names are the wire's own

from __future__ import annotations

from typing import Literal

from msgspec import UNSET, UnsetType

from openglm.server.reply_shape import Shape


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
