"""Which dialect a request is in, as far as that must be known before its body is read: for refusals."""

from __future__ import annotations

from starlette.responses import Response
from starlette.types import Scope

from openglm.server import openai_response
from openglm.server.refusal import Refusal


def write_refusal(refusal: Refusal, scope: Scope) -> Response:
    """The refusal in the words of the dialect that the request is in; OpenAI's where nothing says otherwise."""
    return openai_response.write_refusal(refusal)
