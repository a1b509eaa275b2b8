"""``vista follow``: every event of a source is in the tables once and live, through kills and bad messages."""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_worlds import CONFIG

from beam_jobs.errors import OptionsError, RunInProgress, SourceLost
from beam_jobs.follow.folding import SLACK
from beam_jobs.follow.service import FollowOptions, Service
from beam_jobs.follow.sources import Arrived, open_source
from beam_jobs.generation import refresh
from beam_jobs.tables import forget
from cache_store import Store
from cache_store.errors import PublishConflict
from vista.data.logs.schema import MissingColumn
from vista.data.tables.reading import read_bucket
from vista.data.tables.warehouse import Warehouse

START = 1_700_000_000_000
ACTIONS = CONFIG.actions


def event(n: int) -> dict[str, object]:
    """Event number n: no two are alike."""
    return {
        "user_id": n % 7,
        "item_id": n % 31,
        "action": ACTIONS[n % len(ACTIONS)],
        "timestamp_ms": START + n,
    }


def message(n: int) -> bytes:
    return json.dumps(event(n)).encode()


class Listed:
    """A source in memory: its position is how many messages were read."""

    name = "listed"

    def __init__(self, messages: list[bytes]):
        self.messages = messages

    def read(self, after: str, most: int, wait_s: float) -> Arrived | None:
        at = int(after or 0)
        found = self.messages[at : at + most]
        return Arrived(str(at + len(found)), found, arrived_ms=START) if found else None


def stored(options: FollowOptions) -> list[tuple[int, int]]:
    """(user, time) of every event in the tables."""
    found = []
    for files in Warehouse(options.warehouse).open().bucket_files().values():
        for batch in read_bucket(files, max_rows=1 << 20):
            owner = np.repeat(batch.users, batch.events.lengths)
            found += zip(owner.tolist(), batch.events.time.tolist(), strict=True)
    return sorted(found)


def expected(count: int) -> list[tuple[int, int]]:
    return sorted((int(event(n)["user_id"]), START + n) for n in range(count))


def live_counts(options: FollowOptions) -> list[int]:
    with Store.open(options.store) as store:
        return store.lookup(np.arange(7)).event_count.tolist()


def follow(options: FollowOptions, source, turns: int) -> list:
    found = []
    service = Service(options, source)
    for turn in service.turns(lambda: len(found) < turns):
        found.append(turn)
    return found


def follow_until(options: FollowOptions, source, events: int) -> int:
    """Turns until so many events are written: how a broker cuts them into batches is its own affair."""
    found: list[int] = []
    asked = iter(range(30))
    for turn in Service(options, source).turns(lambda: sum(found) < events and next(asked, None) is not None):
        found.append(turn.counts["events_written"])
    return sum(found)


def test_events_go_live_turn_by_turn_and_the_position_lies_in_the_tables(options):
    source = Listed([message(n) for n in range(100)])
    turns = follow(options, source, 3)
    assert [t.counts["events_written"] for t in turns] == [40, 40, 20]
    assert [t.position for t in turns] == ["40", "80", "100"]
    assert stored(options) == expected(100)
    assert live_counts(options) == np.bincount(np.arange(100) % 7).tolist()
    source.messages += [message(n) for n in range(100, 110)]
    assert follow(options, source, 1)[0].counts["events_written"] == 10  # another process, the same position
    assert stored(options) == expected(110)


def test_a_service_that_lags_takes_more_events_a_turn_and_fewer_once_it_keeps_up(options):
    source = Listed([message(n) for n in range(200)])
    turns = Service(dataclasses.replace(options, growth=2), source).turns()
    assert [next(turns).counts["events_written"] for _ in range(3)] == [40, 80, 80]
    source.messages += [message(n) for n in range(200, 210)]
    assert next(turns).counts["events_written"] == 10
    source.messages += [message(n) for n in range(210, 260)]
    assert [next(turns).counts["events_written"] for _ in range(2)] == [40, 10]
    turns.close()
    assert stored(options) == expected(260)


def test_a_message_that_is_no_event_is_set_aside_and_the_others_go_in(options):
    bad = [b"", b"{", b"[1]", b'{"user_id": 1}', b"\xff\xfe", b'{"user_id": 1,\n"item_id": 2}']
    (turn,) = follow(options, Listed([message(0), *bad, message(1)]), 1)
    assert (turn.counts["events_written"], turn.counts["dead_rows"]) == (2, len(bad))
    assert stored(options) == expected(2) and turn.position == "8"


def test_users_that_fall_silent_leave_and_come_back_whole(options):
    day, now = 86_400_000, int(time.time() * 1000)
    asked = FollowOptions(**{**vars(options), "expire_after_ms": 30 * day, "expire_s": 1e-9})
    old = [message(n) for n in range(70)]
    recent = [json.dumps({**event(n), "timestamp_ms": now - n}).encode() for n in range(70) if n % 7 < 3]
    follow(options, Listed(old), 2)
    assert (np.array(live_counts(options)) == 10).all()
    source = Listed([*old, *recent])
    turn = follow(asked, source, 1)[-1]
    assert turn.counts["expired"] == 4
    assert live_counts(options) == [20, 20, 20, 0, 0, 0, 0]
    source.messages.append(json.dumps({**event(3), "timestamp_ms": now}).encode())
    follow(asked, source, 1)
    assert live_counts(options) == [20, 20, 20, 11, 0, 0, 0]


def test_what_was_set_aside_outlives_the_runs_that_are_removed(options):
    messages = [m for n in range(6) for m in (message(n), b"{")]
    options = FollowOptions(**{**vars(options), "batch_events": 2, "tidy_s": 1e-9, "keep_runs": 1})
    follow(options, Listed(messages), 6)
    kept = [p for p in Path(options.run_dir).iterdir() if p.name.startswith(("ingest", "refresh"))]
    letters = [
        *Path(options.run_dir).glob("dead-letters/*"),
        *Path(options.run_dir).glob("*/dead-letters.parquet"),
    ]
    assert len(kept) <= 4 and sum(pq.read_metadata(p).num_rows for p in letters) == 6


def test_a_long_service_keeps_the_tables_the_store_and_its_runs_small(options):
    options = FollowOptions(
        **{**vars(options), "batch_events": 3, "tidy_s": 1e-9, "keep_s": 0, "most_files": 4, "max_depth": 3}
    )
    open_files: list[int] = []
    end = time.monotonic() + 60

    def most() -> int:
        return max(len(files) for files in Warehouse(options.warehouse).open().bucket_files().values())

    def go_on() -> bool:
        # files are merged up to what is folded, and where the machine is busy folding ends after the last event
        return len(open_files) < 16 or (most() > 8 and time.monotonic() < end)

    gc.disable()  # what is open must not wait for a collection
    try:
        for _ in Service(options, Listed([message(n) for n in range(48)])).turns(go_on):
            open_files.append(len(os.listdir("/proc/self/fd")))
    finally:
        gc.enable()
    assert open_files[-1] <= open_files[7]
    assert most() <= 8
    assert len(Warehouse(options.warehouse).open().history.snapshots()) <= 12
    with Store.open(
        options.store
    ) as store:  # a fold is built beside the turns, which wait for it at nine deltas
        assert len(store.generations()) <= 13 and store.manifest.depth <= 3 * SLACK
    assert stored(options) == expected(48) and sum(live_counts(options)) == 48


@pytest.mark.parametrize("killed", [False, True], ids=["folds", "every-fold-is-killed"])
def test_deltas_are_folded_beside_the_turns_and_by_the_turns_where_that_fails(options, killed):
    options = FollowOptions(**{**vars(options), "batch_events": 4, "max_depth": 2})
    source, told, depths = Listed([message(n) for n in range(36)]), [], []
    service = Service(options, source)
    for turn in service.turns(lambda: len(told) < 9):
        told.append(turn)
        if killed and service._folding._child is not None:
            service._folding._child.kill()
            service._folding._child.wait(30)
        with Store.open(options.store) as store:
            depths.append(store.manifest.depth)
            assert sum(store.lookup(np.arange(7)).event_count.tolist()) == 4 * len(told)
    assert Store(options.store).verify().problems == []
    folded = [words for turn in told for words in turn.tidied if words.startswith("folded")]
    assert max(depths) <= 6 and (not folded if killed else folded)  # turns wait at the latest there
    assert stored(options) == expected(36) and live_counts(options) == np.bincount(np.arange(36) % 7).tolist()


def test_a_compaction_meanwhile_costs_the_follower_a_refresh_and_not_its_life(options, monkeypatch):
    source = Listed([message(n) for n in range(80)])
    follow(options, source, 2)
    source.messages += [message(n) for n in range(80, 90)]
    publish, before = refresh.to_generation, []

    def overtaken(run, store, *more):
        if not before:
            before.append(Store(options.store).compact())
        return publish(run, store, *more)

    monkeypatch.setattr(refresh, "to_generation", overtaken)
    (turn,) = follow(options, source, 1)
    assert before and turn.generation > before[0]
    assert live_counts(options) == np.bincount(np.arange(90) % 7).tolist()
    runs = sorted(p.name for p in Path(options.run_dir).glob("refresh-*"))
    assert len(runs) == 3  # nothing is left of the one that was overtaken


def test_a_refresh_that_was_overtaken_says_so_and_not_that_a_bucket_failed(options, monkeypatch):
    follow(options, Listed([message(n) for n in range(80)]), 2)
    asked = refresh.RefreshOptions(
        warehouse=options.warehouse, bundle=options.bundle, store=options.store, run_dir=options.run_dir + "-by-hand",
        users=[1], progress=False,
    )  # fmt: skip
    publish = refresh.to_generation

    def overtaken(run, store, *more):
        Store(options.store).compact()
        return publish(run, store, *more)

    monkeypatch.setattr(refresh, "to_generation", overtaken)
    with pytest.raises(PublishConflict, match="another publisher was faster"):
        refresh.run(asked, ("--engine=here",))


def test_forgetting_meanwhile_costs_the_follower_a_refresh_and_not_its_life(options, monkeypatch):
    source = Listed([message(n) for n in range(80)])
    follow(options, source, 2)
    source.messages += [message(n) for n in range(80, 90)]
    publish, done = refresh.to_generation, []

    def overtaken(run, store, *more):
        if not done:
            asked = forget.ForgetOptions([3], options.warehouse, (options.store,), (), now_ms=START + 89)
            done.append(forget.run(asked))
        return publish(run, store, *more)

    monkeypatch.setattr(refresh, "to_generation", overtaken)
    follow(options, source, 1)
    wanted = np.bincount(np.arange(90) % 7)
    wanted[3] = 0
    assert done and live_counts(options) == wanted.tolist()


def test_a_second_service_on_the_same_folder_is_refused(options):
    turns = Service(options, Listed([message(0)])).turns()
    next(turns)
    with pytest.raises(RunInProgress):
        next(Service(options, Listed([message(1)])).turns())


def test_files_that_appear_in_a_folder_are_taken_once_and_half_written_ones_are_not(options, tmp_path):
    logs = tmp_path / "logs"
    (logs / "day=1").mkdir(parents=True)
    rows = [event(n) for n in range(30)]
    pq.write_table(pa.Table.from_pylist(rows[:10]), logs / "day=1" / "a.parquet")
    (logs / "b.jsonl").write_bytes(b"".join(message(n) + b"\n" for n in range(10, 30)))
    for name in (".c.parquet", "_d.parquet", "e.parquet.tmp", "notes.md"):
        (logs / name).write_bytes(b"half")
    for path in logs.rglob("*"):
        os.utime(path, (1_700_000_000, 1_700_000_000))
    assert follow(options, open_source(str(logs)), 1)[0].counts["events_written"] == 30
    assert (
        not Service(options, open_source(str(logs)))
        ._ingest(Arrived("", files=[str(logs / "b.jsonl")]))
        .counts["events"]
    )
    assert stored(options) == expected(30)


@pytest.mark.parametrize("url", ["nowhere/at/all", "redis://localhost", "kafka://", "http://x/y"])
def test_a_source_that_is_none_is_told_with_an_example(url):
    if url.startswith("kafka"):
        pytest.importorskip("confluent_kafka")
    with pytest.raises(OptionsError, match="expected"):
        open_source(url)


# Redis --------------------------------------------------------------------------------------------------


SERVE = """
import pickle, sys, torch
torch.set_num_threads(1)
from beam_jobs.follow.service import Service
from beam_jobs.follow.sources import open_source
options, url = pickle.loads(bytes.fromhex(sys.argv[1]))
for turn in Service(options, open_source(url)).turns():
    print(turn.position, flush=True)
"""


def test_killed_at_random_moments_no_event_of_a_stream_is_lost_or_taken_twice(options, redis_server):
    import pickle

    client, url = redis_server
    source, count, rng = open_source(url), 0, random.Random(os.urandom(8))
    for _ in range(3):
        for n in range(count, count := count + rng.randrange(90, 130)):
            client.xadd("events", {"event": message(n)})
        child = subprocess.Popen(
            [sys.executable, "-c", SERVE, pickle.dumps((options, url)).hex()],
            stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        limit = threading.Timer(60, child.kill)
        limit.start()
        for _ in range(rng.randrange(0, 3)):  # of three turns or more
            child.stdout.readline()
        limit.cancel()
        time.sleep(rng.random() * 0.4)
        child.send_signal(signal.SIGKILL)
        child.wait(30)
        child.stdout.close()
    service = Service(options, source)
    for _ in service.turns(
        lambda: (
            service.position.partition(" ")[0] != client.xinfo_stream("events")["last-generated-id"].decode()
        )
    ):
        pass
    assert stored(options) == expected(count) and sum(live_counts(options)) == count


def test_entries_that_were_trimmed_unread_are_an_error_and_no_gap(options, redis_server):
    client, url = redis_server
    for n in range(10):
        client.xadd("events", {"event": message(n)})
    small = FollowOptions(**{**vars(options), "batch_events": 4})
    follow(small, open_source(url), 1)
    client.xtrim("events", maxlen=2, approximate=False)
    with pytest.raises(SourceLost, match="trimmed unread"):
        follow(small, open_source(url), 1)
    assert stored(options) == expected(4)


# Kafka, by librdkafka's own mock of a cluster ------------------------------------------------------------


def test_a_topic_of_several_partitions_is_read_once_from_the_tables_own_offsets(options):
    kafka = pytest.importorskip("confluent_kafka")
    producer = kafka.Producer({"test.mock.num.brokers": 1, "bootstrap.servers": "ignored"})
    metadata = producer.list_topics(timeout=10)
    broker = next(iter(metadata.brokers.values()))
    url = f"kafka://{broker.host}:{broker.port}/events"
    for n in range(60):
        producer.produce("events", message(n), partition=n % 4)
    producer.flush(10)
    wide = FollowOptions(**{**vars(options), "batch_events": 25, "batch_s": 2.0})
    assert follow_until(wide, open_source(url), 60) == 60
    assert stored(options) == expected(60)
    for n in range(60, 70):
        producer.produce("events", message(n), partition=n % 4)
    producer.flush(10)
    assert follow_until(wide, open_source(url), 10) == 10
    assert stored(options) == expected(70)


# What is no event ---------------------------------------------------------------------------------------


def test_a_batch_of_nothing_but_nonsense_is_set_aside_and_the_stream_goes_on(options):
    nonsense = [b"nonsense", b"[]", b'"text"', b""] * 10
    source = Listed(
        [*nonsense, *(message(n) for n in range(40)), *nonsense, *(message(n) for n in range(40, 60))]
    )
    told = [turn for turns in (1, 2, 1) for turn in follow(options, source, turns)]
    assert [t.position for t in told] == ["40", "80", "120", "140"]
    assert stored(options) == expected(60)
    kept = sorted((Path(options.run_dir) / "dead-letters").glob("set-aside-*.jsonl"))
    assert [len(path.read_bytes().splitlines()) for path in kept] == [40, 40]
    assert "set aside 40 messages" in told[0].tidied[0]


def test_messages_without_the_declared_columns_are_a_fault_of_the_options_until_one_batch_was_understood(
    options,
):
    other = [b'{"user": 1, "thing": 2}'] * 40
    with pytest.raises(MissingColumn, match="user_id"):
        follow(options, Listed(list(other)), 1)
    source = Listed([*(message(n) for n in range(40)), *other])
    assert [t.position for t in follow(options, source, 2)] == ["40", "80"]
    assert stored(options) == expected(40)


def test_a_file_whose_date_lies_ahead_of_the_clock_is_taken_once_it_stays_as_it_is(tmp_path):
    """Copied from a host whose clock goes otherwise, or the clock of this one went back."""
    file = tmp_path / "a.jsonl"
    file.write_bytes(message(1))
    ahead = time.time() + 86_400
    os.utime(file, (ahead, ahead))
    source = open_source(str(tmp_path))
    assert source.read("", 10, wait_s=0) is None
    found = source.read("", 10, wait_s=60)
    assert found.files == [str(file)] and found.arrived_ms < ahead * 1000 - 3_600_000
    assert source.read("", 10, wait_s=0) is None


def test_a_file_that_is_no_log_is_told_and_does_not_stop_the_folder(options, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    old = time.time() - 60
    for name, text in {
        "a.jsonl": message(1),
        "notes.csv": b"a note\nof mine\n",
        "b.jsonl": message(2),
    }.items():
        (folder / name).write_bytes(text)
        os.utime(folder / name, (old, old))
    (turn,) = follow(options, open_source(str(folder)), 1)
    assert turn.counts["events_written"] == 2 and turn.counts["bad_files"] == 1
    assert "notes.csv" in turn.tidied[0] and (folder / "notes.csv").exists()
