"""What a server counts, for Prometheus; what its lookups found is counted by the store (``read.counters``)."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = tuple(1e-4 * 2.0**k for k in range(16))
_USERS = tuple(4.0**k for k in range(8))


class ServerCounts:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        at = self.registry
        self.requests = Counter("vista_serve_requests", "Requests answered.", registry=at)
        self.errors = Counter(
            "vista_serve_errors", "Requests refused, and looks that failed.", ["error"], registry=at
        )
        self.seconds = Histogram(
            "vista_serve_request_seconds", "From a request to its answer.", buckets=_SECONDS, registry=at
        )
        self.users = Histogram(
            "vista_serve_lookup_users", "Users of requests looked up together.", buckets=_USERS, registry=at
        )
        self.streams = Gauge("vista_serve_streams", "Exchanges that are open.", registry=at)
        self.ready = Gauge("vista_serve_ready", "1 where it may be asked.", registry=at)

    def text(self, *collectors: Any) -> bytes:
        """All of it in Prometheus' text format, with what other collectors have."""
        more = CollectorRegistry()
        for collector in collectors:
            more.register(collector)
        return bytes(generate_latest(self.registry)) + bytes(generate_latest(more))
