"""What a gateway counts, for Prometheus. Times are seconds.

| metric | labels | meaning |
|---|---|---|
| plexus_requests_total | model, worker, outcome | requests that reached a known model; outcome ok, error or cancelled |
| plexus_errors_total | kind | every error a client was told, also before a job was made |
| plexus_prompt_tokens_total | model, worker | prompt tokens of finished requests |
| plexus_completion_tokens_total | model, worker | tokens delivered, also of requests that ended early |
| plexus_cached_prompt_tokens_total | model, worker | prompt tokens found in a replica's cache |
| plexus_queue_wait_seconds | model | from the request's arrival to its acceptance by a replica |
| plexus_time_to_first_token_seconds | model, worker | from arrival to the first content or reasoning, not the role |
| plexus_inter_token_latency_seconds | model, worker | between tokens of one choice, as they reach the gateway |
| plexus_tokens_per_second | model, worker | of one request, from its first token to its last |
| plexus_request_duration_seconds | model, worker | from arrival to the end of the job |
| plexus_in_flight | model | requests under way |
| plexus_redispatches_total | reason | jobs published again after their replica was lost |
| plexus_replays_total | | times missing deltas were asked for |
| plexus_replica_load_seconds | model, worker, replica | how long each replica took to load |
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable
from itertools import accumulate
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily

from gateway.flight import Flight
from shared.records import ReplicaRecord

disable_created_metrics()  # type: ignore[no-untyped-call]  # a time of creation beside each counter: twice the series for nothing

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_WAITS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600)
_DURATIONS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800)
_GAPS = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10)
_SPEEDS = (1, 2.5, 5, 10, 15, 20, 30, 40, 60, 80, 120, 200, 400, 800)
_NOWHERE = "none"  # the worker of a request that no replica took


class Gaps:
    """A histogram of one series, cheap enough to be told of every token."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(_GAPS) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        """One gap."""
        self.counts[bisect_left(_GAPS, seconds)] += 1
        self.total += seconds


class _GapCollector:
    """The inter-token latencies of all series: the library's own histogram costs two microseconds a token."""

    def __init__(self) -> None:
        self._series: dict[tuple[str, str], Gaps] = {}

    def of(self, model: str, worker: str) -> Gaps:
        """The series of a model on a worker."""
        key = (model, worker or _NOWHERE)
        if key not in self._series:
            self._series[key] = Gaps()
        return self._series[key]

    def collect(self) -> Iterable[HistogramMetricFamily]:
        """As the registry wants it."""
        family = HistogramMetricFamily(
            "plexus_inter_token_latency_seconds", "Between tokens of one choice", labels=["model", "worker"]
        )
        for labels, gaps in self._series.items():
            bounds = [*(str(float(bound)) for bound in _GAPS), "+Inf"]
            buckets = list(zip(bounds, accumulate(gaps.counts), strict=True))
            family.add_metric(labels, buckets, sum_value=gaps.total)
        yield family


class _LoadCollector:
    """Load times as the replicas' records have them at the moment of the scrape."""

    def __init__(self, replicas: Callable[[], Iterable[ReplicaRecord]]) -> None:
        self._replicas = replicas

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """As the registry wants it."""
        family = GaugeMetricFamily(
            "plexus_replica_load_seconds", "How long a replica took to load", labels=["model", "worker", "replica"]
        )
        for replica in self._replicas():
            if replica.load_s:
                family.add_metric([replica.model, replica.worker, replica.id], replica.load_s)
        yield family


class Metrics:
    """All of them, in a registry of their own."""

    def __init__(self, replicas: Callable[[], Iterable[ReplicaRecord]] = list) -> None:
        self._registry = registry = CollectorRegistry()
        self._series: dict[tuple[Any, tuple[str, ...]], Any] = {}
        here = ("model", "worker")

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"plexus_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"plexus_{name}", text, labels, buckets=buckets, registry=registry)

        self.requests = counter("requests_total", "Requests by outcome", *here, "outcome")
        self.errors = counter("errors_total", "Errors told to clients", "kind")
        self.prompt_tokens = counter("prompt_tokens_total", "Prompt tokens", *here)
        self.completion_tokens = counter("completion_tokens_total", "Tokens delivered", *here)
        self.cached_tokens = counter("cached_prompt_tokens_total", "Prompt tokens from caches", *here)
        self.queue_wait = histogram("queue_wait_seconds", "Arrival to acceptance", _WAITS, "model")
        self.first_token = histogram("time_to_first_token_seconds", "Arrival to first token", _WAITS, *here)
        self.speed = histogram("tokens_per_second", "Tokens a second of one request", _SPEEDS, *here)
        self.duration = histogram("request_duration_seconds", "Arrival to end", _DURATIONS, *here)
        self.in_flight = Gauge("plexus_in_flight", "Requests under way", ("model",), registry=registry)
        self.redispatches = counter("redispatches_total", "Jobs published again", "reason")
        self.replays = counter("replays_total", "Missing deltas asked for")
        self.gaps = _GapCollector()
        registry.register(self.gaps)
        registry.register(_LoadCollector(replicas))

    def entered(self, model: str) -> None:
        """A request is under way."""
        self._of(self.in_flight, model).inc()

    def left(self, model: str) -> None:
        """It no longer is."""
        self._of(self.in_flight, model).dec()

    def finished(self, flight: Flight) -> None:
        """Count a request whose job has ended."""
        of, here = self._of, (flight.model, flight.worker or _NOWHERE)
        outcome = {"done": "ok", "failed": "error"}.get(flight.state, "cancelled")
        of(self.requests, *here, outcome).inc()
        of(self.completion_tokens, *here).inc(flight.num_tokens)
        of(self.prompt_tokens, *here).inc(flight.usage.prompt_tokens if flight.usage else flight.prompt_tokens)
        if flight.usage is not None:
            of(self.cached_tokens, *here).inc(flight.usage.cached_tokens)
        of(self.duration, *here).observe(flight.ended - flight.started)
        if flight.accepted:
            of(self.queue_wait, flight.model).observe(flight.accepted - flight.started)
        if flight.first_token:
            of(self.first_token, *here).observe(flight.first_token - flight.started)
        streamed_s = flight.last_token - flight.first_token
        if flight.first_token and streamed_s > 0 and flight.num_tokens > 1:
            of(self.speed, *here).observe((flight.num_tokens - 1) / streamed_s)

    def _of(self, metric: Any, *labels: str) -> Any:
        """A series; the library's own way to it checks the labels each time, which costs more than the counting."""
        key = (metric, labels)
        found = self._series.get(key)
        if found is None:
            found = self._series[key] = metric.labels(*labels)
        return found

    def render(self) -> bytes:
        """The text that a scrape gets."""
        return generate_latest(self._registry)
