"""GET /metrics: the server's and the engine's counters as Prometheus text.

vLLM's names, labels and meanings where it has one (prefix `vllm:`), `openglm:` for the rest; `--metrics-compat sglang` adds SGLang's
names (`sglang_metrics`). The engine is asked at every scrape; while it
is down or too busy to answer, its last answer stands, and `openglm:engine_up` and `openglm:stats_age_seconds` say so.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

from prometheus_client import CONTENT_TYPE_LATEST
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector, CollectorRegistry
from starlette.requests import Request
from starlette.responses import Response

from openglm import __version__
from openglm.config.engine import PAGE_SIZE
from openglm.engine.stats import STEP_TOKEN_EDGES, EngineStats
from openglm.errors import EngineDeadError
from openglm.server.metric_labels import Labels, buckets
from openglm.server.metrics import Histogram
from openglm.server.sglang_metrics import SGLangNames

if TYPE_CHECKING:
    from openglm.server.service import Service

STATS_WAIT_S: Final = 1.0
"""The engine answers between two steps; a scrape does not wait for a longer one."""


class MetricsRoute:
    """The endpoint."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._stats = EngineStats()
        self._stats_at: float | None = None
        self._sglang = SGLangNames(service) if service.config.metrics_compat == "sglang" else None
        self._registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self._registry)
        self._registry.register(_Page(self))

    async def show(self, request: Request) -> Response:
        """Everything, in the text format."""
        del request
        with contextlib.suppress(EngineDeadError, TimeoutError):
            self._stats = await asyncio.wait_for(self._service.engine.stats(), STATS_WAIT_S)
            self._stats_at = time.monotonic()
            if self._sglang is not None:
                self._sglang.note(self._stats, self._stats_at)
        return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)

    def families(self) -> Iterator[Metric]:
        """All metrics."""
        labels = Labels(model_name=self._service.model.name, engine="0")
        yield from self._engine_families(labels)
        yield from self._turn_families(labels)
        yield from self._server_families(labels)
        if self._sglang is not None:
            yield from self._sglang.families(self._stats)

    def _engine_families(self, labels: Labels) -> Iterator[Metric]:
        stats = self._stats
        age_s = -1.0 if self._stats_at is None else time.monotonic() - self._stats_at
        yield labels.gauge("vllm:num_requests_running", "Requests that the engine runs.", stats.num_running)
        yield labels.gauge("vllm:num_requests_waiting", "Requests that wait for the engine.", stats.num_waiting)
        used = stats.pages_held / stats.pages_total if stats.pages_total else 0.0
        yield labels.gauge("vllm:kv_cache_usage_perc", "Part of the KV cache that running requests hold; 1 is all of it.", used)
        yield labels.info(
            "vllm:cache_config", "How the KV cache is divided.", block_size=str(PAGE_SIZE), num_gpu_blocks=str(stats.pages_total)
        )
        counters = (
            ("vllm:prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", stats.prompt_tokens_looked_up),
            ("vllm:prefix_cache_hits", "Prompt tokens found there.", stats.prompt_tokens_cached),
            ("vllm:prompt_tokens", "Prompt tokens, cached ones included.", stats.num_prefill_tokens + stats.prompt_tokens_cached),
            ("vllm:prompt_tokens_cached", "Prompt tokens that came from the prefix cache.", stats.prompt_tokens_cached),
            ("vllm:generation_tokens", "Tokens generated.", stats.num_generated_tokens),
            ("vllm:num_preemptions", "How often a request gave way and was computed again.", stats.num_preemptions),
            ("vllm:spec_decode_num_drafts", "Steps of a sequence for which tokens were drafted.", sum(stats.drafted_by_position[:1])),
            ("vllm:spec_decode_num_draft_tokens", "Drafted tokens that were verified.", sum(stats.drafted_by_position)),
            ("vllm:spec_decode_num_accepted_tokens", "Drafted tokens that were right.", sum(stats.accepted_by_position)),
            ("openglm:steps", "Engine steps.", stats.num_steps),
            ("openglm:prefill_tokens", "Prompt tokens computed.", stats.num_prefill_tokens),
            ("openglm:evicted_pages", "KV pages that made room for others.", stats.num_evicted_pages),
            ("openglm:host_pages_stored", "KV pages copied to host memory.", stats.num_host_pages_stored),
            ("openglm:host_pages_loaded", "KV pages copied back for a hit.", stats.num_host_pages_loaded),
            ("openglm:constrained_tokens", "Tokens checked against a grammar.", stats.num_constrained_tokens),
            ("openglm:redrawn_tokens", "Tokens chosen again because a grammar forbade the first choice.", stats.num_redrawn_tokens),
            ("openglm:grammar_seconds", "Time spent on grammars in steps.", stats.constrain_s),
            (
                "openglm:kv_accounting_errors",
                "Times that the page accounting had to be repaired.",
                stats.kv_accounting_errors,
            ),
            ("openglm:engine_restarts", "Times that the engine's process was started again.", self._service.engine.num_restarts),
        )
        for name, text, value in counters:
            yield labels.counter(name, text, value)
        by_position = {"position": [str(i) for i in range(len(stats.drafted_by_position))]}
        yield labels.counters(
            "vllm:spec_decode_num_accepted_tokens_per_pos", "Right drafts by position.", by_position, stats.accepted_by_position
        )
        yield labels.counters("openglm:draft_tokens_per_pos", "Verified drafts by position.", by_position, stats.drafted_by_position)
        by_depth = {"depth": [str(i) for i in range(len(stats.drafts_by_depth))]}
        yield labels.counters("openglm:drafts_by_depth", "Steps of a sequence by tokens to draft.", by_depth, stats.drafts_by_depth)
        outcomes = {"outcome": list(stats.cache_outcomes)}
        yield labels.counters(
            "openglm:cache_outcomes", "Requests by why no more was cached.", outcomes, list(stats.cache_outcomes.values())
        )
        parts = {name: getattr(stats.times, name) for name in stats.times.__struct_fields__}
        yield labels.counters("openglm:step_seconds", "Time of engine steps by part.", {"part": list(parts)}, list(parts.values()))
        steps = Histogram(STEP_TOKEN_EDGES)
        steps.counts, steps.total = stats.steps_by_tokens, float(stats.num_scheduled_tokens)
        yield labels.histogram("vllm:iteration_tokens_total", "Tokens per engine step.", steps)
        pages = {"free": stats.pages_free, "cached": stats.pages_cached, "held": stats.pages_held}
        yield labels.gauges("openglm:kv_pages", "KV pages by state.", {"state": list(pages)}, list(pages.values()))
        yield labels.gauge("openglm:host_pages_used", "Pages of the host tier in use.", stats.host_pages_used)
        yield labels.gauge("openglm:engine_up", "1 while the engine takes requests.", self._service.engine.state == "ready")
        yield labels.gauge("openglm:stats_age_seconds", "How old the engine's figures are; -1: there are none yet.", age_s)

    def _turn_families(self, labels: Labels) -> Iterator[Metric]:
        metrics = self._service.metrics
        histograms = (
            ("vllm:time_to_first_token_seconds", "Until the first token.", metrics.time_to_first_token),
            ("vllm:inter_token_latency_seconds", "Between outputs of a request.", metrics.inter_token_latency),
            ("vllm:request_time_per_output_token_seconds", "Per token after the first, by request.", metrics.time_per_output_token),
            ("vllm:e2e_request_latency_seconds", "Whole requests.", metrics.e2e_latency),
            ("vllm:request_queue_time_seconds", "Waiting, by request.", metrics.queue_time),
            ("vllm:request_prefill_time_seconds", "From the first step to the first token, by request.", metrics.prefill_time),
            ("vllm:request_decode_time_seconds", "From the first token to the last, by request.", metrics.decode_time),
            ("vllm:request_inference_time_seconds", "From the first step to the last token, by request.", metrics.inference_time),
            ("vllm:request_prompt_tokens", "Prompt tokens by request.", metrics.prompt_tokens),
            ("vllm:request_generation_tokens", "Generated tokens by request.", metrics.generation_tokens),
            ("vllm:request_params_max_tokens", "Tokens that a request may generate.", metrics.max_tokens),
        )
        for name, text, histogram in histograms:
            yield labels.histogram(name, text, histogram)
        finished = {reason: metrics.finished[reason] for reason in ("stop", "length", "abort", "error")}
        yield labels.counters(
            "vllm:request_success", "Ended requests by reason.", {"finished_reason": list(finished)}, list(finished.values())
        )
        calls = {outcome: metrics.tool_calls[outcome] for outcome in ("complete", "cut")}
        yield labels.counters("openglm:tool_calls", "Tool calls, whole or cut off.", {"outcome": list(calls)}, list(calls.values()))
        yield labels.counter("openglm:thinking_tokens", "Tokens of reasoning.", metrics.num_thinking_tokens)
        yield labels.counter("openglm:tool_parse_repairs", "Times that the model broke its format and was understood.", metrics.num_repairs)

    def _server_families(self, labels: Labels) -> Iterator[Metric]:
        metrics, traffic, census = self._service.metrics, self._service.traffic, self._service.census
        yield labels.gauge("openglm:requests_in_flight", "Requests that were let in and are not answered yet.", traffic.num_in_flight)
        yield labels.gauge("openglm:prompt_tokens_in_flight", "Their prompt tokens.", traffic.num_tokens_in_flight)
        yield labels.counter("openglm:requests_shed", "Requests turned away because too many waited.", traffic.num_shed)
        yield labels.gauge("openglm:http_connections", "Open connections.", census.num_open)
        yield labels.counters(
            "openglm:http_cuts", "Connections that the HTTP layer ended, by why.", {"reason": list(census.cuts)}, list(census.cuts.values())
        )
        http = CounterMetricFamily("http_requests", "HTTP answers.", labels=("handler", "method", "status"))
        for key, count in metrics.http.items():
            http.add_metric(key, count)
        yield http
        seconds = HistogramMetricFamily("http_request_duration_seconds", "HTTP answers, streams to their end.", labels=("handler",))
        for handler, histogram in metrics.http_seconds.items():
            seconds.add_metric((handler,), buckets(histogram), histogram.total)
        yield seconds
        ignored = self._service.ignored_fields.by_label
        yield labels.counters(
            "openglm:ignored_request_fields", "Fields of requests that were not read.", {"field": list(ignored)}, list(ignored.values())
        )
        yield labels.info("openglm:build", "What runs.", version=__version__)


class _Page(Collector):
    def __init__(self, route: MetricsRoute) -> None:
        self._route = route

    def collect(self) -> Iterable[Metric]:
        return self._route.families()
