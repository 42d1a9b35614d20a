"""The OpenAI chat route and the models. No policy lives here."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from openglm.engine.request import sibling_id
from openglm.server.exchange import Exchange, GeneratingRoute, left_out
from openglm.server.json_reply import JSONReply, encode
from openglm.server.openai_request import ChatRequest, read_chat_request
from openglm.server.openai_response import Answer, ChatWire, Delivery
from openglm.server.refusal import Refusal, Refused
from openglm.server.service import Service
from openglm.server.turn import PreparedTurn


def chat_completions(service: Service) -> ASGIApp:
    """POST /v1/chat/completions."""

    def read(body: bytes) -> Exchange:
        config = service.config
        chat = read_chat_request(body, limits=config.limits, defaults=service.model.defaults, thinking=config.default_thinking)
        delivery = Delivery(include_usage=chat.include_usage, continuous_usage=chat.continuous_usage, whole_calls=chat.tool_stream is False)
        return chat_exchange(service, chat, delivery)

    return GeneratingRoute(service, read)


def chat_exchange(
    service: Service,
    chat: ChatRequest,
    delivery: Delivery,
    *,
    wire: type[ChatWire] = ChatWire,
    tells_request_id: bool = False,
) -> Exchange:
    """A chat request as an exchange. `tells_request_id`: the answer repeats the client's id, or names one."""

    def open_wire(turns: Sequence[PreparedTurn]) -> ChatWire:
        (turn,) = turns
        request_id = (chat.turn.client_id or turn.id) if tells_request_id else None
        answer = Answer(f"{_ID_PREFIX}{turn.id}", int(time.time()), service.model.name, service.config.reasoning_field, request_id)
        return wire(answer, service.model.tokenizer, delivery, num_choices=chat.num_choices, num_prompt_tokens=len(turn.prompt_ids))

    return Exchange((chat.turn,), open_wire, chat.model, chat.stream, chat.num_choices, chat.unknown, left_out("tools", chat.dropped_tools))


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
    """GET /v1/models and /v1/models/{name}, in a shape that OpenAI's and Anthropic's packages both read."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def list(self, request: Request) -> Response:
        """Every name that requests may use."""
        del request
        names = self._service.model.names
        pages = {"has_more": False, "first_id": names[0], "last_id": names[-1]}
        return JSONReply(encode({"object": "list", "data": [self._card(name) for name in names], **pages}))

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
            "type": "model",
            "display_name": name,
            "created": model.created,
            "created_at": datetime.fromtimestamp(model.created, UTC).isoformat().replace("+00:00", "Z"),
            "owned_by": "openglm",
            "root": model.name,
            "max_model_len": model.max_model_len,
            "max_input_tokens": model.max_model_len - 1,
            "max_tokens": model.max_model_len - 1,
        }


_ID_PREFIX: Final = "chatcmpl-"
