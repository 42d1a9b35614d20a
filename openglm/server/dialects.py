"""Which dialect a request is in, as far as that must be known before its body is read: for refusals."""

from __future__ import annotations

from starlette.responses import Response
from starlette.types import Scope

from openglm.server import anthropic_response, openai_response, zai_routes
from openglm.server.refusal import Refusal


def write_refusal(refusal: Refusal, scope: Scope) -> Response:
    """The refusal in the words of the dialect that the request is in; OpenAI's where nothing says otherwise."""
    if scope["path"] in zai_routes.PATHS:
        return zai_routes.write_refusal(refusal)
    if is_anthropic(scope):
        return anthropic_response.write_refusal(refusal, scope.get("openglm.request_id", ""))
    return openai_response.write_refusal(refusal)


def is_anthropic(scope: Scope) -> bool:
    """Whether Anthropic's shape is expected: on its own paths, and on shared ones from clients that name its version."""
    path: str = scope["path"]
    return path == "/v1/messages" or path.startswith("/v1/messages/") or any(name == b"anthropic-version" for name, _ in scope["headers"])
