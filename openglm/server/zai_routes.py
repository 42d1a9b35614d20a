"""Z.ai's dialect of chat completions, on the paths where its package looks for it.

It differs from OpenAI's in little: a call comes as one piece unless `tool_stream` asks for pieces, token counts come with the last
chunk without being asked, answers carry a `request_id`, and errors have numbers for codes. What its requests have beyond OpenAI's
(`thinking`, `do_sample`, hosted tools, ...) is understood on OpenAI's route too, since users point their clients from one to the other.
"""

from __future__ import annotations

from typing import Any, Final

from starlette.responses import Response
from starlette.types import ASGIApp

from openglm.server.exchange import Exchange, GeneratingRoute
from openglm.server.json_reply import encode
from openglm.server.openai_request import read_chat_request
from openglm.server.openai_response import DONE, ChatWire, Delivery
from openglm.server.openai_routes import chat_exchange
from openglm.server.refusal import Refusal, refusal_response
from openglm.server.service import Service

PATHS: Final = ("/api/paas/v4/chat/completions", "/api/coding/paas/v4/chat/completions")

# https://docs.z.ai/api-reference/api-code
_CODES: Final = {
    "invalid_api_key": "1000",
    "missing_field": "1213",
    "model_not_found": "1211",
    "context_length_exceeded": "1261",
    "queue_full": "1302",
}
_CODES_BY_STATUS: Final = {400: "1214", 401: "1000", 403: "1220", 404: "1212", 405: "1212", 429: "1302", 503: "1305"}


def chat_completions(service: Service) -> ASGIApp:
    """POST /api/paas/v4/chat/completions."""

    def read(body: bytes) -> Exchange:
        config = service.config
        chat = read_chat_request(body, limits=config.limits, defaults=service.model.defaults, thinking=config.default_thinking)
        delivery = Delivery(usage_with_end=True, whole_calls=not chat.tool_stream)
        return chat_exchange(service, chat, delivery, wire=_ZaiWire, tells_request_id=True)

    return GeneratingRoute(service, read)


class _ZaiWire(ChatWire):
    """OpenAI's chunks with Z.ai's errors."""

    def error(self, refusal: Refusal) -> bytes:
        return b"data: " + encode(_error_body(refusal)) + b"\n\n" + DONE


def write_refusal(refusal: Refusal) -> Response:
    """A refusal on Z.ai's wire."""
    return refusal_response(refusal, encode(_error_body(refusal)))


def _error_body(refusal: Refusal) -> dict[str, Any]:
    code = _CODES.get(refusal.code) or _CODES_BY_STATUS.get(refusal.status, "500")
    return {"error": {"code": code, "message": refusal.message}}
