"""Prometheus families from plain values, all with the same leading labels."""

from __future__ import annotations

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily, Metric

from openglm.server.metrics import Histogram


class Labels:
    """Makes metrics that carry these labels; `by` is one more label and the values that it takes."""

    def __init__(self, **common: str) -> None:
        self._names, self._values = tuple(common), tuple(common.values())

    def gauge(self, name: str, text: str, value: float) -> Metric:
        """One value."""
        return self.gauges(name, text, {}, [value])

    def gauges(self, name: str, text: str, by: dict[str, list[str]], values: list[float] | list[int]) -> Metric:
        """A value for each label of `by`."""
        return self._fill(GaugeMetricFamily(name, text, labels=(*self._names, *by)), by, values)

    def counter(self, name: str, text: str, value: float) -> Metric:
        """One total."""
        return self.counters(name, text, {}, [value])

    def counters(self, name: str, text: str, by: dict[str, list[str]], values: list[float] | list[int]) -> Metric:
        """A total for each label of `by`."""
        return self._fill(CounterMetricFamily(name, text, labels=(*self._names, *by)), by, values)

    def _fill(self, family: GaugeMetricFamily | CounterMetricFamily, by: dict[str, list[str]], values: list[float] | list[int]) -> Metric:
        keys = next(iter(by.values()), None)
        for i, value in enumerate(values):
            family.add_metric((*self._values, keys[i]) if keys is not None else self._values, value)
        return family

    def histogram(self, name: str, text: str, histogram: Histogram) -> Metric:
        """A distribution."""
        family = HistogramMetricFamily(name, text, labels=self._names)
        family.add_metric(self._values, buckets(histogram), histogram.total)
        return family

    def info(self, name: str, text: str, **facts: str) -> Metric:
        """Facts, as labels of a constant."""
        family = InfoMetricFamily(name, text, labels=self._names)
        family.add_metric(self._values, facts)
        return family


def buckets(histogram: Histogram) -> list[tuple[str, float]]:
    """Upper edges and the counts up to them, as the text format has them."""
    total, buckets = 0, []
    for edge, count in zip((*histogram.edges, float("inf")), histogram.counts, strict=True):
        total += count
        buckets.append(("+Inf" if edge == float("inf") else str(float(edge)), float(total)))
    return buckets
