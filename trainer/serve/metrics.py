"""What a server counts, in the format of Prometheus."""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

LATENCIES_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
PREFIX = "trainer_serve_"


class Metrics:
    """Counters of one server, in a registry of its own."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        disable_created_metrics()  # a series beside each that only says since when
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            f"{PREFIX}requests", "Requests by route and status.", ["route", "status"], registry=self.registry
        )
        self.errors = Counter(
            f"{PREFIX}errors", "Failures of the server itself, by kind.", ["kind"], registry=self.registry
        )
        self.latency = Histogram(
            f"{PREFIX}latency_seconds",
            "Seconds from the head of a request to its answer.",
            ["route"],
            buckets=LATENCIES_S,
            registry=self.registry,
        )
        self.queue = Gauge(f"{PREFIX}queue_inputs", "Inputs that wait for a worker.", registry=self.registry)
        self.batches = Histogram(f"{PREFIX}batch_inputs", "Inputs a batch.", buckets=BATCHES, registry=self.registry)
        self.padded = Counter(
            f"{PREFIX}padding", "Tokens that were computed only to fill a batch.", registry=self.registry
        )
        self.reloads = Counter(
            f"{PREFIX}reloads",
            "New exports in the folder, by outcome.",
            ["outcome"],
            registry=self.registry,
        )
        self.ready = Gauge(f"{PREFIX}ready", "1 while requests are accepted.", registry=self.registry)

    def text(self) -> bytes:
        """All values."""
        return generate_latest(self.registry)
