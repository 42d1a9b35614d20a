"""Steps of a turn become the wire of OpenAI's Responses API: numbered events, or one response object.

The turn is told as items: reasoning, a message, function calls. In a stream each item is announced, filled and closed before the next
begins, and the last event carries the whole response. A call that the reply was cut in is announced but never closed, and is not
part of the response: clients run a call when its item is done.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any

from openglm.server.json_reply import encode
from openglm.server.refusal import Refusal
from openglm.server.turn import TurnEnd, TurnStep, TurnUsage
from openglm.text.messages import Message
from openglm.text.responses_items import OfferedTools
from openglm.text.turn_parser import ContentDelta, Event, ReasoningDelta, ToolCallArguments, ToolCallEnd, ToolCallStart, message_from_events

OnDone = Callable[[dict[str, Any], Message], None]
"""Called with the finished response object and the model's turn."""


class ResponsesWire:
    """Encodes one response; every method returns bytes ready for the socket."""

    keep_alive = b": keep-alive\n\n"

    def __init__(self, id: str, model: str, echo: dict[str, Any], tools: OfferedTools, *, on_done: OnDone | None = None) -> None:
        """`echo` are the fields of the request that the response repeats."""
        self.id = id
        self._head: dict[str, Any] = {"id": id, "object": "response", "created_at": int(time.time()), "model": model, **echo}
        self._tools = tools
        self._on_done = on_done
        self._events: list[Event] = []
        self._output: list[dict[str, Any]] = []
        self._item: _Item | None = None
        self._num_items = 0
        self._num_events = 0
        self._closed: dict[str, Any] = {}

    def start(self) -> bytes:
        """The response that is about to be made."""
        response = self.response("in_progress")
        return self._event("response.created", response=response) + self._event("response.in_progress", response=response)

    def step(self, step: TurnStep, index: int = 0) -> bytes:
        """The events of one step, with the closing ones if it is the last."""
        del index  # there is one answer
        self._events += step.events
        pieces = [self._piece(event) for event in step.events]
        if step.end is not None:
            pieces.append(self._close())
            name, response = self._finish(step.end)
            pieces.append(self._event(name, response=response))
        return b"".join(pieces)

    def error(self, refusal: Refusal) -> bytes:
        """What is left to say when the response fails in the middle."""
        return self._event("response.failed", response=self.failed(refusal))

    def failed(self, refusal: Refusal) -> dict[str, Any]:
        """The response object of one that cannot be finished."""
        return self.response("failed", error={"code": "server_error", "message": refusal.message})

    def whole(self, answers: Sequence[Sequence[TurnStep]]) -> bytes:
        """The whole response object."""
        (steps,) = answers
        for step in steps:
            self.step(step)
        end = steps[-1].end
        assert end is not None
        return encode(self._closed)

    def response(
        self,
        status: str,
        *,
        usage: TurnUsage | None = None,
        error: dict[str, Any] | None = None,
        incomplete: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The response object as far as it has come."""
        return {
            **self._head,
            "status": status,
            "output": list(self._output),
            "error": error,
            "incomplete_details": incomplete,
            "usage": None if usage is None else _usage(usage),
            "completed_at": int(time.time()) if status == "completed" else None,
        }

    def _finish(self, end: TurnEnd) -> tuple[str, dict[str, Any]]:
        match end.finish_reason:
            case "length":
                details = {"reason": "max_output_tokens"}
                name, response = "response.incomplete", self.response("incomplete", usage=end.usage, incomplete=details)
            case "abort":
                name, response = "response.failed", self.response("cancelled", usage=end.usage)
            case _:
                name, response = "response.completed", self.response("completed", usage=end.usage)
        self._closed = response
        if self._on_done is not None:
            self._on_done(response, message_from_events(self._events))
        return name, response

    def _piece(self, event: Event) -> bytes:
        match event:
            case ReasoningDelta(text):
                return self._ensure_open(_ReasoningItem) + self._delta(text)
            case ContentDelta(text):
                return self._ensure_open(_MessageItem) + self._delta(text)
            case ToolCallStart(_, name):
                namespace, plain = self._tools.split_name(name)
                return self._close() + self._open(_CallItem(plain, namespace))
            case ToolCallArguments(_, fragment):
                return self._delta(fragment)
            case ToolCallEnd(_, _, True):
                return self._close()
            case ToolCallEnd():
                self._item = None
                return b""

    def _ensure_open(self, kind: type[_ReasoningItem | _MessageItem]) -> bytes:
        return b"" if isinstance(self._item, kind) else self._close() + self._open(kind())

    def _open(self, item: _Item) -> bytes:
        self._item = item
        added = self._event("response.output_item.added", output_index=self._num_items, item=item.object("in_progress"))
        return added + self._item_events(item.opening())

    def _delta(self, text: str) -> bytes:
        item = self._item
        if item is None:
            return b""
        item.text.append(text)
        return self._item_events([item.delta(text)])

    def _close(self) -> bytes:
        item, self._item = self._item, None
        if item is None:
            return b""
        done = item.object("completed")
        self._output.append(done)
        closed = self._item_events(item.closing(), item) + self._event("response.output_item.done", output_index=self._num_items, item=done)
        self._num_items += 1
        return closed

    def _item_events(self, events: Sequence[tuple[str, dict[str, Any]]], item: _Item | None = None) -> bytes:
        item = item or self._item
        assert item is not None
        return b"".join(
            [self._event(f"response.{name}", item_id=item.id, output_index=self._num_items, **fields) for name, fields in events]
        )

    def _event(self, kind: str, /, **fields: Any) -> bytes:
        event = {"type": kind, "sequence_number": self._num_events, **fields}
        self._num_events += 1
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), encode(event))


class _Item:
    """One item of the output while it is filled. `opening`, `delta` and `closing` are its events without what all have."""

    prefix = ""

    def __init__(self) -> None:
        self.id = f"{self.prefix}_{secrets.token_hex(12)}"
        self.text: list[str] = []

    def object(self, status: str) -> dict[str, Any]:
        """The item as it stands; the text is there when it is completed."""
        raise NotImplementedError

    def opening(self) -> list[tuple[str, dict[str, Any]]]:
        """What follows the announcement."""
        return []

    def delta(self, text: str) -> tuple[str, dict[str, Any]]:
        """A piece of text."""
        raise NotImplementedError

    def closing(self) -> list[tuple[str, dict[str, Any]]]:
        """What comes before the item is done."""
        raise NotImplementedError


class _PartItem(_Item):
    """An item whose text stands in one content part."""

    kind = ""

    def part(self, text: str) -> dict[str, Any]:
        """The content part with this text."""
        raise NotImplementedError

    def extra(self) -> dict[str, Any]:
        """What the events about its text have besides."""
        return {}

    def opening(self) -> list[tuple[str, dict[str, Any]]]:
        """The empty part."""
        return [("content_part.added", {"content_index": 0, "part": self.part("")})]

    def delta(self, text: str) -> tuple[str, dict[str, Any]]:
        """A piece of text."""
        return f"{self.kind}.delta", {"content_index": 0, "delta": text, **self.extra()}

    def closing(self) -> list[tuple[str, dict[str, Any]]]:
        """The whole text, then the whole part."""
        text = "".join(self.text)
        return [
            (f"{self.kind}.done", {"content_index": 0, "text": text, **self.extra()}),
            ("content_part.done", {"content_index": 0, "part": self.part(text)}),
        ]


class _ReasoningItem(_PartItem):
    prefix, kind = "rs", "reasoning_text"

    def part(self, text: str) -> dict[str, Any]:
        return {"type": "reasoning_text", "text": text}

    def object(self, status: str) -> dict[str, Any]:
        content = [self.part("".join(self.text))] if status == "completed" else []
        return {"id": self.id, "type": "reasoning", "summary": [], "content": content, "encrypted_content": None, "status": status}


class _MessageItem(_PartItem):
    prefix, kind = "msg", "output_text"

    def part(self, text: str) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    def extra(self) -> dict[str, Any]:
        return {"logprobs": []}

    def object(self, status: str) -> dict[str, Any]:
        content = [self.part("".join(self.text))] if status == "completed" else []
        return {"id": self.id, "type": "message", "role": "assistant", "status": status, "content": content}


class _CallItem(_Item):
    prefix = "fc"

    def __init__(self, name: str, namespace: str | None) -> None:
        super().__init__()
        self._name = name
        self._namespace = namespace
        self._call_id = f"call_{secrets.token_hex(12)}"

    def object(self, status: str) -> dict[str, Any]:
        item = {
            "id": self.id,
            "type": "function_call",
            "call_id": self._call_id,
            "name": self._name,
            "arguments": "".join(self.text),
            "status": status,
        }
        return item if self._namespace is None else item | {"namespace": self._namespace}

    def delta(self, text: str) -> tuple[str, dict[str, Any]]:
        return "function_call_arguments.delta", {"delta": text}

    def closing(self) -> list[tuple[str, dict[str, Any]]]:
        return [("function_call_arguments.done", {"name": self._name, "arguments": "".join(self.text)})]


def _usage(usage: TurnUsage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
