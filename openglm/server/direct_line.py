"""The short way of an ordinary step: from the engine's output to the socket within one call.

A stream is pulled: its task asks for the next step, encodes it, sends it, and only then asks again. That order is what failures, ends,
clients that leave and clients that do not keep up are handled in, but it costs a turn of the event loop and a handful of suspended
frames per token. So while the task waits for a step and the socket takes more, a step in the middle of a stream goes the short way;
every other one is left to the task.

What it costs is mostly memory: between two steps of the engine the caches are lost to others, and what belongs to a stream is read
from afar. Hence the objects that a step visits have slots, and the usual step is decided early.

The HTTP layer offers the short way as an ASGI extension. Where it is missing, or the stream has several answers, all steps are pulled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from starlette.types import Scope

from openglm.server.turn import TurnStep

BODY_WRITER: Final = "openglm.body_writer"


class BodyWriter(Protocol):
    """Writes to the body of one response, beside ASGI's `send`."""

    ready: bool
    """Whether the client is still there and its socket takes more at once."""

    def write(self, data: bytes) -> None:
        """Write a piece; only between the start of the response and its end, and where `ready`."""
        ...


def body_writer(scope: Scope) -> BodyWriter | None:
    """What the HTTP layer offers for the response to this request."""
    writer: BodyWriter | None = scope.get("extensions", {}).get(BODY_WRITER)
    return writer


class DirectLine:
    """The short way of one stream. It is closed until everything before the next step has been sent: `open` says so."""

    __slots__ = ("_encode", "_is_open", "_writer", "has_written")

    def __init__(self, encode: Callable[[TurnStep], bytes], writer: BodyWriter) -> None:
        self._encode = encode
        self._writer = writer
        self._is_open = False
        self.has_written = False
        """Set by every piece; for who watches whether the stream is silent."""

    def open(self) -> None:
        """The stream has begun; from now on whatever its task was given is sent before the task waits again."""
        self._is_open = True

    @property
    def ready(self) -> bool:
        """Whether a step can be written now."""
        return self._is_open and self._writer.ready

    def write(self, step: TurnStep) -> None:
        """Send a step."""
        if data := self._encode(step):
            self.has_written = True
            self._writer.write(data)
