"""Steps of a turn become OpenAI's wire: server-sent chunks, or one chat completion.

The hot path is `ChatWire.step`: per engine step it glues pre-encoded bytes around the encoded text, so its cost hardly
depends on how much a chunk carries besides. Everything that is not a piece of text (ends, usage, errors, the whole answer of a
request without streaming) goes through `msgspec.json`.

Decisions: reasoning goes into `reasoning_content` (or where `reasoning_field` says), never into content. The first piece of a
call carries index, id, type and name; later ones index and argument text only. Log probabilities cover every generated
token, thinking and tags included, and a step without visible text hands them to the next chunk. `usage` always has both detail
objects, with the draft counters of speculative decoding as extras.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response

from openglm.config.server import ReasoningField
from openglm.engine.request import TokenLogprobs
from openglm.server.json_reply import encode
from openglm.server.refusal import Refusal, refusal_response
from openglm.server.turn import TurnEnd, TurnStep, TurnUsage, total_usage
from openglm.text.messages import Message, ToolCall
from openglm.text.openai_messages import message_to_openai
from openglm.text.schema_types import to_json
from openglm.text.tokenizer import Tokenizer
from openglm.text.turn_parser import ContentDelta, Event, ReasoningDelta, ToolCallArguments, ToolCallEnd, ToolCallStart, message_from_events

DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Answer:
    """What every piece of one answer repeats."""

    id: str
    created: int
    model: str
    reasoning_field: ReasoningField = "reasoning_content"
    request_id: str | None = None
    """The client's id, where the dialect repeats it."""

    @property
    def head(self) -> dict[str, Any]:
        """The fields that every piece has."""
        head: dict[str, Any] = {"id": self.id, "created": self.created, "model": self.model}
        return head if self.request_id is None else head | {"request_id": self.request_id}


@dataclass(frozen=True)
class Delivery:
    """How a client wants a stream."""

    include_usage: bool = False
    """One more chunk at the end, with the token counts."""
    continuous_usage: bool = False
    """Token counts so far on every chunk."""
    whole_calls: bool = False
    """A tool call as one piece, when it is complete."""
    usage_with_end: bool = False
    """The token counts on the chunk that has the finish reason (of a single choice), without being asked."""


class ChatWire:
    """Encodes one answer of one or more choices; every method returns bytes ready for the socket."""

    __slots__ = (
        *("_answer", "_bare_tail", "_delivery", "_heads", "_include_usage", "_is_plain", "_logprobs", "_num_prompt_tokens"),
        *("_num_tokens", "_openings", "_reasoning_keys", "_tail", "_tokenizer", "_usage_head", "_usages"),
    )

    keep_alive = b": keep-alive\n\n"

    def __init__(
        self, answer: Answer, tokenizer: Tokenizer, delivery: Delivery, *, num_choices: int = 1, num_prompt_tokens: int = 0
    ) -> None:
        self._answer = answer
        self._tokenizer = tokenizer
        self._include_usage = include_usage = delivery.include_usage
        self._delivery = delivery
        self._num_prompt_tokens = num_prompt_tokens
        self._num_tokens = 0
        self._logprobs: list[list[TokenLogprobs]] = [[] for _ in range(num_choices)]
        self._usages: list[TurnUsage | None] = [None] * num_choices
        usage = b',"usage":null' if include_usage else b""
        head = encode({"object": "chat.completion.chunk", **answer.head})
        self._heads = [b'data: %b,"choices":[{"index":%d,"delta":' % (head[:-1], index) for index in range(num_choices)]
        self._tail = b',"logprobs":null,"finish_reason":null}]' + usage + b"}\n\n"
        self._usage_head = b"data: " + head[:-1] + b',"choices":[],"usage":'
        self._bare_tail = b"}" + self._tail
        names = {"both": ("reasoning_content", "reasoning")}.get(answer.reasoning_field, (answer.reasoning_field,))
        self._reasoning_keys = [b'"' + name.encode() + b'":' for name in names]
        # What stands before the text in a chunk that has nothing else, where one field holds it.
        self._openings: list[dict[type[Event], bytes]] = [{ContentDelta: head + b'{"content":'} for head in self._heads]
        if len(self._reasoning_keys) == 1:
            for head, openings in zip(self._heads, self._openings, strict=True):
                openings[ReasoningDelta] = head + b"{" + self._reasoning_keys[0]
        self._is_plain = not delivery.continuous_usage

    def start(self) -> bytes:
        """The first chunk of every choice: who speaks."""
        return b"".join([self._chunk(b'{"role":"assistant","content":""}', index) for index in range(len(self._heads))])

    def step(self, step: TurnStep, index: int = 0) -> bytes:
        """The chunks of one step of a choice, with its closing chunk if it is the last, and the answer's if that was the last of all."""
        self._num_tokens += len(step.token_ids)
        if self._is_plain and len(step.events) == 1 and step.end is None and not step.logprobs and not self._logprobs[index]:
            event = step.events[0]
            opening = self._openings[index].get(type(event))
            if opening is not None:
                assert isinstance(event, (ContentDelta, ReasoningDelta))
                return opening + encode(event.text) + self._bare_tail
        self._logprobs[index] += step.logprobs
        chunks = [self._chunk(delta, index) for event in step.events if (delta := self._delta(event))]
        if step.end is not None:
            chunks.append(self._end(step.end, index))
        return b"".join(chunks)

    def error(self, refusal: Refusal) -> bytes:
        """What is left to say when the answer fails in the middle."""
        return b"data: " + encode(error_body(refusal)) + b"\n\n" + DONE

    def whole(self, answers: Sequence[Sequence[TurnStep]]) -> bytes:
        """All choices in one body."""
        return chat_completion(self._answer, answers, self._tokenizer)

    def _delta(self, event: Event) -> bytes:
        if self._delivery.whole_calls:
            match event:
                case ToolCallEnd(index, call, True):
                    function = {"name": call.name, "arguments": to_json(call.arguments)}
                    return encode({"tool_calls": [{"index": index, "id": new_call_id(), "type": "function", "function": function}]})
                case ToolCallStart() | ToolCallArguments() | ToolCallEnd():
                    return b""
        match event:
            case ContentDelta(text):
                return b'{"content":' + encode(text) + b"}"
            case ReasoningDelta(text):
                encoded = encode(text)
                return b"{" + b",".join([key + encoded for key in self._reasoning_keys]) + b"}"
            case ToolCallArguments(index, fragment):
                return b'{"tool_calls":[{"index":%d,"function":{"arguments":%b}}]}' % (index, encode(fragment))
            case ToolCallStart(index, name):
                opened = {"index": index, "id": new_call_id(), "type": "function", "function": {"name": name, "arguments": ""}}
                return encode({"tool_calls": [opened]})
            case ToolCallEnd():
                return b""  # the wire has no sign for it; finish_reason says that calls came

    def _chunk(self, delta: bytes, index: int) -> bytes:
        tail = self._tail if not self._delivery.continuous_usage else self._tail_with_usage()
        if self._logprobs[index]:
            tail = tail.replace(b"null", encode(self._take_logprobs(index)), 1)
        return self._heads[index] + delta + tail

    def _tail_with_usage(self) -> bytes:
        prompt, completion = self._num_prompt_tokens, self._num_tokens
        usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
        return b',"logprobs":null,"finish_reason":null}],"usage":' + encode(usage) + b"}\n\n"

    def _end(self, end: TurnEnd, index: int) -> bytes:
        logprobs = encode(self._take_logprobs(index)) if self._logprobs[index] else b"null"
        usage = b',"usage":null' if self._include_usage else b""
        if self._delivery.usage_with_end and len(self._usages) == 1:
            usage = b',"usage":' + encode(usage_object(end.usage))
        last = self._heads[index] + b'{},"logprobs":%b,"finish_reason":%b}]%b}\n\n' % (logprobs, encode(end.finish_reason), usage)
        self._usages[index] = end.usage
        usages = [each for each in self._usages if each is not None]
        if len(usages) < len(self._usages):
            return last
        if self._include_usage:
            last += self._usage_head + encode(usage_object(total_usage(usages))) + b"}\n\n"
        return last + DONE

    def _take_logprobs(self, index: int) -> dict[str, Any]:
        taken, self._logprobs[index] = self._logprobs[index], []
        return logprobs_object(taken, self._tokenizer)


def chat_completion(answer: Answer, choices: Iterable[Sequence[TurnStep]], tokenizer: Tokenizer) -> bytes:
    """The whole answer of a request without streaming, from the steps of each choice, whose last must have an end."""
    made: list[dict[str, Any]] = []
    usages: list[TurnUsage] = []
    for index, steps in enumerate(choices):
        end = steps[-1].end
        assert end is not None
        usages.append(end.usage)
        logprobs = [entry for step in steps for entry in step.logprobs]
        message = message_from_events([event for step in steps for event in step.events])
        made.append(
            {
                "index": index,
                "message": _message_object(message, answer.reasoning_field),
                "logprobs": logprobs_object(logprobs, tokenizer) if logprobs else None,
                "finish_reason": end.finish_reason,
            }
        )
    return encode(
        {
            "object": "chat.completion",
            **answer.head,
            "choices": made,
            "usage": usage_object(total_usage(usages)),
        }
    )


def _message_object(message: Message, reasoning_field: ReasoningField) -> dict[str, Any]:
    calls = tuple(ToolCall(call.name, call.arguments, id=new_call_id()) for call in message.tool_calls)
    wire = message_to_openai(Message("assistant", message.content, tool_calls=calls))
    names = ("reasoning_content", "reasoning") if reasoning_field == "both" else (reasoning_field,)
    # Present even when null, so that reading the attribute does not raise in a client that never asked for thinking.
    return wire | dict.fromkeys(names, message.reasoning)


def usage_object(usage: TurnUsage) -> dict[str, Any]:
    """`usage` in OpenAI's form."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "cache_read_input_tokens": usage.cached_tokens,  # where some OpenAI-compatible clients look for it
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning_tokens,
            "draft_tokens": usage.draft_tokens,
            "accepted_draft_tokens": usage.accepted_draft_tokens,
        },
    }


def logprobs_object(entries: list[TokenLogprobs], tokenizer: Tokenizer) -> dict[str, Any]:
    """`logprobs` in OpenAI's form; a token may be part of a character, so `bytes` is the truth."""

    def entry(token: int, logprob: float) -> dict[str, Any]:
        raw = tokenizer.token_bytes(token)
        return {"token": raw.decode("utf-8", "replace"), "logprob": max(logprob, LOWEST_LOGPROB), "bytes": list(raw)}

    return {
        "content": [{**entry(e.token, e.logprob), "top_logprobs": [entry(token, logprob) for token, logprob in e.top]} for e in entries],
        "refusal": None,
    }


def write_refusal(refusal: Refusal) -> Response:
    """A refusal on the OpenAI wire."""
    return refusal_response(refusal, encode(error_body(refusal)))


def error_body(refusal: Refusal) -> dict[str, Any]:
    """OpenAI's error object."""
    return {"error": {"message": refusal.message, "type": refusal.type, "param": refusal.param, "code": refusal.code}}


def new_call_id() -> str:
    """An id for a call; unique over all conversations, since clients keep them in history."""
    return f"call_{secrets.token_hex(12)}"


LOWEST_LOGPROB = -9999.0  # JSON has no minus infinity; OpenAI uses the same stand-in
