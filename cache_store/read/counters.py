"""What a reader counts: a plain dict always, a Prometheus collector by the extra ``prometheus``.

    store = Store.open(path)
    store.lookup(users)
    store.counters.as_dict()                             # {"lookups": 1, "users": 512, "fresh": 509, "missing": 3, ...}
    registry.register(collector(store.counters.as_dict)) # your registry; nothing is registered here

Counting costs one ``bincount`` and one lock per batch (about 2 µs), never anything per record. The names are those of
:class:`cache_store.read.snapshot.Status`, and the same in the dict, in the exporter and in the runbook.
"""

from __future__ import annotations

import bisect
import itertools
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from cache_store.errors import StoreError
from cache_store.read.options import wall_clock
from cache_store.read.snapshot import Status

STATUSES = tuple(status.name.lower() for status in Status)
"""Names of the status values 0 to 3."""

LATENCY_BOUNDS: tuple[float, ...] = tuple(1e-5 * 2.0**i for i in range(20))
"""Upper bounds of the latency buckets in seconds: 10 µs, doubling, to 5.2 s; one more bucket has no bound."""

_SUMS = ("lookups", "users", *STATUSES, "bytes", "errors", "refreshes", "latency_seconds_sum")


class LookupCounters:
    """Counters of one reader; safe under threads, after a fork and through pickle.

    Every process counts for itself, from zero, so that :func:`merged` counts nothing twice.

    Args:
        clock: milliseconds since the Unix epoch; decides the generation's age.
    """

    def __init__(self, clock: Callable[[], int] = wall_clock) -> None:
        self._clock = clock
        self._start()

    def _start(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._sums: dict[str, float] = dict.fromkeys(_SUMS, 0)
        self._buckets = [0] * (len(LATENCY_BOUNDS) + 1)
        self._published_ms: int | None = None

    def observe(
        self, status: np.ndarray, record_bytes: int = 0, seconds: float = 0.0, published_ms: int | None = None
    ) -> None:
        """Count one lookup.

        Args:
            status: uint8 [B].
            record_bytes: of one record; every row but the missing ones is one.
            seconds: how long the lookup took.
            published_ms: of the generation that was read.
        """
        counts = np.bincount(status, minlength=len(STATUSES)).tolist()
        bucket = bisect.bisect_left(LATENCY_BOUNDS, seconds)
        with self._own_lock():
            sums = self._sums
            sums["lookups"] += 1
            sums["users"] += len(status)
            for name, count in zip(STATUSES, counts, strict=False):
                sums[name] += count
            sums["bytes"] += (len(status) - counts[Status.MISSING]) * record_bytes
            sums["latency_seconds_sum"] += seconds
            self._buckets[bucket] += 1
            if published_ms is not None:
                self._published_ms = published_ms

    def add(self, name: str, amount: int = 1) -> None:
        """Count something that is not a lookup: ``errors`` or ``refreshes``."""
        with self._own_lock():
            self._sums[name] += amount

    def as_dict(self) -> dict[str, Any]:
        """The counts now.

        ``lookups``, ``users``, ``fresh``, ``stale``, ``missing``, ``corrupt``, ``bytes``, ``errors``, ``refreshes``
        are totals; ``latency_seconds_sum`` is a float; ``latency_seconds`` maps the upper bound of a bucket (seconds,
        the last ``inf``) to the lookups in it alone; ``generation_published_ms`` and ``generation_age_ms`` are of the
        last generation read, None before the first lookup.
        """
        with self._own_lock():
            out: dict[str, Any] = dict(self._sums)
            buckets, published = list(self._buckets), self._published_ms
        now = int(self._clock())
        out["latency_seconds"] = dict(zip((*LATENCY_BOUNDS, float("inf")), buckets, strict=True))
        out["generation_published_ms"] = published
        out["generation_age_ms"] = None if published is None else max(0, now - published)
        return out

    def _own_lock(self) -> threading.Lock:
        # After a fork the parent's counts are its own, and its lock may never be released here.
        if self._pid != os.getpid():
            self._start()
        return self._lock

    def __getstate__(self) -> dict[str, Any]:
        return {"_clock": self._clock}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state)
        self._start()


def merged(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """One dict for many readers: totals add up, the oldest generation speaks for all."""
    parts = list(parts)
    if not parts:
        return LookupCounters().as_dict()
    out: dict[str, Any] = {name: sum(p[name] for p in parts) for name in _SUMS}
    bounds = (*LATENCY_BOUNDS, float("inf"))
    out["latency_seconds"] = {b: sum(p["latency_seconds"][b] for p in parts) for b in bounds}
    published = [p["generation_published_ms"] for p in parts if p["generation_published_ms"] is not None]
    ages = [p["generation_age_ms"] for p in parts if p["generation_age_ms"] is not None]
    out["generation_published_ms"] = min(published, default=None)
    out["generation_age_ms"] = max(ages, default=None)
    return out


def percentile(counts: Mapping[str, Any], q: float) -> float | None:
    """Upper bound in seconds of the bucket that holds the q-th (0 to 100) percentile; None before the first lookup."""
    buckets = counts["latency_seconds"]
    total = sum(buckets.values())
    if not total:
        return None
    seen = 0
    for bound, count in buckets.items():
        seen += count
        if seen >= max(1, total * q / 100):
            return float(bound)
    return float("inf")


def collector(read: Callable[[], Mapping[str, Any]], labels: Mapping[str, str] | None = None) -> Any:
    """A collector for a ``prometheus_client.CollectorRegistry``; it reads the dict at each scrape.

    Nothing is registered: hand the result to the registry you serve. Families: ``vista_lookups_total``,
    ``vista_lookup_users_total{status=…}``, ``vista_lookup_bytes_total``, ``vista_lookup_errors_total``,
    ``vista_refreshes_total``, ``vista_lookup_latency_seconds`` (histogram), ``vista_generation_age_seconds``.

    Args:
        read: gives the dict of :meth:`LookupCounters.as_dict`, for one reader or :func:`merged` for many.
        labels: added to every sample, such as ``{"line": "main"}``.

    Raises:
        StoreError: the extra is not installed.
    """
    try:
        from prometheus_client import core
    except ImportError as error:
        raise StoreError(
            "metrics.collector: prometheus_client is not installed; run `pip install 'vista-cache[prometheus]'`, or "
            "read the plain dict of LookupCounters.as_dict()"
        ) from error
    names, values = list(labels or {}), [str(v) for v in (labels or {}).values()]

    def one(kind: Any, name: str, text: str, *value: Any) -> Any:
        family = kind(name, text, labels=names)
        family.add_metric(values, *value)
        return family

    class Collector:
        def collect(self) -> Iterator[Any]:
            counts, counter = read(), core.CounterMetricFamily
            yield one(counter, "vista_lookups", "Batches looked up.", counts["lookups"])
            users = counter(
                "vista_lookup_users", "Users looked up, by what was found.", labels=[*names, "status"]
            )
            for status in STATUSES:
                users.add_metric([*values, status], counts[status])
            yield users
            yield one(counter, "vista_lookup_bytes", "Bytes of records read.", counts["bytes"])
            yield one(counter, "vista_lookup_errors", "Lookups that raised an error.", counts["errors"])
            yield one(counter, "vista_refreshes", "Moves to another generation.", counts["refreshes"])
            cumulated = itertools.accumulate(counts["latency_seconds"].values())
            bounds = ["+Inf" if bound == float("inf") else repr(bound) for bound in counts["latency_seconds"]]
            buckets, total = list(zip(bounds, cumulated, strict=True)), counts["latency_seconds_sum"]
            name = "vista_lookup_latency_seconds"
            yield one(core.HistogramMetricFamily, name, "Time of a lookup.", buckets, total)
            if (age := counts["generation_age_ms"]) is not None:
                name, text = "vista_generation_age_seconds", "Since the generation being read was published."
                yield one(core.GaugeMetricFamily, name, text, age / 1000)

    return Collector()
