"""POST routes that need the text side of the model only, such as counting tokens: nothing is generated and the engine is not asked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, NamedTuple

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from openglm.server.http_body import read_json_body
from openglm.server.json_reply import JSONReply, encode
from openglm.server.service import LARGE_BODY, Service


class TextAnswer(NamedTuple):
    """What is answered, and the names of fields that were not read."""

    reply: dict[str, Any]
    unknown: tuple[str, ...] = ()


class TextRoute:
    """Reads a body, answers with an object. A large body is worked on outside the event loop, and so is a template that waits."""

    def __init__(self, service: Service, answer: Callable[[bytes], TextAnswer]) -> None:
        """`answer` reads a body and makes the reply; it may run in a thread. Errors are raised."""
        self._service = service
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        service = self._service
        service.refuse_if_draining()
        service.traffic.refuse_if_full()
        body = await read_json_body(Request(scope, receive), service.config.limits)
        with service.traffic.admitted():
            await service.wait_until_loaded()
            if len(body) < LARGE_BODY and service.model.renders_in_process:
                answer = self._answer(body)
            else:
                answer = await asyncio.to_thread(self._answer, body)
        service.ignored_fields.note(answer.unknown)
        await JSONReply(encode(answer.reply))(scope, receive, send)
