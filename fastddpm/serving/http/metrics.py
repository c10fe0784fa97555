"""What is counted, in the text format of Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

from fastddpm.serving.stats import Stats

KIND = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Bounds of the buckets of what a request takes."""
GAUGES: dict[str, tuple[str, Callable[[Stats], float]]] = {
    "fastddpm_waiting": ("Images that have not begun.", lambda stats: stats["waiting"]),
    "fastddpm_running": ("Images in the step that runs.", lambda stats: stats["running"]),
    "fastddpm_parked": ("Images set aside on their way.", lambda stats: stats["parked"]),
    "fastddpm_slots": ("Slots of the step that runs.", lambda stats: stats["slots"]),
    "fastddpm_slots_used": ("Slots with an image; a guided one takes two.", lambda stats: stats["filled"]),
}
"""By model: what it is, and where it stands in its `fastddpm.serving.stats.Stats`."""


class Metrics:
    """Counters of one service.

    Args:
        stats: of the scheduler of each model, by name.

    Attributes:
        images: drawn and answered, by model.
    """

    def __init__(self, stats: Mapping[str, Callable[[], Stats]]) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Schedulers(stats))
        self._requests = Counter(
            "fastddpm_requests",
            "Requests by route, method and status; 499: the client went away.",
            ("route", "method", "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "fastddpm_request_seconds",
            "From a request to the end of its answer.",
            ("route",),
            buckets=SECONDS,
            registry=self._registry,
        )
        self.images = Counter(
            "fastddpm_images", "Images drawn and answered.", ("model",), registry=self._registry
        )
        for name in stats:
            self.images.labels(name)

    def count(self, route: str, method: str, status: int, seconds: float) -> None:
        """Counts a request that was answered."""
        self._requests.labels(route, method, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """All of them, as Prometheus reads them."""
        return generate_latest(self._registry)


class _Schedulers(Collector):
    """What the schedulers say, when it is asked for."""

    def __init__(self, stats: Mapping[str, Callable[[], Stats]]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        now = {name: stats() for name, stats in self._stats.items()}
        for name, (what, value) in GAUGES.items():
            gauge = GaugeMetricFamily(name, what, labels=("model",))
            for model, stats in now.items():
                gauge.add_metric((model,), value(stats))
            yield gauge
        steps = SummaryMetricFamily(
            "fastddpm_step_seconds", "Steps of batches, and the seconds that they took.", labels=("model",)
        )
        submitted = CounterMetricFamily(
            "fastddpm_submitted", "Images that were asked for and accepted.", labels=("model",)
        )
        for model, stats in now.items():
            steps.add_metric((model,), count_value=stats["steps"], sum_value=stats["seconds"])
            submitted.add_metric((model,), stats["submitted"])
        yield steps
        yield submitted
