"""Spans in OpenTelemetry's GenAI conventions: sent where the operator said, absent otherwise."""

import http.server
import subprocess
import sys
import threading

import pytest
from canned_engine import CannedEngine
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from test_surface import BODY, client_of, service_of

from openglm.errors import ConfigError
from openglm.server.tracing import OpenTelemetry, open_tracing

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def traced():
    """A service that keeps its spans, and the spans."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    service = service_of(CannedEngine([[65], [66]]))
    service.tracing = OpenTelemetry(provider.get_tracer("test"))
    return service, exporter.get_finished_spans


async def test_a_turn_is_a_span_of_the_clients_trace(traced):
    service, spans = traced
    async with client_of(service) as client:
        headers = {"traceparent": PARENT, "x-request-id": "mine"}
        await client.post("/v1/chat/completions", json={**BODY, "max_tokens": 7, "seed": 3}, headers=headers)
    (span,) = spans()
    assert span.name == "chat test-model"
    assert f"{span.parent.trace_id:032x}" == PARENT.split("-")[1] and f"{span.parent.span_id:016x}" == PARENT.split("-")[2]
    attributes = dict(span.attributes)
    assert attributes.pop("gen_ai.latency.e2e") >= attributes.pop("gen_ai.latency.time_to_first_token") >= 0
    assert attributes.pop("gen_ai.response.id") and attributes.pop("gen_ai.response.time_to_first_chunk") >= 0
    assert attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openglm",
        "gen_ai.request.model": "test-model",
        "gen_ai.response.model": "test-model",
        "gen_ai.request.temperature": 1.0,
        "gen_ai.request.top_p": 1.0,
        "gen_ai.request.top_k": 0,
        "gen_ai.request.max_tokens": 7,
        "gen_ai.request.seed": 3,
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": attributes["gen_ai.usage.input_tokens"],
        "gen_ai.usage.output_tokens": 2,
        "gen_ai.usage.cache_read.input_tokens": 3,
        "gen_ai.usage.reasoning.output_tokens": 0,
        "openglm.request_id": "mine",
    }


async def test_a_failed_turn_says_so_and_a_bad_traceparent_is_nobodys_child(traced):
    service, spans = traced
    service.engine.ending, service.engine.failure = "error", ("internal", "x")
    async with client_of(service) as client:
        await client.post("/v1/chat/completions", json=BODY, headers={"traceparent": "00-zz-1"})
    (span,) = spans()
    assert span.parent is None
    assert not span.status.is_ok and span.attributes["error.type"] == "EngineError"


def test_spans_go_to_the_endpoint_and_nowhere_else():
    received = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            received.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Collector) as collector:
        thread = threading.Thread(target=collector.serve_forever)
        thread.start()
        tracing = open_tracing(f"http://127.0.0.1:{collector.server_port}/v1/traces")
        tracing._tracer.start_span("chat x").end()
        tracing.close()
        collector.shutdown()
        thread.join()
    ((path, body),) = received
    assert path == "/v1/traces" and b"chat x" in body


def test_an_address_that_is_none_is_refused():
    with pytest.raises(ConfigError, match="OTLP/HTTP address"):
        open_tracing("127.0.0.1:4317")


def test_without_an_endpoint_nothing_is_imported_and_without_the_library_it_says_so():
    script = """
import sys
import openglm.server.serve, openglm.server.tracing as tracing
tracing.open_tracing(None)
assert not [name for name in sys.modules if name.startswith("opentelemetry")], "imported"
sys.modules["opentelemetry.sdk.trace"] = None
try:
    tracing.open_tracing("http://127.0.0.1:1")
except tracing.ConfigError as error:
    assert "openglm[otel]" in str(error)
else:
    raise SystemExit("not refused")
"""
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
