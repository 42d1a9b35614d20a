"""POST /v1/completions."""

from __future__ import annotations

import time
from collections.abc import Sequence

from starlette.types import ASGIApp

from openglm.server.completions_request import read_completion_request
from openglm.server.completions_response import Answer, CompletionWire
from openglm.server.exchange import Exchange, GeneratingRoute
from openglm.server.service import Service
from openglm.server.turn import PreparedTurn


def completions(service: Service) -> ASGIApp:
    """POST /v1/completions."""

    def read(body: bytes) -> Exchange:
        wanted = read_completion_request(
            body, limits=service.config.limits, defaults=service.model.defaults, parse_special=service.config.parse_special
        )

        def open_wire(turns: Sequence[PreparedTurn]) -> CompletionWire:
            answer = Answer(
                f"cmpl-{turns[0].id}",
                int(time.time()),
                service.model.name,
                num_choices=wanted.num_choices,
                echo=wanted.echo,
                logprobs=wanted.turns[0].params.logprobs is not None,
                include_usage=wanted.include_usage,
                continuous_usage=wanted.continuous_usage,
                return_token_ids=wanted.return_token_ids,
            )
            return CompletionWire(answer, turns, service.model.tokenizer)

        return Exchange(wanted.turns, open_wire, wanted.model, wanted.stream, wanted.num_choices, wanted.unknown)

    return GeneratingRoute(service, read)
