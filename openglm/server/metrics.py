"""What the server measures while it serves: cheap enough to stay on, read by `exposition` when somebody asks.

Everything is counted on the event loop, so there are no locks: an observation is a bisection and two additions. Names, labels and bucket
edges are vLLM's, because dashboards and autoscalers for them exist; what only this server has is prefixed `openglm:` by the exposition.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from starlette.types import Scope

from openglm.engine.request import EngineOutput
from openglm.server.turn import PreparedTurn, TurnEnd

FIRST_TOKEN_EDGES: Final = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
TOKEN_EDGES: Final = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
REQUEST_EDGES: Final = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0),
    *(40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
HTTP_EDGES: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "DELETE", "OPTIONS"})
_ABORTED: Final = "499"  # no status was sent; what web servers write for a client that left


def token_count_edges(largest: int) -> tuple[float, ...]:
    """1, 2, 5, 10, 20, 50, ... up to `largest`."""
    edges = [float(digit * 10**power) for power in range(10) for digit in (1, 2, 5)]
    return tuple(edge for edge in edges if edge <= largest) or (1.0,)


class Histogram:
    """Counts of observations between fixed edges; `counts` has one more entry than there are edges."""

    def __init__(self, edges: Sequence[float]) -> None:
        self.edges = tuple(edges)
        self.counts = [0] * (len(self.edges) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Take in one value; it belongs to the first edge that is not below it."""
        self.counts[bisect_left(self.edges, value)] += 1
        self.total += value


class Metrics:
    """All of the server's own measurements. One per server."""

    def __init__(self, *, max_model_len: int) -> None:
        self.time_to_first_token = Histogram(FIRST_TOKEN_EDGES)
        self.inter_token_latency = Histogram(TOKEN_EDGES)
        self.time_per_output_token = Histogram(TOKEN_EDGES)
        self.e2e_latency = Histogram(REQUEST_EDGES)
        self.queue_time = Histogram(REQUEST_EDGES)
        self.prefill_time = Histogram(REQUEST_EDGES)
        self.decode_time = Histogram(REQUEST_EDGES)
        self.inference_time = Histogram(REQUEST_EDGES)
        self.set_model_length(max_model_len)
        self.finished: Counter[str] = Counter()
        self.num_thinking_tokens = 0
        self.tool_calls: Counter[str] = Counter()
        self.num_repairs = 0
        self.http: Counter[tuple[str, str, str]] = Counter()
        self.http_seconds: dict[str, Histogram] = {}
        self._handlers: Mapping[object, str] = {}

    def set_model_length(self, max_model_len: int) -> None:
        """Bucket edges of token counts follow the context, which is settled when the engine has started."""
        edges = token_count_edges(max_model_len)
        self.prompt_tokens, self.generation_tokens, self.max_tokens = Histogram(edges), Histogram(edges), Histogram(edges)

    def name_handlers(self, handlers: Mapping[object, str]) -> None:
        """Say which route an endpoint serves. Labels come from here, never from a path that a client made up."""
        self._handlers = handlers

    def observe_http(self, scope: Scope, status: int, seconds: float) -> None:
        """An HTTP answer ended; status 0 is a client that left before there was one."""
        handler = self._handlers.get(scope.get("endpoint"), "none")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self.http[handler, method, str(status) if status else _ABORTED] += 1
        if handler not in self.http_seconds:
            self.http_seconds[handler] = Histogram(HTTP_EDGES)
        self.http_seconds[handler].observe(seconds)

    def begin(self, turn: PreparedTurn) -> TurnRecord:
        """A turn is about to run."""
        return TurnRecord(self, turn)


class TurnRecord:
    """The measurements of one turn as it goes."""

    __slots__ = ("_last_token_at", "_metrics", "_turn", "began", "first_token_at", "last_output", "num_tokens")

    def __init__(self, metrics: Metrics, turn: PreparedTurn) -> None:
        self._metrics = metrics
        self._turn = turn
        self.began = time.monotonic()
        self.first_token_at: float | None = None
        self._last_token_at = 0.0
        self.num_tokens = 0
        self.last_output: EngineOutput | None = None

    def observe(self, output: EngineOutput) -> None:
        """An output of the engine arrived; the hot path."""
        if num_tokens := len(output.token_ids):
            now = time.monotonic()
            if self.first_token_at is None:
                self.first_token_at = now
                self._metrics.time_to_first_token.observe(now - self.began)
            else:
                self._metrics.inter_token_latency.observe(now - self._last_token_at)
            self._last_token_at = now
            self.num_tokens += num_tokens
        self.last_output = output

    @property
    def seconds(self) -> float:
        """Since the turn began."""
        return time.monotonic() - self.began

    def end(self, end: TurnEnd | None, *, failed: bool) -> str:
        """The turn is over; returns how, in vLLM's words. Without an end it failed, or its client left."""
        metrics, output = self._metrics, self.last_output
        reason = _REASONS[end.finish_reason] if end is not None else "error" if failed else "abort"
        metrics.finished[reason] += 1
        metrics.e2e_latency.observe(self.seconds)
        metrics.prompt_tokens.observe(len(self._turn.prompt_ids))
        metrics.generation_tokens.observe(self.num_tokens)
        if self._turn.params.max_tokens is not None:
            metrics.max_tokens.observe(self._turn.params.max_tokens)
        if self.first_token_at is not None:
            decode_s = self._last_token_at - self.first_token_at
            metrics.decode_time.observe(decode_s)
            if self.num_tokens > 1:
                metrics.time_per_output_token.observe(decode_s / (self.num_tokens - 1))
            if output is not None and output.queue_s is not None:
                metrics.queue_time.observe(output.queue_s)
                metrics.prefill_time.observe(max(0.0, self.first_token_at - self.began - output.queue_s))
                metrics.inference_time.observe(max(0.0, self._last_token_at - self.began - output.queue_s))
        if end is not None:
            metrics.num_thinking_tokens += end.usage.reasoning_tokens
            metrics.tool_calls["complete"] += end.num_calls
            metrics.tool_calls["cut"] += end.num_cut_calls
            metrics.num_repairs += end.num_repairs
        return reason


_REASONS: Final = {"stop": "stop", "tool_calls": "stop", "length": "length", "abort": "abort"}
