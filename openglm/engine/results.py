"""What an offline call returns: the outputs of one request put together, with its text and, for a chat, its parsed message.

Refuses to own: running requests (`llm`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from openglm.engine.cache_history import CacheOutcome
from openglm.engine.request import EngineOutput, FinishReason, RequestFailure, TokenLogprobs
from openglm.text.messages import JSON, Conversation, Message
from openglm.text.openai_messages import message_to_openai
from openglm.text.template import StartState
from openglm.text.tokenizer import Tokenizer
from openglm.text.turn_parser import parse_turn


@dataclass
class GenerationResult:
    """The answer to one prompt."""

    token_ids: list[int] = field(default_factory=list)
    """Generated tokens; the stop id that ended the answer is not among them, the token that completed a stop string is."""
    text: str = ""
    """The tokens as text: without control tokens, and cut before the stop string. Empty where the engine has no tokenizer."""
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs] | None = None
    """One entry per prompt token but the first."""
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_drafted: int = 0
    num_accepted: int = 0
    cache_outcome: CacheOutcome | None = None
    """Why no more of the prompt was cached."""
    error: RequestFailure | None = None
    """Why the finish reason is "error"; `error.to_error()` is the exception that says the same."""


@dataclass
class ChatResult(GenerationResult):
    """The answer to one conversation: besides tokens and text, the assistant's turn as reasoning, content and tool calls."""

    message: Message = field(default_factory=lambda: Message("assistant"))
    """A tool call that the answer did not complete is not among its `tool_calls`."""

    def to_openai(self) -> dict[str, JSON]:
        """The message in OpenAI form, ready to be appended to `messages`."""
        return message_to_openai(self.message)


def add_output(result: GenerationResult, output: EngineOutput) -> None:
    """Take in what one step added."""
    result.token_ids += output.token_ids
    if output.logprobs is not None:
        result.logprobs = (result.logprobs or []) + output.logprobs
    if output.prompt_logprobs is not None:
        result.prompt_logprobs = output.prompt_logprobs
    result.finish_reason, result.stop_reason, result.error = output.finish_reason, output.stop_reason, output.error
    result.num_prompt_tokens, result.num_cached_tokens = output.num_prompt_tokens, output.num_cached_tokens
    result.num_drafted, result.num_accepted = output.num_drafted, output.num_accepted
    result.cache_outcome = output.cache_outcome or result.cache_outcome


def visible_text(result: GenerationResult, tokenizer: Tokenizer) -> str:
    """The text of a finished result."""
    text = tokenizer.decode(result.token_ids, skip_special=True)
    stop = result.stop_reason
    if isinstance(stop, str):  # the last token completed it; it may have begun in an earlier one
        before = len(tokenizer.decode(result.token_ids[:-1], skip_special=True))
        found = text.find(stop, max(0, before - len(stop)))
        return text[:found] if found >= 0 else text
    return text


def assistant_message(result: GenerationResult, conversation: Conversation, start: StartState) -> Message:
    """The turn that a finished result holds; `start` is the state in which its prompt left the reply."""
    ended = result.finish_reason == "stop" and not isinstance(result.stop_reason, str)  # a stop string cuts, it does not end
    return parse_turn(result.text, start, conversation.tools, ended=ended)
