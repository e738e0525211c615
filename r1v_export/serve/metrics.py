"""What a server counts, in Prometheus's format."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from r1v_export.runner.batching.options import BatchingStats
from r1v_export.runner.batching.stat_metrics import COUNTERS, GAUGES

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1, 2, 5)

_LABELED = (
    ("r1v_answers", "Answers by finish reason.", "finish_reason", "finished"),
    ("r1v_vision_batches", "Runs of the vision graph by their tiles.", "tiles", "tiles_per_vision_batch"),
    ("r1v_decoder_steps", "Decoder steps by their rows.", "rows", "rows_per_step"),
)
"""Counters by a label: name, text, label, field of `BatchingStats`."""

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class ServerMetrics:
    """Counters and histograms of requests, and the runner's own numbers at the moment they are read.

    Args:
        stats: of what answers.
        counted: the fields of it that are known; there are no metrics of others.
    """

    def __init__(self, stats: Callable[[], BatchingStats], counted: Collection[str]) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_RunnerCollector(stats, counted))

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(name, text, buckets=buckets, registry=self.registry)

        self.seconds = histogram("r1v_request_seconds", "From a request to the end of its answer.", _SECONDS)
        self.first_token = histogram("r1v_time_to_first_token_seconds", "From a request to its first token.", _SECONDS)
        self.inter_token = histogram("r1v_inter_token_seconds", "Between two tokens of an answer.", _TOKEN_SECONDS)
        self.responses = Counter(
            "r1v_http_responses", "Responses by route and status.", ["route", "status"], registry=self.registry
        )
        self.errors = Counter("r1v_errors", "Requests that failed, by kind.", ["code"], registry=self.registry)

    def text(self) -> bytes:
        """Everything, as `/metrics` shows it."""
        return generate_latest(self.registry)


class _RunnerCollector(Collector):
    def __init__(self, stats: Callable[[], BatchingStats], counted: Collection[str]) -> None:
        self._stats, self._counted = stats, counted

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        for metric in GAUGES:
            if metric.field in self._counted:
                yield GaugeMetricFamily(metric.name, metric.text, value=getattr(stats, metric.field))
        for metric in COUNTERS:
            if metric.field in self._counted:
                yield CounterMetricFamily(metric.name, metric.text, value=getattr(stats, metric.field))
        for name, text, label, field in _LABELED:
            if field in self._counted:
                counts = {str(value): count for value, count in getattr(stats, field).items()}
                yield _by_label(name, text, label, counts)


def _by_label(name: str, text: str, label: str, counts: Mapping[str, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=[label])
    for value, count in sorted(counts.items()):
        family.add_metric([value], count)
    return family
