"""uvicorn's HTTP protocol with bounds: what a connection may cost before, beside and after the application.

uvicorn (httptools) bounds neither headers nor their arrival, keeps any number of connections, and waits forever for a client that
does not read. `BoundedProtocol` adds to one connection:

    head     size of the whole and of a line, number of lines, time to arrive; one Host, which must be ours where that is checked
    body     number of chunks; time and size of what still comes in after an early answer
    reading  a client that leaves what it was sent unread for `write_stall_s` loses its connection, which aborts its request
    closing  after an answer that did not wait for the whole request, the rest is read and dropped for a moment, because a connection
             that is closed on unread data is reset, and the client never sees the answer

Trailers are dropped: uvicorn would append them to headers that have been judged already. A wish to upgrade (h2c, which some HTTP
clients express by default) is ignored, as HTTP allows, by parsing the request again without it.

`Census` counts connections over the whole server. What the application says about a request it has received is not its business.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from collections import Counter
from collections.abc import Callable
from typing import Any, Final, Literal, cast

import httptools
from starlette.responses import Response
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from openglm.config.server import ConnectionLimits, ServerConfig, limit_flag
from openglm.server.access import ADMIN_SOCKET
from openglm.server.deadline import Deadline
from openglm.server.direct_line import BODY_WRITER
from openglm.server.refusal import Refusal

logger = logging.getLogger(__name__)

LINGER_S: Final = 1.0
"""How long the rest of a refused request is read and dropped."""

Cut = Literal["head", "head_timeout", "host", "chunks", "malformed", "stalled", "connections", "connections_per_peer"]
"""Why the HTTP layer itself ended a request or a connection."""


class Census:
    """The open connections of a server, and why others were cut. Belongs to one event loop."""

    def __init__(self) -> None:
        self.num_open = 0
        self.cuts: Counter[Cut] = Counter()
        self._by_peer: Counter[str] = Counter()

    def enter(self, peer: str, limits: ConnectionLimits) -> Cut | None:
        """Count a connection in; the limit that it exceeds, if any."""
        self.num_open += 1
        self._by_peer[peer] += 1
        if self.num_open > limits.connections:
            return "connections"
        return "connections_per_peer" if self._by_peer[peer] > limits.connections_per_peer else None

    def leave(self, peer: str) -> None:
        """Count a connection out."""
        self.num_open -= 1
        self._by_peer[peer] -= 1
        if not self._by_peer[peer]:
            del self._by_peer[peer]


class BoundedProtocol(HttpToolsProtocol):
    """One connection. `write` puts a refusal into words; everything else is uvicorn's."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        server: ServerConfig,
        census: Census,
        outbox: Outbox,
        write: Callable[[Refusal], Response],
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._server = server
        self._limits = server.connection_limits
        self._census = census
        self._outbox = outbox
        self._write_refusal = write
        self._peer = ""
        self._is_local = False
        self._raw: asyncio.Transport
        self._body_writer: _BodyWriter
        self._closing = False
        # The message that is being read: not begun, in its head, or in its body.
        self._begun = self._in_body = False
        self._head_bytes = 0  # received since the last message, where no head is complete yet
        self._head_size = self._head_lines = 0  # of the head being parsed
        self._num_messages = 0  # that the data at hand completed
        self._num_chunks = self._body_bytes = 0
        self._upgrades = False
        self._refusal: tuple[Cut, Refusal] | None = None
        self._read_timer: Deadline | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        self._close_timer: asyncio.TimerHandle | None = None

    # What happens to the connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Let the connection in, or tell it that there are too many."""
        self._raw = transport
        self._body_writer = _BodyWriter(transport, self._outbox)
        super().connection_made(cast(asyncio.Transport, _CarefulTransport(transport, self)))
        self._peer = self.client[0] if self.client else "local"
        connection = transport.get_extra_info("socket")
        self._is_local = connection is not None and connection.family == socket.AF_UNIX  # the admin socket is the only one there is
        exceeded = self._census.enter(self._peer, self._limits)
        if exceeded is not None:
            flag = limit_flag(exceeded)
            whose = "your address has" if exceeded == "connections_per_peer" else "this server has"
            self._refuse(exceeded, Refusal(503, f"{whose} too many connections open ({flag})", "too_many_connections", retry_after_s=1.0))
            return
        self._read_timer = Deadline(self.loop, self._limits.head_read_s, self._head_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone, whoever ended it."""
        self._census.leave(self._peer)
        for timer in (self._read_timer, self._stall_timer, self._close_timer):
            if timer is not None:
                timer.cancel()
        self._closing = True
        self._body_writer.end()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client does not keep up; from here on it must read something now and then."""
        super().pause_writing()
        self._body_writer.ready = False
        if self._stall_timer is None:
            self._stall_timer = self.loop.call_later(self._limits.write_stall_s, self._stall)

    def resume_writing(self) -> None:
        """The client reads again."""
        super().resume_writing()
        self._body_writer.ready = not self._closing
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def _stall(self) -> None:
        self._census.cuts["stalled"] += 1
        logger.info("a client read nothing for %g s; its connection is cut", self._limits.write_stall_s)
        self._raw.abort()

    def close(self) -> None:
        """Close after what was written; the rest of a message that still arrives is dropped for a moment."""
        if self._closing:
            return
        self._closing = True
        self._body_writer.end()
        self._body_bytes = 0  # from here on: what is dropped
        self._unset_keepalive_if_required()
        if self._read_timer is not None:
            self._read_timer.cancel()
        if self._begun and not self._raw.is_closing():
            if self._raw.can_write_eof():
                self._raw.write_eof()
            self._raw.resume_reading()
            self._close_timer = self.loop.call_later(LINGER_S, self._close_now)
        else:
            self._close_now()

    def _close_now(self) -> None:
        if self._close_timer is not None:
            self._close_timer.cancel()
        self._raw.close()
        # Closing waits until the client has read everything, which it may never do.
        self._close_timer = self.loop.call_later(self._limits.write_stall_s, self._raw.abort)

    @property
    def is_closing(self) -> bool:
        """Whether nothing more will be answered on this connection."""
        return self._closing or self._raw.is_closing()

    # What arrives

    def data_received(self, data: bytes) -> None:
        """Parse, and bound what is not a whole head yet."""
        if self._closing:
            self._body_bytes += len(data)  # more than a body's worth of it is not worth a second
            if self._body_bytes > self._server.limits.body_bytes and not self._raw.is_closing():
                self._close_now()
            return
        self._unset_keepalive_if_required()
        self._num_messages = 0
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._ignore_upgrade(data[upgrade.args[0] :])
            return
        except httptools.HttpParserError:
            self._refuse(*(self._refusal or ("malformed", _MALFORMED)))
            return
        if self._closing or self._in_body or (self._num_messages and not self._begun):
            return
        self._head_bytes += len(data)
        if self._head_bytes > self._limits.head_bytes:
            self._refuse("head", _too_large("head_bytes", self._limits.head_bytes))
        elif self._read_timer is None:
            self._read_timer = Deadline(self.loop, self._limits.head_read_s, self._head_is_late)

    def on_message_begin(self) -> None:
        """A request starts."""
        self._begun, self._in_body, self._upgrades = True, False, False
        self._head_size = self._head_lines = self._num_chunks = self._body_bytes = 0
        super().on_message_begin()
        extensions: dict[str, Any] = {BODY_WRITER: self._body_writer}
        self.scope["extensions"] = extensions | {ADMIN_SOCKET: {}} if self._is_local else extensions

    def on_url(self, url: bytes) -> None:
        """A part of the request's target."""
        self._grow_head(len(url), len(self.url) + len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A line of the head; or of the trailers, which nobody reads."""
        self._head_lines += 1
        if self._head_lines > self._limits.head_lines:
            self._refuse_head("head_lines", self._limits.head_lines)
        self._grow_head(len(name) + len(value) + 4, len(name) + len(value))
        if not self._in_body:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is whole: judge it, then hand the request to the application."""
        self._in_body, self._head_bytes = True, 0
        if self._read_timer is not None:
            self._read_timer.cancel()
        self._read_timer = Deadline(self.loop, self._server.limits.body_read_s, self._body_is_late)
        refusal = self._judge_host()
        if refusal is not None:
            self._refusal = refusal
            raise _Refused
        if self.parser.should_upgrade():
            self._upgrades = True  # the parser stops here; see `_ignore_upgrade`
            return
        super().on_headers_complete()

    def on_chunk_header(self) -> None:
        """A chunk of the body begins."""
        self._num_chunks += 1
        if self._num_chunks > self._limits.body_chunks:
            self._refusal = (
                "chunks",
                Refusal(413, f"the body has more than {self._limits.body_chunks} chunks; send larger ones", "too_many_chunks"),
            )
            raise _Refused

    def on_body(self, body: bytes) -> None:
        """A piece of the body. What comes after an early answer is dropped, up to the size that a body may have."""
        self._body_bytes += len(body)
        super().on_body(body)
        if self.cycle.response_complete and self._body_bytes > self._server.limits.body_bytes:
            self.close()

    def on_message_complete(self) -> None:
        """The request is here."""
        if self._upgrades:
            return
        self._begun = self._in_body = False
        self._num_messages += 1
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """uvicorn's plain text, replaced by ours."""
        del msg
        self._refuse("malformed", _MALFORMED)

    # Judgements

    def _grow_head(self, size: int, line: int) -> None:
        self._head_size += size
        if line > self._limits.head_line_bytes:
            self._refuse_head("head_line_bytes", self._limits.head_line_bytes)
        if self._head_size > self._limits.head_bytes:
            self._refuse_head("head_bytes", self._limits.head_bytes)

    def _refuse_head(self, name: str, limit: int) -> None:
        self._refusal = ("head", _too_large(name, limit))
        raise _Refused

    def _judge_host(self) -> tuple[Cut, Refusal] | None:
        hosts = [value for name, value in self.headers if name == b"host"]
        if len(hosts) > 1:
            return ("malformed", _MALFORMED)
        if hosts and not self._is_local and self._server.checks_hosts and not is_own_host(hosts[0], self._server.allowed_hosts):
            return ("host", Refusal(421, "the Host header names no host of this server; --allowed-host adds one", "unknown_host"))
        return None

    def _head_is_late(self) -> None:
        self._read_timer = None
        if self.cycle is not None and not self.cycle.response_complete:  # it has all the time that the answer before it takes
            self._read_timer = Deadline(self.loop, self._limits.head_read_s, self._head_is_late)
        elif self._head_bytes:
            self._refuse("head_timeout", Refusal(408, f"the headers did not arrive within {self._limits.head_read_s:g} s", "head_timeout"))
        else:
            self._census.cuts["head_timeout"] += 1
            self.close()

    def _body_is_late(self) -> None:
        self._read_timer = None
        if self.cycle is not None and self.cycle.response_complete:
            self.close()
        else:  # the application reads it, against a clock of its own
            self._read_timer = Deadline(self.loop, self._server.limits.body_read_s, self._body_is_late)

    def _ignore_upgrade(self, rest: bytes) -> None:
        """Parse the head again without the wish, and what follows it as usual."""
        if self.parser.get_method() == b"CONNECT":
            self._refuse("malformed", _MALFORMED)
            return
        kept = [(name, value) for name, value in self.headers if name not in (b"upgrade", b"connection", b"http2-settings")]
        lines = [self.parser.get_method() + b" " + self.url + b" HTTP/1.1", *(name + b": " + value for name, value in kept)]
        self.parser = httptools.HttpRequestParser(self)
        self.data_received(b"\r\n".join(lines) + b"\r\n\r\n" + rest)

    def _refuse(self, cut: Cut, refusal: Refusal) -> None:
        """Answer in the application's stead, if there is no answer yet, and close."""
        self._census.cuts[cut] += 1
        if self._closing:
            return
        cycle = self.cycle
        answering = cycle is not None and not cycle.response_complete
        if answering:  # the application is to forget this request, as if its client had left
            cycle.disconnected = True
            cycle.message_event.set()
        if not answering or not (cycle.response_started or self.pipeline):
            response = self._write_refusal(refusal)
            head = [b"%b: %b\r\n" % header for header in response.raw_headers if header[0] != b"connection"]
            self._raw.write(b"".join([STATUS_LINE[refusal.status], *head, b"connection: close\r\n\r\n", bytes(response.body)]))
        self._begun = True  # something still arrives, perhaps
        self.close()


class _Refused(Exception):
    """Stops the parser; the reason lies in the protocol."""


class Outbox:
    """What all connections of a server are to send within one turn of the event loop, written in one go: the first piece wakes the process
    that reads, which is then awake for the others. Written one by one, between the work on each, every piece would wake it again."""

    def __init__(self) -> None:
        self._pieces: list[tuple[_BodyWriter, bytes]] = []

    def put(self, writer: _BodyWriter, data: bytes) -> None:
        """Send in this turn. Whoever is woken later in it, such as the stream's own task, finds it sent."""
        if not self._pieces:
            asyncio.get_running_loop().call_soon(self._send)
        self._pieces.append((writer, data))

    def _send(self) -> None:
        pieces, self._pieces = self._pieces, []
        for writer, data in pieces:
            if not writer.is_over:
                writer.send(data)


class _BodyWriter:
    """Pieces of the response that is under way, past `send` (`direct_line.BodyWriter`). A plain attribute says whether one may come,
    because it is read for every token."""

    __slots__ = ("_put", "is_over", "ready", "send")

    def __init__(self, transport: asyncio.Transport, outbox: Outbox) -> None:
        self.ready = True
        self.is_over = False
        self.send = transport.write
        self._put = outbox.put

    def write(self, data: bytes) -> None:
        self._put(self, b"%x\r\n%b\r\n" % (len(data), data))

    def end(self) -> None:
        self.ready, self.is_over = False, True


class _CarefulTransport:
    """A transport whose `close` is the protocol's."""

    def __init__(self, transport: asyncio.Transport, protocol: BoundedProtocol) -> None:
        self.write = transport.write
        self.get_extra_info = transport.get_extra_info
        self.pause_reading = transport.pause_reading
        self.resume_reading = transport.resume_reading
        self.close = protocol.close
        self._protocol = protocol

    def is_closing(self) -> bool:
        return self._protocol.is_closing


def is_own_host(header: bytes, allowed: tuple[str, ...]) -> bool:
    """Whether a Host header names this machine by a local name or by an address, or is one of `allowed`. Ports do not matter."""
    host = header.decode("latin-1").strip().lower()
    name = host[1 : host.find("]")] if host.startswith("[") else host.rsplit(":", 1)[0] if host.count(":") == 1 else host
    name = name.removesuffix(".")
    if name == "localhost" or name.endswith(".localhost") or name in (each.lower() for each in allowed):
        return True
    try:
        ipaddress.ip_address(name)  # no name was resolved, so none can have been rebound
    except ValueError:
        return False
    return True


def _too_large(name: str, limit: int) -> Refusal:
    what = {"head_lines": "header lines", "head_line_bytes": "bytes in one header line"}.get(name, "bytes of headers")
    return Refusal(431, f"the request has more than {limit} {what}", "headers_too_large")


_MALFORMED: Final = Refusal(400, "this is not a well-formed HTTP/1.1 request", "invalid_http")
