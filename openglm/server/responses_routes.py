"""OpenAI's Responses routes: make a response, read it again, cancel it while it is made, forget it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakValueDictionary

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from openglm.errors import RequestError
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
        self.create: ASGIApp = GeneratingRoute(service, self._read)
        """POST /v1/responses."""

    async def get(self, request: Request) -> Response:
        """GET /v1/responses/{id}: a stored response, or one that is being made, as far as it has come."""
        response_id = request.path_params["id"]
        if request.query_params.get("stream") == "true":
            raise RequestError("a response can be streamed only while it is asked for", param="stream", code="unsupported_parameter")
        stored = self._store.get(response_id)
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
        return Exchange((wanted.turn,), open_wire, wanted.model, wanted.stream, unknown=wanted.unknown, headers=headers)

    def _wire(self, wanted: ResponsesRequest, response_id: str) -> ResponsesWire:
        def keep(response: dict[str, Any], said: Message) -> None:
            self._store.put(response_id, StoredResponse(encode(response), (*wanted.history, said), tuple(response["output"])))

        on_done = keep if wanted.store else None
        wire = ResponsesWire(response_id, self._service.model.name, wanted.echo, wanted.tools, on_done=on_done)
        self._running[response_id] = wire
        return wire

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


def _unknown() -> Refused:
    return Refused(Refusal(404, "no such response is known here; it may never have been stored, or was forgotten", "response_not_found"))
