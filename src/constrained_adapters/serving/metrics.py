"""What ``/metrics`` tells Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Counters of one server.

    Args:
        gauges: Present figures of the engine, read when they are asked for.
    """

    def __init__(self, gauges: Callable[[], Mapping[str, float]]) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Gauges(gauges))
        self.requests = Counter(
            "crma_requests", "Requests by path and status.", ["path", "status"], registry=self._registry
        )
        self.answered = Counter(
            "crma_answers", "Requests answered by each domain.", ["domain"], registry=self._registry
        )
        self.prompt_tokens = Counter("crma_prompt_tokens", "Tokens of prompts.", registry=self._registry)
        self.new_tokens = Counter("crma_new_tokens", "Tokens written.", registry=self._registry)
        self.seconds = Histogram(
            "crma_request_seconds",
            "From a request to the end of its reply.",
            ["path"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.first_token_seconds = Histogram(
            "crma_first_token_seconds",
            "From a request to the first chunk of its stream.",
            buckets=_SECONDS,
            registry=self._registry,
        )

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)


class _Gauges(Collector):
    def __init__(self, gauges: Callable[[], Mapping[str, float]]) -> None:
        self._gauges = gauges

    def collect(self) -> Iterable[Metric]:
        for name, value in self._gauges().items():
            yield GaugeMetricFamily(f"crma_{name}", name.replace("_", " "), value=value)
