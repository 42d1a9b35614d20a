"""The OpenAI routes: decode, run one turn, encode. No policy lives here."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator
from typing import Any, Final

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from openglm.engine.request import sibling_id
from openglm.server.event_stream import ClientGone, EventStream, interleave, unless_client_leaves
from openglm.server.http_body import read_json_body
from openglm.server.openai_request import ChatRequest, read_chat_request
from openglm.server.openai_response import Answer, ChatStream, chat_completion, encode, error_body
from openglm.server.refusal import Refusal, Refused, refusal_of
from openglm.server.service import LARGE_BODY, Service
from openglm.server.turn import PreparedTurn, TurnStep, choices

STATUS_WAIT_S = 1.0
"""How long a stream waits for its first step before it commits to status 200: most failures are known by then."""


class JSONReply(Response):
    """A body that is JSON already."""

    media_type = "application/json"


def write_refusal(refusal: Refusal) -> Response:
    """A refusal on the OpenAI wire."""
    headers = dict(refusal.headers)
    if refusal.retry_after_s is not None:
        headers["retry-after"] = str(max(1, round(refusal.retry_after_s)))
    if refusal.status == 401:
        headers["www-authenticate"] = "Bearer"
    if refusal.status in (408, 413):
        headers["connection"] = "close"  # the rest of the body is not going to be read
    return JSONReply(encode(error_body(refusal)), refusal.status, headers)


class ChatCompletions:
    """POST /v1/chat/completions, as an ASGI application: an answer may outlive the handler that started it."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        service = self._service
        service.refuse_if_draining()
        body = await read_json_body(Request(scope, receive), service.config.limits)
        with service.traffic.admitted():
            chat = await self._read(body)
            service.check_model(chat.model)
            try:
                turn = await unless_client_leaves(self._prepare(chat, len(body)), receive)
                reply = await (self._stream if chat.stream else self._whole)(chat, turn, receive)
            except ClientGone:
                raise ClientDisconnect from None
            await reply(scope, receive, send)

    async def _read(self, body: bytes) -> ChatRequest:
        config, defaults = self._service.config, self._service.model.defaults

        def read() -> ChatRequest:
            return read_chat_request(body, limits=config.limits, defaults=defaults, thinking=config.default_thinking)

        return read() if len(body) < LARGE_BODY else await asyncio.to_thread(read)

    async def _prepare(self, chat: ChatRequest, size: int) -> PreparedTurn:
        await self._service.wait_until_loaded()
        return await self._service.prepare(chat.turn, size=size)

    def _answer(self, turn: PreparedTurn) -> Answer:
        return Answer(f"{_ID_PREFIX}{turn.id}", int(time.time()), self._service.model.name, self._service.config.reasoning_field)

    async def _whole(self, chat: ChatRequest, turn: PreparedTurn, receive: Receive) -> Response:
        async def collect() -> list[list[TurnStep]]:
            collected: list[list[TurnStep]] = [[] for _ in range(chat.num_choices)]
            async with contextlib.aclosing(self._run(chat, turn)) as steps:
                async for index, step in steps:
                    collected[index].append(step)
            return collected

        collected = await unless_client_leaves(collect(), receive)
        return JSONReply(chat_completion(self._answer(turn), collected, self._service.model.tokenizer))

    def _run(self, chat: ChatRequest, turn: PreparedTurn) -> AsyncGenerator[tuple[int, TurnStep]]:
        """Every choice's steps, each with the number of its choice."""
        return interleave([self._service.run(choice) for choice in choices(turn, chat.num_choices)])

    async def _stream(self, chat: ChatRequest, turn: PreparedTurn, receive: Receive) -> EventStream:
        wire = ChatStream(self._answer(turn), self._service.model.tokenizer, include_usage=chat.include_usage, num_choices=chat.num_choices)
        steps = self._run(chat, turn)
        first = asyncio.ensure_future(anext(steps))
        try:
            await unless_client_leaves(asyncio.wait((first,), timeout=STATUS_WAIT_S), receive)
            if first.done():
                first.result()  # raises what the turn failed with, while there still is a status to say it with
        except BaseException:
            first.cancel()
            await asyncio.wait((first,))
            await steps.aclose()
            raise
        chunks = _chunks(wire, first, steps)
        return EventStream(wire.start(), chunks, keep_alive_s=self._service.config.keep_alive_s)


async def _chunks(
    wire: ChatStream, first: asyncio.Future[tuple[int, TurnStep]], steps: AsyncGenerator[tuple[int, TurnStep]]
) -> AsyncGenerator[bytes]:
    """The wire form of a running turn. A failure in the middle becomes an error event, and the stream ends properly."""
    try:
        index, step = await first
        yield wire.step(step, index)
        async for index, step in steps:
            yield wire.step(step, index)
    except Exception as error:
        yield wire.error(refusal_of(error))
    finally:
        if not first.done():
            first.cancel()
            await asyncio.wait((first,))
        await steps.aclose()


class StopThinking:
    """POST /v1/chat/completions/{id}/stop_thinking: an answer that is being streamed closes its reasoning and goes on to its content."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def stop(self, request: Request) -> Response:
        """202, or 404 where no such answer is being made. `id` is the one that every chunk of the answer carries; all its choices stop."""
        turn = request.path_params["id"].removeprefix(_ID_PREFIX)
        ids = [sibling_id(turn, index) for index in range(self._service.config.limits.choices)]
        if not any([await self._service.engine.stop_thinking(each) for each in ids]):
            raise Refused(Refusal(404, "no answer with this id is being generated", "answer_not_found", "id"))
        return JSONReply(encode({"id": f"{_ID_PREFIX}{turn}", "object": "chat.completion.stop_thinking"}), 202)


class Models:
    """GET /v1/models and /v1/models/{name}."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def list(self, request: Request) -> Response:
        """Every name that requests may use."""
        del request
        return JSONReply(encode({"object": "list", "data": [self._card(name) for name in self._service.model.names]}))

    async def one(self, request: Request) -> Response:
        """One of them."""
        name = request.path_params["name"]
        self._service.check_model(name)
        return JSONReply(encode(self._card(name)))

    def _card(self, name: str) -> dict[str, Any]:
        model = self._service.model
        return {
            "id": name,
            "object": "model",
            "created": model.created,
            "owned_by": "openglm",
            "root": model.name,
            "max_model_len": model.max_model_len,
        }


_ID_PREFIX: Final = "chatcmpl-"
