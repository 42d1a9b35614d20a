"""SGLang's names for what `exposition` tells under vLLM's, for dashboards and autoscalers that were made for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client.core import Metric

from openglm.engine.stats import EngineStats
from openglm.server.metric_labels import Labels

if TYPE_CHECKING:
    from openglm.server.service import Service


class SGLangNames:
    """The families of one server, which is one worker: all ranks are 0."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._seen: tuple[int, float] | None = None
        self._throughput = 0.0

    def note(self, stats: EngineStats, at: float) -> None:
        """The engine's counters as they were at `at` (seconds): throughput is what was generated since the last time."""
        if self._seen is not None and at > self._seen[1]:
            # An engine that was started again counts from zero.
            self._throughput = max(0, stats.num_generated_tokens - self._seen[0]) / (at - self._seen[1])
        self._seen = (stats.num_generated_tokens, at)

    def families(self, stats: EngineStats) -> Iterator[Metric]:
        """All of them."""
        labels = Labels(model_name=self._service.model.name, engine_type="unified", tp_rank="0", pp_rank="0", moe_ep_rank="0")
        used = stats.pages_held / stats.pages_total if stats.pages_total else 0.0
        hits = stats.prompt_tokens_cached / stats.prompt_tokens_looked_up if stats.prompt_tokens_looked_up else 0.0
        steps = sum(stats.drafts_by_depth)
        accepted = 1 + sum(stats.accepted_by_position) / steps if steps else 0.0
        gauges = (
            ("num_running_reqs", "Requests that the engine runs.", stats.num_running),
            ("num_queue_reqs", "Requests that wait for the engine.", stats.num_waiting),
            ("token_usage", "Part of the KV cache that running requests hold; 1 is all of it.", used),
            ("cache_hit_rate", "Part of all prompt tokens that came from the prefix cache.", hits),
            ("gen_throughput", "Tokens per second generated since the scrape before.", self._throughput),
            ("spec_accept_length", "Tokens per sequence and step, the one that needs no draft included.", accepted),
        )
        for name, text, value in gauges:
            yield labels.gauge(f"sglang:{name}", text, value)
        metrics = self._service.metrics
        histograms = (
            ("time_to_first_token_seconds", "Until the first token.", metrics.time_to_first_token),
            ("inter_token_latency_seconds", "Between outputs of a request.", metrics.inter_token_latency),
            ("e2e_request_latency_seconds", "Whole requests.", metrics.e2e_latency),
        )
        for name, text, histogram in histograms:
            yield labels.histogram(f"sglang:{name}", text, histogram)
