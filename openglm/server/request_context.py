"""What is known about the request that a task serves: its id, its trace, who sent it.

Set once by the gate, read by whoever logs, measures or starts a generation, so that no dialect has to hand it on. It lives in a
context variable because that is what asyncio copies into the tasks that a request starts.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True)
class RequestContext:
    """Facts about one HTTP request."""

    id: str = ""
    traceparent: str = ""
    """The W3C trace context that the client sent; empty: none."""
    tenant: str = ""
    """Stands for the key that was sent, where several are known; says nothing about the key itself."""
    is_admin: bool = False
    """Whether the control routes are there for this request."""


_current: ContextVar[RequestContext] = ContextVar("openglm request")
_NONE = RequestContext()


def current_request() -> RequestContext:
    """The request that the running task serves; outside of one, an empty context."""
    return _current.get(_NONE)


def set_current_request(context: RequestContext) -> None:
    """Say what the running task, and those it starts, serve."""
    _current.set(context)
