"""Law 10: no training row sees its own future, whatever was published, and whoever loads it."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from cache_store import Group, Publication, RecordSchema, ShardWriter, Status, Store, bucket_of
from cache_store.errors import KeyKind, SchemaError
from cache_store.torch.feature import SummaryFeature
from cache_store.torch.rows import AsOfBatches, AsOfRows

USERS = np.arange(6)
SCHEMA = RecordSchema((Group("count", 1, 2, "float32"),))


def summary(events: list[tuple[int, int]], user: int, until: int) -> tuple[int, int] | None:
    """What a user's summary holds: number of events until then, and the last one's time."""
    times = [t for u, t in events if u == user and t <= until]
    return (len(times), max(times)) if times else None


def publish(store: Store, events: list[tuple[int, int]], watermark: int, number: int) -> str:
    """Full generation number ``number``: a user's tokens are (events seen, time of the last)."""
    receipts = []
    for shard in range(2):
        with ShardWriter(store.stage(f"r{number}"), shard, 2, SCHEMA, fingerprint="m") as writer:
            for user in USERS[bucket_of(USERS, 2) == shard]:
                seen = summary(events, int(user), watermark)
                if seen:
                    one = np.array([[seen]], np.float32)
                    count, last = np.array([seen[0]]), np.array([seen[1]])
                    writer.add(np.array([user]), {"count": one}, count, last, watermark + 1)
            receipts.append(writer.finish())
    expected = sum(r.records for r in receipts)
    return store.publish(
        store.stage(f"r{number}"),
        receipts,
        Publication(fingerprint="m", watermark_ms=watermark, expected=expected),
    ).generation


@settings(max_examples=15)
@given(
    events=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 60)), max_size=30),
    watermarks=st.lists(st.integers(0, 60), min_size=1, max_size=4).map(sorted),
    rows=st.lists(st.tuples(st.integers(0, 6), st.integers(-1, 70)), min_size=1, max_size=25),
    lag=st.integers(1, 20),
)
def test_a_row_sees_the_newest_summary_that_is_older_than_its_lag(
    tmp_path_factory, events, watermarks, rows, lag
):
    path = tmp_path_factory.mktemp("asof") / "s"
    store = Store.create(path, num_shards=2)
    names = [publish(store, events, w, i) for i, w in enumerate(watermarks)]
    with Store.open(path) as reader:
        users, times = np.array([u for u, _ in rows]), np.array([t for _, t in rows])
        data = AsOfRows(reader, users, times, columns={"label": np.arange(len(rows))}, lag_ms=lag)
        batch = data.batch(np.arange(len(rows)))
        for i, (user, time) in enumerate(rows):
            # The oracle: try every kept generation, in the order of publication.
            allowed = [k for k, w in enumerate(watermarks) if w <= time - lag]
            best = max(allowed, default=None)
            seen = None if best is None else summary(events, user, watermarks[best])
            assert batch["generation"][i] == ("" if best is None else names[best])
            assert batch["status"][i] == (Status.FRESH if seen else Status.MISSING)
            assert batch["tokens"][i, 0].tolist() == list(seen or (0, 0))
            assert batch["label"][i] == i and batch["time"][i] == time and batch["user"][i] == user
            assert batch["last_event_ms"][i] <= max(time - lag, 0)
        if -1 < len(rows) - 1:
            one = data[len(rows) - 1]
            assert torch.equal(one["tokens"], batch["tokens"][-1]) and one["label"] == len(rows) - 1
        # The module reads the same way, one time per batch.
        found = SummaryFeature(reader, ages=True)(USERS, as_of=int(times[0]) - lag)
        allowed = [k for k, w in enumerate(watermarks) if w <= times[0] - lag]
        assert found.generation == (names[max(allowed)] if allowed else "")


@pytest.fixture(scope="module")
def history(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "s"
    rng = np.random.default_rng(5)
    events = list(zip(rng.integers(0, 6, 80).tolist(), rng.integers(0, 400, 80).tolist(), strict=True))
    store = Store.create(path, num_shards=2)
    for i, w in enumerate((100, 200, 300)):
        publish(store, events, w, i)
    return path, events


def rows_of(path) -> AsOfRows:
    rng = np.random.default_rng(6)
    users, times = rng.integers(0, 6, 50), rng.integers(0, 400, 50)
    return AsOfRows(Store.open(path), users, times, columns={"label": np.arange(50)}, lag_ms=10)


def check(batch, events) -> list[int]:
    for i, (user, time) in enumerate(zip(batch["user"].tolist(), batch["time"].tolist(), strict=True)):
        mark = max((w for w in (100, 200, 300) if w <= time - 10), default=None)
        seen = None if mark is None else summary(events, user, mark)
        assert batch["tokens"][i, 0].tolist() == list(seen or (0, 0))
    return batch["label"].tolist()


@pytest.mark.parametrize("workers,method", [(0, None), (2, "fork"), (1, "spawn")])
def test_every_row_comes_once_per_epoch_from_workers_that_read_the_store_themselves(history, workers, method):
    path, events = history
    rows = rows_of(path)
    options = {"num_workers": workers, "multiprocessing_context": method}
    shuffled = AsOfBatches(rows, 7, seed=3)
    seen = [check(batch, events) for batch in DataLoader(shuffled, batch_size=None, **options)]
    assert Counter(sum(seen, [])) == Counter(range(50))
    assert len(seen) == len(shuffled) == 8
    assert sorted(map(tuple, seen)) == sorted(
        tuple(b["label"].tolist()) for b in AsOfBatches(rows, 7, seed=3)
    )
    shuffled.epoch = 1
    assert [b["label"].tolist() for b in shuffled] != seen
    if method != "spawn":
        by_map = DataLoader(rows, batch_size=9, shuffle=True, collate_fn=AsOfRows.collate, **options)
        assert Counter(sum((check(b, events) for b in by_map), [])) == Counter(range(50))


def test_malformed_rows_are_refused(history):
    store = Store.open(history[0])
    users, times = np.arange(3), np.arange(3)
    with pytest.raises(SchemaError, match="lag_ms"):
        AsOfRows(store, users, times, lag_ms=0)
    with pytest.raises(SchemaError, match="times"):
        AsOfRows(store, users, times[:2])
    with pytest.raises(SchemaError, match="label"):
        AsOfRows(store, users, times, columns={"label": times[:2]})
    with pytest.raises(SchemaError, match="tokens"):
        AsOfRows(store, users, times, columns={"tokens": times})
    with pytest.raises(KeyKind):
        AsOfRows(store, ["a", "b", "c"], times)
    with pytest.raises(SchemaError, match="batch_size"):
        AsOfBatches(AsOfRows(store, users, times), 0)
    with pytest.raises(IndexError):
        AsOfRows(store, users, times)[3]
