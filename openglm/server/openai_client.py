"""A client of any OpenAI-compatible server that yields the same `TurnStep`s as a turn of our own engine.

Owns the wire from the other side: the request body, server-sent events, both spellings of the reasoning field, errors. It
relies on nothing that only our server sends; draft and cache counters stay zero where a server does not report them.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any, Final

import httpx

from openglm.errors import EngineError, OpenGLMError, RequestError
from openglm.server.turn import TurnEnd, TurnFinish, TurnStep, TurnUsage
from openglm.text.messages import Conversation, ToolCall
from openglm.text.openai_messages import message_to_openai
from openglm.text.turn_parser import ContentDelta, Event, ReasoningDelta, ToolCallArguments, ToolCallEnd, ToolCallStart

_FINISH: Final[dict[str, TurnFinish]] = {"stop": "stop", "length": "length", "tool_calls": "tool_calls", "abort": "abort"}


@dataclass(frozen=True)
class SamplingWishes:
    """What the user wants; None leaves the choice to the model's defaults."""

    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    seed: int | None = None


class OpenAIClient:
    """One server. Use as an asynchronous context manager, or call `close`."""

    def __init__(self, base_url: str, *, api_key: str | None = None, model: str | None = None) -> None:
        self._base_url = base_url.rstrip("/")
        self._model = model
        self._takes_template_kwargs = True  # until the server says otherwise
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        # An answer may take long to begin (a long prompt) but then keeps coming.
        self._http = httpx.AsyncClient(headers=headers, timeout=httpx.Timeout(600.0, connect=10.0))

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def model(self) -> str:
        """The model that is asked: the given one, or the first that the server lists."""
        if self._model is None:
            response = await self._get("/models")
            if response.status_code == 404 and not self._base_url.endswith("/v1"):  # the address alone was given
                self._base_url += "/v1"
                response = await self._get("/models")
            if response.status_code != 200:
                raise _refused(response.status_code, response.content)
            try:
                self._model = str(response.json()["data"][0]["id"])
            except (ValueError, LookupError, TypeError):
                raise EngineError(f"{self._base_url}/models lists no model; is this an OpenAI base URL (usually ending in /v1)?") from None
        return self._model

    async def _get(self, path: str) -> httpx.Response:
        try:
            return await self._http.get(self._base_url + path)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._unreachable(error) from None

    async def answer(self, conversation: Conversation, sampling: SamplingWishes) -> AsyncGenerator[TurnStep]:
        """Stream one turn. Raises `RequestError` when the server refuses it, `EngineError` when it fails."""
        body = await self._body(conversation, sampling)
        reader = _StreamReader()
        try:
            async with self._http.stream("POST", f"{self._base_url}/chat/completions", json=body) as response:
                if response.status_code != 200:
                    refusal = await response.aread()
                    if response.status_code in (400, 422) and self._takes_template_kwargs and b"chat_template_kwargs" in refusal:
                        self._takes_template_kwargs = False  # not everybody's server: ask again in OpenAI's own words
                        async with contextlib.aclosing(self.answer(conversation, sampling)) as steps:
                            async for step in steps:
                                yield step
                        return
                    raise _refused(response.status_code, refusal)
                async for line in response.aiter_lines():
                    if not line.startswith("data:"):
                        continue  # comments and blank lines between events
                    data = line[5:].strip()
                    if data == "[DONE]":
                        break
                    try:
                        events = reader.read(data)
                    except (AttributeError, TypeError, LookupError):
                        raise EngineError("the server sent an event of an unknown shape") from None
                    if events:
                        yield TurnStep(tuple(events))
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None
        yield TurnStep(tuple(reader.end_calls()), end=reader.end())

    async def _body(self, conversation: Conversation, sampling: SamplingWishes) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": await self.model(),
            "messages": [message_to_openai(message) for message in conversation.messages],
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self._takes_template_kwargs:
            body["chat_template_kwargs"] = {"enable_thinking": conversation.thinking}
        if conversation.tools:
            body["tools"] = [tool.definition for tool in conversation.tools]
        wishes = {name: value for name, value in vars(sampling).items() if value is not None}
        return body | wishes

    def _unreachable(self, error: Exception) -> EngineError:
        if isinstance(error, httpx.ConnectError):
            return EngineError(f"cannot talk to {self._base_url}: {error}; is a server running there? glm serve starts one")
        return EngineError(f"cannot talk to {self._base_url}: {error or type(error).__name__}")


class _StreamReader:
    """Turns the chunks of one answer into events."""

    def __init__(self) -> None:
        self._calls: dict[int, tuple[str, str, list[str]]] = {}  # index -> id, name, fragments
        self._finish: TurnFinish | None = None
        self._usage: dict[str, Any] = {}

    def read(self, data: str) -> list[Event]:
        try:
            chunk = json.loads(data)
        except ValueError:
            raise EngineError("the server sent an event that is not JSON") from None
        if not isinstance(chunk, dict):
            raise EngineError("the server sent an event that is no object")
        if chunk.get("error"):
            error = chunk["error"]
            raise EngineError(str(error.get("message", error) if isinstance(error, dict) else error))
        self._usage = chunk.get("usage") or self._usage
        choices = chunk.get("choices") or []
        if not choices:
            return []
        self._finish = _FINISH.get(choices[0].get("finish_reason") or "", self._finish)
        return self._delta(choices[0].get("delta") or {})

    def _delta(self, delta: dict[str, Any]) -> list[Event]:
        events: list[Event] = []
        reasoning = delta.get("reasoning_content") or delta.get("reasoning")
        if reasoning:
            events.append(ReasoningDelta(reasoning))
        if delta.get("content"):
            events.append(ContentDelta(delta["content"]))
        for piece in delta.get("tool_calls") or []:
            index, function = piece.get("index", 0), piece.get("function") or {}
            if index not in self._calls:
                name = function.get("name") or ""
                self._calls[index] = (piece.get("id") or "", name, [])
                events.append(ToolCallStart(index, name))
            if function.get("arguments"):
                self._calls[index][2].append(function["arguments"])
                events.append(ToolCallArguments(index, function["arguments"]))
        return events

    def end_calls(self) -> list[Event]:
        """The end of every call; one whose arguments are no JSON object is marked incomplete."""
        events: list[Event] = []
        for index, (call_id, name, fragments) in self._calls.items():
            try:
                arguments = json.loads("".join(fragments) or "{}")
            except ValueError:
                arguments = None
            usable = isinstance(arguments, dict) and self._finish != "length"
            call = ToolCall(name, arguments if isinstance(arguments, dict) else {}, id=call_id)
            events.append(ToolCallEnd(index, call, complete=usable))
        return events

    def end(self) -> TurnEnd:
        if self._finish is None:
            raise EngineError("the server's answer ended without a finish reason")
        prompt, completion = (self._usage.get(f"{kind}_tokens_details") or {} for kind in ("prompt", "completion"))
        usage = TurnUsage(
            prompt_tokens=self._usage.get("prompt_tokens") or 0,
            cached_tokens=prompt.get("cached_tokens") or 0,
            completion_tokens=self._usage.get("completion_tokens") or 0,
            reasoning_tokens=completion.get("reasoning_tokens") or 0,
            draft_tokens=completion.get("draft_tokens") or 0,
            accepted_draft_tokens=completion.get("accepted_draft_tokens") or 0,
        )
        return TurnEnd(self._finish, usage)


def _refused(status: int, body: bytes) -> OpenGLMError:
    try:
        error = json.loads(body)["error"]
        message = str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, LookupError, TypeError):
        message = body[:200].decode("utf-8", "replace") or "no explanation"
    text = f"the server answered {status}: {message}"
    return RequestError(text) if 400 <= status < 500 else EngineError(text)
