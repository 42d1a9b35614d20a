"""OpenAI's Responses routes: make a response, read it again, cancel it while it is made, forget it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive

from openglm.errors import RequestError
from openglm.server.background_response import BackgroundResponse
from openglm.server.direct_line import BodyWriter
from openglm.server.event_stream import EventStream
from openglm.server.exchange import Exchange, GeneratingRoute, left_out
from openglm.server.json_reply import JSONReply, encode
from openglm.server.refusal import Refusal, Refused
from openglm.server.response_store import ResponseStore, StoredResponse
from openglm.server.responses_request import ResponsesRequest, read_responses_request
from openglm.server.responses_response import ResponsesWire
from openglm.server.service import Service
from openglm.server.turn import PreparedTurn
from openglm.text.messages import Message


class Responses:
    """The routes under /v1/responses."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._store = ResponseStore()
        self._running: WeakValueDictionary[str, ResponsesWire] = WeakValueDictionary()
        self._background: dict[str, BackgroundResponse] = {}
        self.create: ASGIApp = _CreateRoute(service, self._read, self._begin_in_background)
        """POST /v1/responses."""

    async def get(self, request: Request) -> ASGIApp:
        """GET /v1/responses/{id}: a stored response, or one that is being made, as far as it has come. With `stream=true` the events
        of one that was asked for as a stream in the background, behind number `starting_after`."""
        response_id = request.path_params["id"]
        stored, background = self._store.get(response_id), self._background.get(response_id)
        first = _first_event(request.query_params.get("starting_after"))
        if _wants_stream(request.query_params.get("stream")):
            if background is not None and background.events:
                return EventStream(b"", background.follow(first), keep_alive_s=self._service.config.keep_alive_s)
            if stored is not None and stored.events:
                return Response(b"".join(stored.events[first:]), media_type="text/event-stream")
            if stored is not None or background is not None:
                reason = "only a response that was asked for with background and stream can be streamed again"
                raise RequestError(reason, param="stream", code="unsupported_parameter")
        if stored is not None:
            return JSONReply(stored.body)
        running = self._running.get(response_id)
        if running is not None:
            return JSONReply(encode(running.response("in_progress")))
        raise _unknown()

    async def cancel(self, request: Request) -> Response:
        """POST /v1/responses/{id}/cancel: ends one that is being made; its own stream ends too."""
        response_id = request.path_params["id"]
        if self._store.get(response_id) is not None:
            raise Refused(Refusal(400, "this response is finished already", "response_finished", "response_id"))
        running = self._running.get(response_id)
        if running is None:
            raise _unknown()
        await self._service.abort(response_id)
        return JSONReply(encode(running.response("cancelled")))

    async def delete(self, request: Request) -> Response:
        """DELETE /v1/responses/{id}: forget a stored response."""
        response_id = request.path_params["id"]
        if not self._store.remove(response_id):
            raise _unknown()
        return JSONReply(encode({"id": response_id, "object": "response", "deleted": True}))

    def _read(self, body: bytes) -> Exchange:
        config, model = self._service.config, self._service.model
        wanted = read_responses_request(body, limits=config.limits, defaults=model.defaults, thinking=config.default_thinking, memory=self)

        def open_wire(turns: Sequence[PreparedTurn]) -> ResponsesWire:
            (turn,) = turns
            return self._wire(wanted, f"resp_{turn.id}")

        headers = left_out("tools", wanted.tools.dropped)
        return _ResponsesExchange(
            (wanted.turn,), open_wire, wanted.model, wanted.stream, unknown=wanted.unknown, headers=headers, wanted=wanted
        )

    def _wire(self, wanted: ResponsesRequest, response_id: str) -> ResponsesWire:
        def keep(response: dict[str, Any], said: Message) -> None:
            background = self._background.get(response_id)
            if background is not None:
                background.finished = (response, said)  # it is stored with its events, of which this is not yet one
            elif wanted.store:
                self._store.put(response_id, StoredResponse(encode(response), (*wanted.history, said), tuple(response["output"])))

        wire = ResponsesWire(response_id, self._service.model.name, wanted.echo, wanted.tools, on_done=keep)
        self._running[response_id] = wire
        return wire

    def _begin_in_background(self, exchange: _ResponsesExchange, turns: Sequence[PreparedTurn]) -> ASGIApp:
        wire = self._wire(exchange.wanted, f"resp_{turns[0].id}")

        def end(background: BackgroundResponse) -> None:
            del self._background[wire.id]
            response, turns = background.failure, exchange.wanted.history
            if background.finished is not None:
                response, turns = background.finished[0], (*turns, background.finished[1])
            if response is not None:
                items, events = tuple(response["output"]), tuple(background.events)
                self._store.put(wire.id, StoredResponse(encode(response), turns, items, events))

        background = BackgroundResponse(self._service, exchange, turns, wire, on_end=end)
        self._background[wire.id] = background
        if not exchange.stream:
            return JSONReply(encode(wire.response("queued")), headers=dict(exchange.headers))
        return EventStream(b"", background.follow(0), keep_alive_s=self._service.config.keep_alive_s, headers=exchange.headers)

    def recall(self, response_id: str) -> tuple[Message, ...]:
        """The turns up to and with a stored response."""
        stored = self._store.get(response_id)
        if stored is None:
            reason = "it was made with store: false, is not finished, or was forgotten; send the whole history instead"
            raise RequestError(
                f"no such previous response is known: {reason}", param="previous_response_id", code="previous_response_not_found"
            )
        return stored.turns

    def recall_item(self, item_id: str) -> dict[str, Any] | None:
        """An item of a stored response's output."""
        return self._store.item(item_id)


@dataclass(frozen=True, kw_only=True)
class _ResponsesExchange(Exchange):
    wanted: ResponsesRequest


class _CreateRoute(GeneratingRoute):
    """Answers on the connection that asks, unless the response is to be made in the background."""

    def __init__(
        self,
        service: Service,
        read: Callable[[bytes], Exchange],
        begin_in_background: Callable[[_ResponsesExchange, Sequence[PreparedTurn]], ASGIApp],
    ) -> None:
        super().__init__(service, read)
        self._begin_in_background = begin_in_background

    async def reply(self, exchange: Exchange, turns: Sequence[PreparedTurn], receive: Receive, writer: BodyWriter | None) -> ASGIApp:
        if isinstance(exchange, _ResponsesExchange) and exchange.wanted.background:
            return self._begin_in_background(exchange, turns)
        return await super().reply(exchange, turns, receive, writer)


def _wants_stream(value: str | None) -> bool:
    if value not in (None, "true", "false"):
        raise RequestError("stream must be true or false", param="stream")
    return value == "true"


def _first_event(after: str | None) -> int:
    if after is None:
        return 0
    if not (after.isascii() and after.isdigit() and len(after) < 10):
        raise RequestError("starting_after must be the number of an event", param="starting_after")
    return int(after) + 1


def _unknown() -> Refused:
    return Refused(Refusal(404, "no such response is known here; it may never have been stored, or was forgotten", "response_not_found"))
