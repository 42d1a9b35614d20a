"""POST /generate, as SGLang has it."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.types import ASGIApp

from openglm.server.exchange import Exchange, GeneratingRoute
from openglm.server.service import Service
from openglm.server.sglang_request import read_generate_request
from openglm.server.sglang_response import GenerateWire
from openglm.server.turn import PreparedTurn


def generate(service: Service) -> ASGIApp:
    """POST /generate."""

    def read(body: bytes) -> Exchange:
        wanted = read_generate_request(
            body, limits=service.config.limits, defaults=service.model.defaults, parse_special=service.config.parse_special
        )

        def open_wire(turns: Sequence[PreparedTurn]) -> GenerateWire:
            return GenerateWire(wanted, turns, service.model.tokenizer)

        return Exchange(wanted.turns, open_wire, wanted.model, wanted.stream, wanted.num_choices, wanted.unknown)

    return GeneratingRoute(service, read)
