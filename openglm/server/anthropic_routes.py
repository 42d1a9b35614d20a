"""Anthropic's routes: messages, and counting the tokens of a prompt."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.types import ASGIApp

from openglm.server.anthropic_request import read_count_request, read_messages_request
from openglm.server.anthropic_response import Answer, MessagesWire
from openglm.server.exchange import Exchange, GeneratingRoute, left_out
from openglm.server.service import Service
from openglm.server.text_route import TextAnswer, TextRoute
from openglm.server.turn import PreparedTurn


def messages(service: Service) -> ASGIApp:
    """POST /v1/messages."""

    def read(body: bytes) -> Exchange:
        wanted = read_messages_request(body, limits=service.config.limits, defaults=service.model.defaults)

        def open_wire(turns: Sequence[PreparedTurn]) -> MessagesWire:
            (turn,) = turns
            clamped = turn.params.max_tokens != turn.request.params.max_tokens
            answer = Answer(f"msg_{turn.id}", service.model.name, len(turn.prompt_ids), turn.request.stop, fills_context=clamped)
            return MessagesWire(answer)

        return Exchange(
            (wanted.turn,),
            open_wire,
            wanted.model,
            wanted.stream,
            unknown=wanted.unknown,
            headers=left_out("tools", wanted.dropped_tools),
        )

    return GeneratingRoute(service, read)


def count_tokens(service: Service) -> ASGIApp:
    """POST /v1/messages/count_tokens. A prompt longer than the context is counted too: its length is what the client wants to know."""

    def answer(body: bytes) -> TextAnswer:
        wanted = read_count_request(body, limits=service.config.limits)
        service.check_model(wanted.model)
        return TextAnswer({"input_tokens": len(service.model.prompt(wanted.conversation)[0])}, wanted.unknown)

    return TextRoute(service, answer)
