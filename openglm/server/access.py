"""The gate in front of every route: request id, keys, and the last catch for exceptions.

Deny by default: with keys configured, every path outside `PUBLIC_PATHS` needs one, whether a route exists there or not, and the
check runs before the body is read; only the files of the web page may be read without. The path is taken from the ASGI scope, never
from a URL that a Host header can shape.
Keys are compared by digest in constant time, all of them every time.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Sequence
from typing import Final

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from openglm.server.refusal import Refusal, refusal_of

PUBLIC_PATHS: Final = frozenset({"/health", "/ready"})

_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


class KeyRing:
    """The API keys, held as digests. Without keys everyone is let in."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [_digest(key.encode()) for key in keys]

    def admits(self, headers: Sequence[tuple[bytes, bytes]]) -> bool:
        """Whether a request with these headers (lower-case names) may pass."""
        if not self._digests:
            return True
        offered = [_digest(key) for key in _offered_keys(headers)]
        # No short cut: the time taken must not depend on which key, or how much of it, was right.
        return sum([hmac.compare_digest(key, digest) for key in offered for digest in self._digests]) > 0


class Gate:
    """ASGI middleware around the whole application. `write` puts a refusal into the words of the dialect that the request is in;
    `open_reads` are further paths that anyone may GET, and nothing else."""

    def __init__(
        self, app: ASGIApp, *, keys: KeyRing, write: Callable[[Refusal, Scope], Response], open_reads: frozenset[str] = frozenset()
    ) -> None:
        self._app = app
        self._keys = keys
        self._write = write
        self._open_reads = open_reads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; whatever happens inside, the client gets a well-formed answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope["headers"])
        scope["openglm.request_id"] = request_id.decode()
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                # Anthropic's packages look for the second name.
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id), (b"request-id", request_id)]
            await send(message)

        try:
            if not self._is_public(scope) and not self._keys.admits(scope["headers"]):
                await self._write(_UNAUTHORIZED, scope)(scope, receive, send_with_id)
                return
            await self._app(scope, receive, send_with_id)
        except ClientDisconnect:
            return  # nobody is left to answer
        except Exception as error:
            refusal = refusal_of(error)
            if started:
                return  # too late for a status: an unfinished response makes the HTTP layer cut the connection
            await self._write(refusal, scope)(scope, receive, send_with_id)

    def _is_public(self, scope: Scope) -> bool:
        path = scope["path"]
        return path in PUBLIC_PATHS or (path in self._open_reads and scope["method"] in ("GET", "HEAD"))


_UNAUTHORIZED: Final = Refusal(401, "a valid API key is needed: send Authorization: Bearer KEY or x-api-key: KEY", "invalid_api_key")


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _offered_keys(headers: Sequence[tuple[bytes, bytes]]) -> list[bytes]:
    """What the request offers as `Authorization: Bearer` or `x-api-key`; clients may send both."""
    keys = []
    for name, value in headers:
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            keys.append(value[7:].strip())
        elif name == b"x-api-key":
            keys.append(value.strip())
    return keys


def _request_id(headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    """The client's own id where it is short and harmless, else a new one."""
    for name, value in headers:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return value
    return b"req-" + secrets.token_hex(12).encode()
