"""Merging the small files of the tables changes how they are read, and nothing that is read."""

from __future__ import annotations

import json
import posixpath
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from small_worlds import NOW, START, World, all_events, histories

from beam_jobs.errors import BucketFailed, OptionsError
from beam_jobs.generation import refresh, summarize
from beam_jobs.run.runner import local_args
from beam_jobs.tables import compact as compact_tables
from cache_store.format.keys import bucket_of
from vista.data.arrow import write_table
from vista.data.events import Events
from vista.data.tables import content
from vista.data.tables.appending import append
from vista.data.tables.commits import Addition, commit
from vista.data.tables.compaction import Merge, mergeable, merges, most_files, publish_merges, write_merged
from vista.data.tables.forgetting import forget_users
from vista.data.tables.ledger import LedgerRow
from vista.data.tables.manifests import DataFile
from vista.data.tables.pruning import prune
from vista.data.tables.reading import read_impressions
from vista.data.tables.rows import IMPRESSIONS, Rows, SortedWriter
from vista.data.tables.undoing import undo
from vista.errors import DataError


def ingested(world: World, times: int, users: int = 12, start: int = START) -> World:
    """As many small ingests, each with some users and a file per bucket."""
    rng = np.random.default_rng(1)
    for n in range(times):
        some = np.sort(rng.choice(users, 9, replace=False)).astype(np.int64)
        world.add(some, histories(rng, rng.integers(1, 6, 9), start + n * 10**8))
    return world


def options(world: World, run: str = "compact", **more) -> compact_tables.CompactOptions:
    where = {"warehouse": str(world.path / "tables"), "run_dir": str(world.path / run), "now_ms": NOW}
    return compact_tables.CompactOptions(**{**where, "stores": (str(world.path / "store"),), **more})


def files_of(world: World) -> dict[int, list[DataFile]]:
    return world.tables.bucket_files()


@pytest.mark.parametrize("args", [(), local_args("multi_processing", 2)])
def test_merged_tables_give_the_same_history_items_and_summaries(small_world, args):
    world = ingested(small_world, 9)
    before, items, events = files_of(world), world.tables.read_items(), all_events(world)
    digest = summarize.run(world.summarize("before", "r1")).digests["content"]
    assert min(len(fs) for fs in before.values()) >= 9 and most_files(world.tables) == (10, 2)
    record = compact_tables.run(options(world, everything=True), args)
    after = files_of(world)
    assert [len(fs) for fs in after.values()] == [1, 1] and most_files(world.tables) == (1, 0)
    assert record.counts["files"] == sum(len(fs) for fs in before.values())
    assert record.counts["events"] == sum(f.rows for fs in after.values() for f in fs)
    merged = all_events(world)
    assert merged[0].tolist() == events[0].tolist()
    assert all((merged[1].columns[n] == c).all() for n, c in events[1].columns.items())
    for column in ("item", "events", "surface"):
        assert (getattr(world.tables.read_items(), column) == getattr(items, column)).all()
    assert summarize.run(world.summarize("after", "r2")).digests["content"] == digest
    again = compact_tables.run(options(world, "again", everything=True))
    assert again.counts["buckets"] == 0 and again.notes == ["no bucket is due"]


def test_a_refresh_goes_on_by_a_delta_over_merged_files(small_world):
    world = ingested(small_world, 9)
    summarize.run(world.summarize())
    ingested(world, 2, start=START + 10**12)
    assert "last 2 commits stay apart" in compact_tables.run(options(world)).notes[0]
    assert [len(fs) for fs in files_of(world).values()] == [3, 3], (
        "what the generation has not seen stays apart"
    )
    done = refresh.run(world.refresh())
    assert done.notes == [] and done.counts["resumed"] == done.counts["users"] > 0
    full = summarize.run(world.summarize("other", "other-run"))
    with world.store() as store, world.store("other") as other:
        users = np.concatenate([other.users(b) for b in range(2)])
        assert (store.lookup(users).event_count == other.lookup(users).event_count).all()
        assert full.counts["users"] == len(users)
    # The old snapshot goes when no generation needs it; a refresh from what it was still knows what is new.
    gone = prune(world.tables, (), before_ms=2**62)
    assert len(gone.files) >= 18 and all(not Path(f.removeprefix("file://")).exists() for f in gone.files)
    world.add(
        np.arange(3, dtype=np.int64), histories(np.random.default_rng(0), np.full(3, 2), START + 10**13)
    )
    assert refresh.run(world.refresh(run="refresh2")).counts["events"] == 6


def test_merging_over_a_generation_is_refused_by_readers_that_ask_what_came_since(small_world):
    world = ingested(small_world, 3)
    parent = summarize.run(world.summarize()).table_snapshot
    ingested(world, 2, start=START + 10**12)
    compact_tables.run(options(world, stores=(), everything=True))
    with pytest.raises(DataError, match=r"merged over it.*vista summarize"):
        world.tables.bucket_files(since=parent)
    done = refresh.run(world.refresh())
    assert "full instead of delta" in done.notes[0]


def test_snapshots_of_kept_generations_are_not_pruned(small_world):
    world = ingested(small_world, 9)
    parent = summarize.run(world.summarize()).table_snapshot
    compact_tables.run(options(world))
    kept = prune(world.tables, {parent}, before_ms=2**62)
    assert parent not in kept.snapshots and world.tables.bucket_files(snapshot=parent)
    assert summarize.run(world.summarize("old", "old-run", snapshot=parent)).counts["dead_letters"] == 0


def test_a_user_forgotten_while_files_are_merged_does_not_come_back(small_world):
    world = ingested(small_world, 9)
    tables = world.tables
    user = 3
    bucket = int(bucket_of(np.array([user]), 2)[0])
    due = merges(tables, "slow-run", everything=True)
    for merge in due:
        write_merged(merge, 1_000)
    forget_users(world.tables, [user])
    done = publish_merges(tables, due, "slow-run")
    # forget sweeps what no snapshot has, the targets of a compaction under way too: it starts again.
    assert done == [] and user not in all_events(world)[0]
    assert all(Path(f.path.removeprefix("file://")).exists() for fs in files_of(world).values() for f in fs)
    compact_tables.run(options(world, everything=True))
    assert len(files_of(world)[bucket]) == 1 and user not in all_events(world)[0]


def test_impressions_are_merged_too(small_world):
    world = small_world
    for n in range(3):
        tables = world.tables
        uri = tables.data_uri(IMPRESSIONS, tables.commit_number + 1, f"shown{n}", 1)
        columns = {name: np.arange(4) + 10 * n for name in ("time", "request", "item")}
        columns |= {"position": np.zeros(4, np.int32), "action": np.zeros(4, np.int32)}
        with SortedWriter(uri, IMPRESSIONS, "int64", 1) as writer:
            writer.write(Rows(np.array([1, 2]), np.array([2, 2]), columns))
        commit(tables, Addition(f"shown{n}", impressions=[uri]))
    compact_tables.run(options(world, everything=True))
    files = world.tables.bucket_files(kind=IMPRESSIONS)[1]
    assert [(f.rows, f.commit - f.first_commit) for f in files] == [(12, 2)]
    assert sum(len(b.time) for b in read_impressions(files, max_rows=5)) == 12


def test_what_items_are_about_is_the_same_in_one_file_and_no_run_can_be_taken_out_of_it(small_world):
    tables, rng = small_world.tables, np.random.default_rng(2)
    tables.create_content()

    def tell(n: int) -> None:
        rows = pa.table(
            {
                "item_id": np.arange(n, n + 4),
                "category": [f"c{n}", None, None, f"d{n}"],
                "text": [None, f"t{n}", None, None],
                "vector": [
                    rng.normal(size=3).astype(np.float32),
                    None,
                    rng.normal(size=3).astype(np.float32),
                    None,
                ],
            }
        )
        number = small_world.tables.commit_number + 1
        folder = posixpath.join(tables.table("content").location(), "data")
        uri = write_table(rows.cast(content.ARROW_SCHEMA), f"{folder}/{number:08d}-run{n}-00000.parquet")
        told = LedgerRow(f"{n}.csv", 1, f"{n:032x}", 4, "items")
        commit(small_world.tables, Addition(f"run{n}", content=[uri], sources=[told]))

    def about() -> list[list]:
        found = small_world.tables.read_content()
        return [getattr(found, name).tolist() for name in ("item", "category", "text", "vector", "vector_of")]

    for n in range(3):
        tell(n)
    before = about()
    record = compact_tables.run(options(small_world, everything=True))
    assert record.counts["content_files"] == 3 and about() == before
    with pytest.raises(DataError, match="merged with others' by vista compact"):
        undo(small_world.tables, "run1")
    assert about() == before
    tell(7)
    assert about()[0] == [*before[0], 7, 8, 9, 10]
    undo(small_world.tables, "run7")
    assert about() == before


def test_a_compaction_that_was_killed_anywhere_continues_to_the_same_files(tmp_path):
    script = Path(__file__).parents[1] / "killing_compact.py"
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), "2"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    outcomes = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(outcomes) > 4
    for outcome in outcomes:
        assert outcome["digests"] == outcomes[0]["digests"] and outcome["exit_code"] == 0
        assert outcome["item_events"] == 180
        assert outcome["orphans"] >= outcomes[0]["orphans"]  # what a killed writer left goes with the rest


def test_a_file_that_is_gone_fails_the_run_and_leaves_the_tables_as_they_were(small_world):
    world = ingested(small_world, 3)
    before = files_of(world)
    path = Path(before[0][0].path.removeprefix("file://"))
    data = path.read_bytes()
    path.unlink()
    with pytest.raises(BucketFailed, match=r"history-00000.*vista compact"):
        compact_tables.run(options(world, everything=True))
    assert files_of(world) == before
    path.write_bytes(data)
    assert compact_tables.run(options(world, everything=True)).counts["buckets"] == 2


def test_sizes_rise_in_steps_and_files_of_others_are_left():
    def file(commit: int, size: int) -> DataFile:
        return DataFile(f"{commit:08d}", 0, size, size, commit=commit, first_commit=commit)

    small = [file(n, 10) for n in range(2, 12)]
    assert mergeable([file(1, 100_000), *small], 99, 8, False) == small
    assert mergeable([file(1, 100_000), *small], 99, 8, True) == [file(1, 100_000), *small]
    assert mergeable([file(1, 300), *small], 99, 8, False) == [file(1, 300), *small]
    assert mergeable(small, 9, 8, False) == [] and mergeable(small, 9, 3, False) == small[:8]
    foreign = DataFile("part-0", 0, 5, 5)
    assert mergeable([foreign, *small], 99, 8, True) == small and mergeable([foreign], 99, 8, True) == []


def test_a_merge_that_loses_rows_is_an_error(small_world):
    due = merges(ingested(small_world, 2).tables, "run", everything=True)[0]
    wrong = Merge(due.table, due.bucket, due.files[:1] * 2, due.target, due.user_kind)
    short = DataFile(due.files[0].path, due.bucket, due.files[0].rows + 1, 1, commit=1, first_commit=1)
    write_merged(wrong, 100)  # doubles are dropped, and known
    with pytest.raises(DataError, match="expected .* rows in 2 files"):
        write_merged(Merge(due.table, due.bucket, (short, due.files[1]), due.target, due.user_kind), 100)
    with pytest.raises(OptionsError, match="most: expected at least 1"):
        options(small_world, most=0)


def test_an_empty_table_has_nothing_to_merge(tmp_path, bundle_path):
    world = World(tmp_path, bundle_path).create(2)
    assert compact_tables.run(options(world)).counts["buckets"] == 0
    assert most_files(world.tables) == (0, 0)
    append(world.tables, np.array([1]), Events.of([1], item=[1], time=[1]), np.array([0]))
    assert compact_tables.run(options(world, "two", everything=True)).counts["buckets"] == 0
