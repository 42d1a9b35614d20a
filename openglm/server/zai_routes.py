"""Z.ai's dialect of chat completions, on the paths where its package looks for it.

It differs from OpenAI's in little: hosted tools stand among the functions (left out here), a call comes as one piece unless
`tool_stream` asks for pieces, token counts come with the last chunk without being asked, answers carry a `request_id`, and errors
have numbers for codes. Its request fields (`thinking`, `do_sample`, ...) are understood on OpenAI's route too.
"""

from __future__ import annotations

from typing import Any, Final

from starlette.responses import Response
from starlette.types import ASGIApp

from openglm.server.exchange import Exchange, GeneratingRoute, left_out
from openglm.server.json_reply import encode
from openglm.server.openai_request import chat_request
from openglm.server.openai_response import DONE, ChatWire, Delivery
from openglm.server.openai_routes import chat_exchange
from openglm.server.refusal import Refusal, refusal_response
from openglm.server.service import Service
from openglm.server.strict_json import decode_json

PATHS: Final = ("/api/paas/v4/chat/completions", "/api/coding/paas/v4/chat/completions")

_HOSTED_TOOLS: Final = ("web_search", "retrieval", "mcp")
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
        value, dropped = _without_hosted_tools(decode_json(body, max_depth=config.limits.json_depth))
        chat = chat_request(value, limits=config.limits, defaults=service.model.defaults, thinking=config.default_thinking)
        delivery = Delivery(usage_with_end=True, whole_calls=not chat.tool_stream)
        return chat_exchange(service, chat, delivery, wire=_ZaiWire, headers=left_out("tools", dropped), tells_request_id=True)

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


def _without_hosted_tools(value: Any) -> tuple[Any, tuple[str, ...]]:
    """The body without tools that only Z.ai's own servers can run, and the types of those."""
    tools = value.get("tools") if isinstance(value, dict) else None
    if not isinstance(tools, list):
        return value, ()
    hosted = [tool["type"] for tool in tools if isinstance(tool, dict) and tool.get("type") in _HOSTED_TOOLS]
    kept = [tool for tool in tools if not (isinstance(tool, dict) and tool.get("type") in _HOSTED_TOOLS)]
    return value | {"tools": kept or None}, tuple(hosted)
