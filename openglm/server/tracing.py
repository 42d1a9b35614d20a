"""One span per turn, in OpenTelemetry's GenAI conventions, for who asked for it and has it installed.

Without an endpoint nothing of OpenTelemetry is imported and spans cost one call that does nothing. With one, spans go there over
OTLP/HTTP from a thread of the library; that is the only connection this server ever opens, and only to where the operator said.
Prompts and answers are never part of a span. The client's `traceparent` makes the span a child of its trace.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

from openglm.errors import ConfigError
from openglm.server.metrics import TurnRecord
from openglm.server.request_context import RequestContext
from openglm.server.turn import PreparedTurn, TurnEnd

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

SERVICE_NAME: Final = "openglm"


class TurnSpan(Protocol):
    """The span of one running turn."""

    def end(self, record: TurnRecord, end: TurnEnd | None, error: Exception | None) -> None:
        """The turn is over; without an end and an error its client left."""
        ...


class Tracing(Protocol):
    """Where spans come from."""

    def begin(self, turn: PreparedTurn, *, model: str, context: RequestContext) -> TurnSpan:
        """A turn is about to run."""
        ...

    def close(self) -> None:
        """Send what is left."""
        ...


class NoTracing:
    """Nobody asked. Its own span, too."""

    def begin(self, turn: PreparedTurn, *, model: str, context: RequestContext) -> TurnSpan:
        """Nothing."""
        del turn, model, context
        return self

    def end(self, record: TurnRecord, end: TurnEnd | None, error: Exception | None) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class OpenTelemetry:
    """Spans of a tracer; `shutdown` sends what is left and ends the exporter."""

    def __init__(self, tracer: Tracer, shutdown: Any = None) -> None:
        self._tracer = tracer
        self._shutdown = shutdown

    def begin(self, turn: PreparedTurn, *, model: str, context: RequestContext) -> TurnSpan:
        """Open a span with what the request asked for."""
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        params = turn.params
        attributes: dict[str, Any] = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": SERVICE_NAME,
            "gen_ai.request.model": model,
            "gen_ai.response.model": model,
            "gen_ai.response.id": turn.id,
            "gen_ai.request.temperature": params.temperature,
            "gen_ai.request.top_p": params.top_p,
            "gen_ai.request.top_k": params.top_k,
            "openglm.request_id": context.id,
        }
        if params.max_tokens is not None:
            attributes["gen_ai.request.max_tokens"] = params.max_tokens
        if params.seed is not None:
            attributes["gen_ai.request.seed"] = params.seed
        parent = TraceContextTextMapPropagator().extract({"traceparent": context.traceparent}) if context.traceparent else None
        return _OpenTelemetrySpan(self._tracer.start_span(f"chat {model}", parent, SpanKind.SERVER, attributes))

    def close(self) -> None:
        """Send what is left."""
        if self._shutdown is not None:
            self._shutdown()


class _OpenTelemetrySpan:
    def __init__(self, span: Span) -> None:
        self._span = span

    def end(self, record: TurnRecord, end: TurnEnd | None, error: Exception | None) -> None:
        from opentelemetry.trace import Status, StatusCode

        span, output = self._span, record.last_output
        if record.first_token_at is not None:
            first_s = record.first_token_at - record.began
            span.set_attribute("gen_ai.response.time_to_first_chunk", first_s)
            span.set_attribute("gen_ai.latency.time_to_first_token", first_s)
        span.set_attribute("gen_ai.latency.e2e", record.seconds)
        span.set_attribute("gen_ai.usage.output_tokens", record.num_tokens)
        if output is not None:
            span.set_attribute("gen_ai.usage.input_tokens", output.num_prompt_tokens)
            span.set_attribute("gen_ai.usage.cache_read.input_tokens", output.num_cached_tokens)
            if output.queue_s is not None:
                span.set_attribute("gen_ai.latency.time_in_queue", output.queue_s)
        if end is not None:
            span.set_attribute("gen_ai.response.finish_reasons", [end.finish_reason])
            span.set_attribute("gen_ai.usage.reasoning.output_tokens", end.usage.reasoning_tokens)
        if error is not None:
            span.set_attribute("error.type", type(error).__name__)
            span.set_status(Status(StatusCode.ERROR))
        span.end()


def open_tracing(endpoint: str | None) -> Tracing:
    """Tracing to an OTLP/HTTP endpoint such as http://127.0.0.1:4318/v1/traces. Raises `ConfigError` when the libraries are not there."""
    if endpoint is None:
        return NoTracing()
    if not endpoint.startswith(("http://", "https://")):
        raise ConfigError("--otlp-traces-endpoint takes an OTLP/HTTP address such as http://127.0.0.1:4318/v1/traces")
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise ConfigError("--otlp-traces-endpoint needs OpenTelemetry: pip install 'openglm[otel]'") from None
    provider = TracerProvider(resource=Resource.create({"service.name": SERVICE_NAME}), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    return OpenTelemetry(provider.get_tracer(SERVICE_NAME), provider.shutdown)
