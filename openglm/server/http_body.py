"""Reading a request body within bounds: size, time and media type are settled before a byte is parsed.

A declared length over the limit is refused before reading; an undeclared one as soon as the count passes the limit, so a
sender can make the server hold at most one chunk more than the limit.
"""

from __future__ import annotations

import asyncio

from starlette.requests import Request

from openglm.config.server import RequestLimits
from openglm.server.deadline import Deadline
from openglm.server.refusal import Refusal, Refused


async def read_json_body(request: Request, limits: RequestLimits) -> bytes:
    """The raw body of a JSON request. Raises `Refused` (408, 413, 415), or starlette's `ClientDisconnect` when the sender goes away."""
    # Requiring the media type makes a browser ask first (CORS preflight), so that no web page can post here unseen.
    media_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if media_type != "application/json":
        raise Refused(Refusal(415, "send the header Content-Type: application/json", "unsupported_media_type"))
    # What a compressed body unfolds to is known only when it is too late.
    if request.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        raise Refused(Refusal(415, "send the body as it is, without Content-Encoding", "unsupported_encoding"))
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and (len(declared) > 18 or int(declared) > limits.body_bytes):
        raise _too_large(limits)
    body = bytearray()
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(None) as limit:
            deadline = Deadline(loop, limits.body_read_s, lambda: limit.reschedule(loop.time()))
            try:
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > limits.body_bytes:
                        raise _too_large(limits)
            finally:
                deadline.cancel()
    except TimeoutError:
        raise Refused(Refusal(408, f"the body did not arrive within {limits.body_read_s:g} s", "body_timeout")) from None
    return bytes(body)


def _too_large(limits: RequestLimits) -> Refused:
    return Refused(Refusal(413, f"the body is larger than the limit of {limits.body_bytes} bytes", "body_too_large"))
