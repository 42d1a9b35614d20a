"""Steps of a turn become Anthropic's wire: named events, or one message.

Blocks follow one another, never side by side: a piece of another kind closes the open block. A thinking block ends with a signature,
which clients carry back and some require; ours is a digest of the text and is not checked, since whoever sends the history may change
all of it anyway. `input_tokens` leaves out what the cache held, so the counts in `message_delta`, which replace those of
`message_start`, are the true ones: what was cached is known only when the prompt is done.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from starlette.responses import Response

from openglm.server.json_reply import encode
from openglm.server.refusal import Refusal, refusal_response
from openglm.server.turn import TurnEnd, TurnStep, TurnUsage
from openglm.text.turn_parser import ContentDelta, Event, ReasoningDelta, ToolCallArguments, ToolCallEnd, ToolCallStart, message_from_events

_PING: Final = b'event: ping\ndata: {"type":"ping"}\n\n'
_ERROR_TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


@dataclass(frozen=True)
class Answer:
    """What is known of an answer before it is generated."""

    id: str
    model: str
    num_prompt_tokens: int
    stop: tuple[str, ...] = ()
    fills_context: bool = False
    """Whether the token limit that ends it is that of the context, not the client's."""


class MessagesWire:
    """Encodes one answer; every method returns bytes ready for the socket."""

    keep_alive = _PING

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._index = -1
        self._open: str | None = None
        self._digest = hashlib.sha256()

    def start(self) -> bytes:
        """Who answers, and what the prompt costs."""
        usage = _usage(TurnUsage(self._answer.num_prompt_tokens, 0, 0, 0, 0, 0))
        message = _message(self._answer, [], None, None, usage)
        return _event("message_start", {"message": message}) + _PING

    def step(self, step: TurnStep, index: int = 0) -> bytes:
        """The events of one step, with the closing ones if it is the last."""
        del index  # there is one answer
        pieces = [self._piece(event) for event in step.events]
        if step.end is not None:
            pieces.append(self._close())
            reason, sequence = _stop_reason(step.end, self._answer)
            delta = {"stop_reason": reason, "stop_sequence": sequence}
            pieces.append(_event("message_delta", {"delta": delta, "usage": _usage(step.end.usage)}))
            pieces.append(_event("message_stop", {}))
        return b"".join(pieces)

    def error(self, refusal: Refusal) -> bytes:
        """What is left to say when the answer fails in the middle."""
        return _event("error", {"error": _error(refusal)})

    def whole(self, answers: Sequence[Sequence[TurnStep]]) -> bytes:
        """The whole message."""
        (steps,) = answers
        end = steps[-1].end
        assert end is not None
        said = message_from_events([event for step in steps for event in step.events])
        blocks: list[dict[str, Any]] = []
        if said.reasoning:
            digest = hashlib.sha256(said.reasoning.encode())
            blocks.append({"type": "thinking", "thinking": said.reasoning, "signature": _signature(digest)})
        if said.content:
            blocks.append({"type": "text", "text": said.content})
        blocks += [{"type": "tool_use", "id": _new_call_id(), "name": call.name, "input": call.arguments} for call in said.tool_calls]
        return encode(_message(self._answer, blocks, *_stop_reason(end, self._answer), _usage(end.usage)))

    def _piece(self, event: Event) -> bytes:
        match event:
            case ReasoningDelta(text):
                opened = self._ensure_open("thinking", {"type": "thinking", "thinking": "", "signature": ""})
                self._digest.update(text.encode())
                return opened + self._delta({"type": "thinking_delta", "thinking": text})
            case ContentDelta(text):
                return self._ensure_open("text", {"type": "text", "text": ""}) + self._delta({"type": "text_delta", "text": text})
            case ToolCallStart(_, name):
                return self._close() + self._begin("tool_use", {"type": "tool_use", "id": _new_call_id(), "name": name, "input": {}})
            case ToolCallArguments(_, fragment):
                return self._delta({"type": "input_json_delta", "partial_json": fragment})
            case ToolCallEnd():
                return self._close()

    def _ensure_open(self, kind: str, block: dict[str, Any]) -> bytes:
        return b"" if self._open == kind else self._close() + self._begin(kind, block)

    def _begin(self, kind: str, block: dict[str, Any]) -> bytes:
        self._index += 1
        self._open = kind
        return _event("content_block_start", {"index": self._index, "content_block": block})

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return _event("content_block_delta", {"index": self._index, "delta": delta})

    def _close(self) -> bytes:
        if self._open is None:
            return b""
        signed = b""
        if self._open == "thinking":
            signed = self._delta({"type": "signature_delta", "signature": _signature(self._digest)})
            self._digest = hashlib.sha256()
        self._open = None
        return signed + _event("content_block_stop", {"index": self._index})


def write_refusal(refusal: Refusal, request_id: str) -> Response:
    """A refusal on Anthropic's wire."""
    return refusal_response(refusal, encode({"type": "error", "error": _error(refusal), "request_id": request_id}))


def _error(refusal: Refusal) -> dict[str, Any]:
    message = refusal.message
    if refusal.overflow is not None:
        # Word for word: Claude Code reads both numbers out of it and shortens the conversation.
        message = "prompt is too long: {} tokens > {} maximum".format(*refusal.overflow)
    default = "invalid_request_error" if refusal.status < 500 else "api_error"
    return {"type": _ERROR_TYPES.get(refusal.status, default), "message": message}


def _event(name: str, fields: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), encode({"type": name, **fields}))


def _message(
    answer: Answer, content: list[dict[str, Any]], stop_reason: str | None, stop_sequence: str | None, usage: dict[str, Any]
) -> dict[str, Any]:
    return {
        "id": answer.id,
        "type": "message",
        "role": "assistant",
        "model": answer.model,
        "content": content,
        "stop_reason": stop_reason,
        "stop_sequence": stop_sequence,
        "usage": usage,
    }


def _stop_reason(end: TurnEnd, answer: Answer) -> tuple[str, str | None]:
    if end.finish_reason == "tool_calls":
        return "tool_use", None
    if end.finish_reason == "length":
        return ("model_context_window_exceeded" if answer.fills_context else "max_tokens"), None
    if isinstance(end.stop, str) and end.stop in answer.stop:
        return "stop_sequence", end.stop
    return "end_turn", None


def _usage(usage: TurnUsage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"thinking_tokens": usage.reasoning_tokens},
    }


def _signature(digest: hashlib._Hash) -> str:
    return base64.b64encode(digest.digest()).decode()


def _new_call_id() -> str:
    return f"toolu_{secrets.token_hex(12)}"
