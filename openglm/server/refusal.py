"""What the server says when it does not do what was asked: one catalogue of statuses and codes, for every dialect.

Our own exceptions become a `Refusal`; a dialect writes it in its own shape. An exception that is not ours is a bug: its text
goes to the log under an id, and only the id goes to the client.
"""

from __future__ import annotations

import logging
import secrets
from dataclasses import dataclass
from typing import Final

from starlette.responses import Response

from openglm.errors import (
    ContextLengthError,
    DeadlineExceededError,
    EngineDeadError,
    EngineError,
    OpenGLMError,
    QueueFullError,
    RequestError,
)
from openglm.server.request_context import current_request

logger = logging.getLogger(__name__)

_TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    421: "invalid_request_error",
    429: "rate_limit_error",
    431: "invalid_request_error",
    500: "server_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}


@dataclass(frozen=True)
class Refusal:
    """An answer that is an error. `retry_after_s` says when the same request may work."""

    status: int
    message: str
    code: str
    param: str | None = None
    retry_after_s: float | None = None
    headers: tuple[tuple[str, str], ...] = ()
    overflow: tuple[int, int] | None = None
    """Of a prompt that is too long: its tokens and how many there may be. Some clients read them out of the message."""

    @property
    def type(self) -> str:
        """The error's class in the words of the OpenAI wire."""
        return _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")


class Refused(OpenGLMError):  # named after what happened to the request
    """Raised inside the server where a refusal is already known in full."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


def refusal_response(refusal: Refusal, body: bytes) -> Response:
    """The HTTP response of a refusal whose JSON body its dialect has written."""
    headers = dict(refusal.headers)
    if refusal.retry_after_s is not None:
        headers["retry-after"] = str(max(1, round(refusal.retry_after_s)))
    if refusal.status == 401:
        headers["www-authenticate"] = "Bearer"
    if refusal.status in (408, 413):
        headers["connection"] = "close"  # the rest of the body is not going to be read
    return Response(body, refusal.status, headers, media_type="application/json")


def refusal_of(error: BaseException) -> Refusal:
    """The refusal that an exception means to a client."""
    match error:
        case Refused():
            return error.refusal
        case ContextLengthError():
            known = error.num_tokens is not None and error.limit is not None
            overflow = (error.num_tokens or 0, error.limit or 0) if known else None
            return Refusal(400, str(error), "context_length_exceeded", error.param, overflow=overflow)
        case RequestError():
            return Refusal(400, str(error), error.code, error.param)
        case QueueFullError():
            return Refusal(503, str(error), "queue_full", retry_after_s=error.retry_after_s)
        case DeadlineExceededError():
            return Refusal(504, str(error), "deadline_exceeded")
        case EngineDeadError():
            return Refusal(503, f"the engine is not available: {error}", "engine_unavailable", retry_after_s=5.0)
        case EngineError():
            return Refusal(500, f"the engine could not finish this request: {error}", "engine_error")
        case _:
            incident = secrets.token_hex(6)
            logger.error("internal error %s", incident, exc_info=error, extra={"request_id": current_request().id})
            return Refusal(500, f"internal error; the server's log has the details under {incident}", "internal_error")
