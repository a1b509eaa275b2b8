"""Counters: what they add up to, and that exporting them touches nobody else's registry."""

from __future__ import annotations

import os
import pickle
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_store import Store
from cache_store.errors import MissingUsers
from cache_store.read.counters import LATENCY_BOUNDS, STATUSES, LookupCounters, collector, merged, percentile
from cache_store.testing import Truth
from cache_store.torch.feature import SummaryFeature


@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 3), max_size=9), st.integers(0, 999), st.floats(0, 20)), max_size=8
    )
)
def test_counts_are_the_sums_of_what_was_observed(batches):
    counters = LookupCounters(clock=lambda: 5_000)
    for status, size, seconds in batches:
        counters.observe(np.array(status, np.uint8), size, seconds, published_ms=1_000)
    counts = counters.as_dict()
    flat = [s for status, _, _ in batches for s in status]
    assert counts["lookups"] == len(batches) == sum(counts["latency_seconds"].values())
    assert counts["users"] == len(flat) == sum(counts[name] for name in STATUSES)
    assert [counts[name] for name in STATUSES] == [flat.count(i) for i in range(4)]
    assert counts["bytes"] == sum(size * sum(s != 2 for s in status) for status, size, _ in batches)
    assert counts["generation_age_ms"] == (4_000 if batches else None)


@given(st.lists(st.floats(0, 30), min_size=1, max_size=20))
def test_a_latency_lies_in_the_bucket_whose_bound_is_the_first_at_or_above_it(times):
    counters = LookupCounters()
    for seconds in times:
        counters.observe(np.zeros(0, np.uint8), seconds=seconds)
    counts = counters.as_dict()
    bounds = (*LATENCY_BOUNDS, float("inf"))
    expected = [next(b for b in bounds if s <= b) for s in times]
    assert {b: n for b, n in counts["latency_seconds"].items() if n} == {
        b: expected.count(b) for b in expected
    }
    assert percentile(counts, 100) == max(expected)
    assert percentile(counts, 0) == min(expected)


def test_threads_lose_no_count():
    counters = LookupCounters()
    status = np.array([0, 1, 2, 3, 3], np.uint8)

    def work():
        for _ in range(500):
            counters.observe(status, 10, 1e-4)

    threads = [threading.Thread(target=work) for _ in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    counts = counters.as_dict()
    assert (counts["lookups"], counts["users"], counts["corrupt"], counts["bytes"]) == (
        2000,
        10000,
        4000,
        80000,
    )


def test_a_pickled_copy_starts_at_zero_and_merging_counts_nothing_twice():
    first = LookupCounters()
    first.observe(np.zeros(3, np.uint8), 10, 0.5, published_ms=7)
    second = pickle.loads(pickle.dumps(first))
    assert second.as_dict()["users"] == 0
    second.observe(np.full(2, 2, np.uint8), 20, 0.5, published_ms=5)
    both = merged([first.as_dict(), second.as_dict()])
    assert (both["users"], both["fresh"], both["missing"], both["bytes"]) == (5, 3, 2, 30)
    assert both["generation_published_ms"] == 5
    assert sum(both["latency_seconds"].values()) == 2
    assert merged([])["users"] == 0


def test_a_store_counts_what_its_lookups_found(tmp_path):
    truth = Truth(num_users=20)
    truth.publish(truth.create(tmp_path / "s"), "a", 1000, published_ms=123)
    store = Store.open(tmp_path / "s", missing="raise")
    there = np.flatnonzero(truth.written(1000) >= 0)
    truth.check(store.lookup(truth.users[there]), there, 1000)
    assert store.lookup_raw(truth.users[there[:2]]).generation == store.manifest.generation
    with pytest.raises(MissingUsers):
        store.lookup(np.array([10**12]))
    counts = store.counters.as_dict()
    assert (counts["lookups"], counts["errors"], counts["fresh"]) == (2, 1, len(there) + 2)
    assert counts["bytes"] == (len(there) + 2) * truth.schema.record_bytes
    assert counts["generation_published_ms"] == 123
    truth.publish(Store(tmp_path / "s"), "b", 2000)
    assert store.refresh() == "00000002" and store.refresh() == "00000002"
    assert store.counters.as_dict()["refreshes"] == 1
    SummaryFeature(store)(truth.users[:0])
    with store.pin() as pinned:
        pinned.lookup(truth.users[:0])
    assert store.counters.as_dict()["lookups"] == 4
    copy = pickle.loads(pickle.dumps(store))
    there = np.flatnonzero(truth.written(2000) >= 0)
    truth.check(copy.lookup(truth.users[there]), there, 2000)
    assert copy.counters.as_dict()["lookups"] == 1


def test_a_child_counts_from_zero_even_if_it_was_forked_while_a_thread_was_counting():
    counters = LookupCounters()
    counters.observe(np.zeros(3, np.uint8))
    with counters._lock:  # a lock that nobody in the child will ever release
        pid = os.fork()
        if pid == 0:
            counters.observe(np.zeros(2, np.uint8))
            os._exit(counters.as_dict()["users"])
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 2
    assert counters.as_dict()["users"] == 3


def test_the_exporter_shows_the_dict_and_registers_nothing_by_itself():
    prometheus = pytest.importorskip("prometheus_client")
    before = prometheus.generate_latest(prometheus.REGISTRY)
    counters = LookupCounters(clock=lambda: 61_000)
    registry = prometheus.CollectorRegistry()
    registry.register(collector(counters.as_dict, {"line": "main"}))
    counters.observe(np.array([0, 0, 2], np.uint8), 32, 3e-5, published_ms=1_000)
    value = registry.get_sample_value
    line = {"line": "main"}
    assert value("vista_lookups_total", line) == 1
    assert value("vista_lookup_users_total", {**line, "status": "fresh"}) == 2
    assert value("vista_lookup_users_total", {**line, "status": "corrupt"}) == 0
    assert value("vista_lookup_bytes_total", line) == 64
    assert value("vista_generation_age_seconds", line) == 60
    assert value("vista_lookup_latency_seconds_bucket", {**line, "le": "1e-05"}) == 0
    assert value("vista_lookup_latency_seconds_bucket", {**line, "le": "+Inf"}) == 1
    assert value("vista_lookup_latency_seconds_count", line) == 1
    assert value("vista_lookup_latency_seconds_sum", line) == 3e-5
    names = [
        line.split()[0] for line in prometheus.generate_latest(prometheus.REGISTRY).decode().splitlines()
    ]
    assert not any(name.startswith("vista_") for name in names)
    assert before.count(b"# HELP") == prometheus.generate_latest(prometheus.REGISTRY).count(b"# HELP")
