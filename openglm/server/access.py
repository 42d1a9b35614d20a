"""The gate in front of every route: request id, keys, the access log, and the last catch for exceptions.

Deny by default: with keys configured, every path outside `PUBLIC_PATHS` needs one, whether a route exists there or not, and the
check runs before the body is read; only the files of the web page may be read without. The path is taken from the ASGI scope, never
from a URL that a Host header can shape.
Keys are compared by digest in constant time, all of them every time.

There are two planes. Ordinary keys open the API. The control routes (`app.build_app` lists them) are there only for who sends an
admin key, or comes over the admin socket; for all others the paths do not exist.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from openglm.config.server import ServerConfig
from openglm.server.refusal import Refusal, refusal_of
from openglm.server.request_context import RequestContext, set_current_request

access_log = logging.getLogger("openglm.access")

ADMIN_SOCKET: Final = "openglm.admin_socket"
"""ASGI extension by which the HTTP layer marks a request that came over the admin socket."""
PUBLIC_PATHS: Final = frozenset({"/health", "/ready"})

_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_TRACEPARENT: Final = re.compile(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_MAX_LOGGED_PATH: Final = 200


class KeyRing:
    """API keys, held as digests."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [_digest(key.encode()) for key in keys]

    def __len__(self) -> int:
        return len(self._digests)

    def find(self, headers: Sequence[tuple[bytes, bytes]]) -> int | None:
        """Which key the headers (lower-case names) offer; None: none of these."""
        offered = [_digest(key) for key in _offered_keys(headers)]
        # No short cut: the time taken must not depend on which key, or how much of it, was right.
        matches = [[hmac.compare_digest(key, digest) for digest in self._digests] for key in offered]
        found = [number for row in matches for number, matched in enumerate(row) if matched]
        return found[0] if found else None


class Access:
    """Who may do what."""

    def __init__(self, config: ServerConfig) -> None:
        self._keys = KeyRing(config.api_keys)
        self._admin_keys = KeyRing(config.admin_api_keys)
        self._public = PUBLIC_PATHS | {"/metrics"} if config.metrics_are_public else PUBLIC_PATHS
        self._tells_tenants_apart = len(config.api_keys) + len(config.admin_api_keys) > 1 and not config.share_prefix_cache
        self._secret = secrets.token_bytes(32)

    def judge(self, scope: Scope, *, is_open: bool = False) -> RequestContext | None:
        """The context of a request that may pass, without its id; None: it may not. `is_open`: this one needs no key."""
        headers = scope["headers"]
        key, admin_key = self._keys.find(headers), self._admin_keys.find(headers)
        is_admin = admin_key is not None or ADMIN_SOCKET in scope.get("extensions", ())
        if key is None and not is_admin and self._keys and not is_open and scope["path"] not in self._public:
            return None
        return RequestContext(is_admin=is_admin, tenant=self._tenant(key, admin_key))

    def _tenant(self, key: int | None, admin_key: int | None) -> str:
        if not self._tells_tenants_apart:
            return ""
        name = f"key {key}" if key is not None else f"admin {admin_key}" if admin_key is not None else ""
        # Secret, so that nobody can name another's salt as their own.
        return hmac.digest(self._secret, name.encode(), "sha256").hex() if name else ""


class HTTPObserver(Protocol):
    """Who is told about every answer."""

    def observe_http(self, scope: Scope, status: int, seconds: float) -> None:
        """An answer ended; status 0: the client left before there was one."""
        ...


class Gate:
    """ASGI middleware around the whole application. `write` puts a refusal into the words of the dialect that the request is in;
    `open_reads` are further paths that anyone may GET, and nothing else."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        access: Access,
        write: Callable[[Refusal, Scope], Response],
        observer: HTTPObserver,
        open_reads: frozenset[str] = frozenset(),
    ) -> None:
        self._app = app
        self._access = access
        self._write = write
        self._open_reads = open_reads
        self._observer = observer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; whatever happens inside, the client gets a well-formed answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope["headers"])
        scope["openglm.request_id"] = request_id.decode()
        began = time.monotonic()
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                # Anthropic's packages look for the second name.
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id), (b"request-id", request_id)]
            await send(message)

        try:
            context = self._access.judge(scope, is_open=self._is_open(scope))
            if context is None:
                await self._write(_UNAUTHORIZED, scope)(scope, receive, send_with_id)
                return
            set_current_request(
                RequestContext(request_id.decode(), _traceparent(scope["headers"]), tenant=context.tenant, is_admin=context.is_admin)
            )
            await self._app(scope, receive, send_with_id)
        except ClientDisconnect:
            return  # nobody is left to answer
        except Exception as error:
            refusal = refusal_of(error)
            if status:
                return  # too late for a status: an unfinished response makes the HTTP layer cut the connection
            await self._write(refusal, scope)(scope, receive, send_with_id)
        finally:
            seconds = time.monotonic() - began
            self._observer.observe_http(scope, status, seconds)
            if access_log.isEnabledFor(logging.INFO):
                _log_access(scope, status, seconds, request_id)

    def _is_open(self, scope: Scope) -> bool:
        return scope["path"] in self._open_reads and scope["method"] in ("GET", "HEAD")


_UNAUTHORIZED: Final = Refusal(401, "a valid API key is needed: send Authorization: Bearer KEY or x-api-key: KEY", "invalid_api_key")


def _log_access(scope: Scope, status: int, seconds: float, request_id: bytes) -> None:
    """One line: never the query or a header, which may hold secrets."""
    client = scope.get("client")
    detail = {
        "status": status,
        "seconds": round(seconds, 4),
        "request_id": request_id.decode(),
        "client": client[0] if client else "local",
    }
    access_log.info("%s %s", scope["method"], scope["path"][:_MAX_LOGGED_PATH], extra=detail)


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


def _traceparent(headers: Sequence[tuple[bytes, bytes]]) -> str:
    return next((value.decode() for name, value in headers if name == b"traceparent" and _TRACEPARENT.fullmatch(value)), "")
