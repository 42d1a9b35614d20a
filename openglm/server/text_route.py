"""POST routes that need the text side of the model only, such as counting tokens: nothing is generated and the engine is not asked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from openglm.server.http_body import read_json_body
from openglm.server.json_reply import JSONReply, encode
from openglm.server.service import LARGE_BODY, Service


class TextRoute:
    """Reads a body, answers with an object. A large body is worked on outside the event loop, and so is a template that waits."""

    def __init__(self, service: Service, answer: Callable[[bytes], Any]) -> None:
        """`answer` makes the reply from a body; it may run in a thread. Errors are raised."""
        self._service = service
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        service = self._service
        service.refuse_if_draining()
        body = await read_json_body(Request(scope, receive), service.config.limits)
        with service.traffic.admitted():
            await service.wait_until_loaded()
            if len(body) < LARGE_BODY and service.model.renders_in_process:
                answer = self._answer(body)
            else:
                answer = await asyncio.to_thread(self._answer, body)
        await JSONReply(encode(answer))(scope, receive, send)
