"""Ingests beside other ingests, forgetting and undoing: nothing lost, nothing twice, nobody back."""

from __future__ import annotations

import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyiceberg.io.pyarrow import schema_to_pyarrow
from pyiceberg.schema import Schema
from small_logs import LOCAL, T0, content, options

from beam_jobs.ingest import job as ingest
from beam_jobs.run import leftovers
from beam_jobs.run.job import Job, Run
from beam_jobs.run.record import RunDirectory, RunRecord
from beam_jobs.tables import forget
from cache_store.format import layout
from vista import small_text
from vista.data.tables import ledger
from vista.data.tables.commits import Addition, commit
from vista.data.tables.forgetting import forget_users
from vista.data.tables.manifests import TableChanged
from vista.data.tables.remembering import forgotten_users
from vista.data.tables.schemas import SOURCES
from vista.data.tables.undoing import undo
from vista.data.tables.warehouse import Warehouse
from vista.errors import DataError


def table(*rows, action="view"):
    """(user, item, seconds after T0) each."""
    users, items, seconds = zip(*rows, strict=True)
    times = [T0 + 1_000 * s for s in seconds]
    return pa.table(
        {"user_id": users, "item_id": items, "action": [action] * len(rows), "timestamp_ms": times}
    )


def file(tmp_path, name, *rows, **more):
    pq.write_table(table(*rows, **more), tmp_path / name)
    return str(tmp_path / name)


def tables(tmp_path):
    return Warehouse(tmp_path / "table").open()


def planned(asked):
    """As far as a run gets that is killed once it has planned; its directory."""
    directory, record = RunDirectory.start(
        asked.run_dir, job="ingest", identity=asked.identity(), started_ms=T0 + 10**9
    )
    ingest.make_plan(asked, Warehouse(asked.warehouse), directory, record, LOCAL)
    return directory


def test_a_run_that_was_overtaken_builds_again_for_the_tables_of_now(tmp_path):
    ingest.run(options(tmp_path, file(tmp_path, "a", (1, 1, 0), action="view"), "first"), LOCAL)
    slow = options(tmp_path, file(tmp_path, "b", (2, 2, 0), (1, 1, 0), action="buy"), "slow")
    planned(slow)
    ingest.run(options(tmp_path, file(tmp_path, "c", (3, 3, 0), action="complain"), "fast"), LOCAL)
    record = ingest.run(slow, LOCAL)
    assert record.exit_code == 0 and tables(tmp_path).actions == ("view", "complain", "buy")
    assert {(r[0], r[2]) for r in content(tmp_path)} == {(1, 1), (1, 4), (2, 4), (3, 2)}
    commits = [f.commit for files in tables(tmp_path).bucket_files().values() for f in files]
    assert sorted(set(commits)) == [1, 2, 3] and tables(tmp_path).commit_number == 3


def test_a_commit_for_other_tables_than_those_of_now_is_refused_whole(tmp_path):
    ingest.run(options(tmp_path, file(tmp_path, "a", (1, 1, 0)), "first"), LOCAL)
    warehouse, basis = tables(tmp_path), tables(tmp_path).basis()
    forget_users(tables(tmp_path), [9])
    row = ledger.LedgerRow("x", 1, "d", 1, "events")
    with pytest.raises(TableChanged) as caught:
        commit(warehouse, Addition("late", sources=[row], basis=basis))
    assert caught.value.exit_code == 4 and len(ledger.entries(tables(tmp_path))) == 1


@pytest.mark.parametrize("same", [True, False])
def test_first_ingests_that_start_together_both_end_well_and_count_every_event_once(tmp_path, same):
    names = [
        file(tmp_path, f"{k}.parquet", (0 if same else k, 1, 0), (7, k * (not same), 5)) for k in range(2)
    ]
    command = [sys.executable, "-m", "tools.cli", "ingest", "--home", str(tmp_path / "h"), "--json"]
    running = [subprocess.Popen([*command, name], stdout=subprocess.PIPE, text=True) for name in names]
    records = [json.loads(p.communicate(timeout=120)[0].splitlines()[-1]) for p in running]
    assert [p.returncode for p in running] == [0, 0] and records[0]["run_id"] != records[1]["run_id"]
    home = Warehouse(tmp_path / "h" / "warehouse").open()
    rows = sum(f.rows for files in home.bucket_files().values() for f in files)
    assert home.read_items().events.sum() == rows == (2 if same else 4)
    assert len(ledger.entries(home)) == home.commit_number == (1 if same else 2)


def test_a_file_is_known_as_what_it_was_read_as_and_a_refused_one_not_at_all(tmp_path):
    rows = [(1, 1, 0), (2, 2, 1)]
    log = file(tmp_path, "a.parquet", *rows)
    nobody = table(*rows).set_column(0, "user_id", pa.array([None, None], pa.int64()))
    pq.write_table(nobody, tmp_path / "n.parquet")
    refused = ingest.run(options(tmp_path, str(tmp_path / "n.parquet"), "one"), LOCAL)
    assert refused.exit_code == 3 and refused.counts["events"] == 0
    assert ingest.run(options(tmp_path, str(tmp_path / "n.parquet"), "two"), LOCAL).exit_code == 3
    assert ingest.run(options(tmp_path, log, "three"), LOCAL).counts["events"] == 2
    again = ingest.run(options(tmp_path, log, "four"), LOCAL)
    assert again.counts["known_files"] == 1 and any("vista ingest --again" in n for n in again.notes)
    other = ingest.run(options(tmp_path, log, "five", actions=("view", "buy")), LOCAL)
    assert other.counts["known_files"] == 0 and other.counts["events_in_table"] == 2
    assert any("--undo three" in note for note in other.notes)


def test_two_logs_of_one_size_that_end_alike_are_two_logs(tmp_path):
    n, plain = 9_000, {"write_statistics": False, "compression": "none", "use_dictionary": False}
    for day in range(2):
        columns = {
            "user_id": [(day + i) % 50 for i in range(n)], "item_id": [1] * n, "action": [0] * n,
            "timestamp_ms": [T0 + day * 86_400_000 + i for i in range(n)], "request_id": [0] * n,
        }  # fmt: skip
        pq.write_table(pa.table(columns), tmp_path / f"{day}.parquet", **plain)
    logs = [tmp_path / f"{day}.parquet" for day in range(2)]
    assert logs[0].stat().st_size == logs[1].stat().st_size
    assert logs[0].read_bytes()[-65_536:] == logs[1].read_bytes()[-65_536:]
    for log in logs:
        assert ingest.run(options(tmp_path, str(log), f"run{log.stem}"), LOCAL).counts["events"] == n
    assert len(content(tmp_path, 100_000)) == 2 * n


def test_a_ledger_of_version_0_1_is_read_extended_and_matches_nothing(tmp_path):
    log = file(tmp_path, "a", (1, 1, 0), (2, 2, 1))
    ingest.run(options(tmp_path, log, "old"), LOCAL)
    warehouse = tables(tmp_path)
    old = warehouse.read_sources().select(["path", "bytes", "digest", "rows", "run"])
    warehouse.catalog.drop_table(("vista", "sources"))
    warehouse.catalog.create_table(("vista", "sources"), Schema(*SOURCES.fields[:5]))
    warehouse.refresh().sources.append(
        old.cast(schema_to_pyarrow(Schema(*SOURCES.fields[:5]), include_field_ids=False))
    )
    again = ingest.run(options(tmp_path, log, "again"), LOCAL)
    assert again.counts["known_files"] == 0 and again.counts["events_in_table"] == 2
    assert ingest.run(options(tmp_path, log, "third"), LOCAL).counts["known_files"] == 1
    assert [row.kind for _, row in ledger.entries(tables(tmp_path))] == ["", "events"]
    assert undo(tables(tmp_path), "old").rows == 2 and content(tmp_path) == []


def test_an_ingest_that_is_taken_back_leaves_what_the_others_brought(tmp_path):
    wrong = options(tmp_path, file(tmp_path, "a", (1, 1, 0), (2, 2, 1)), "wrong")
    ingest.run(wrong, LOCAL)
    before = tables(tmp_path).snapshot()
    ingest.run(options(tmp_path, file(tmp_path, "b", (1, 1, 0), (3, 3, 2)), "sharing"), LOCAL)
    ingest.run(options(tmp_path, file(tmp_path, "c", (4, 4, 2)), "apart"), LOCAL)
    done = undo(tables(tmp_path), "wrong")
    assert done.rows == 2 and done.logs == wrong.events and done.again == (str(tmp_path / "b"),)
    assert {r[0] for r in content(tmp_path)} == {3, 4}
    assert dict(zip(*(c.tolist() for c in items_of(tmp_path)), strict=True)) == {3: 1, 4: 1}
    for _ in range(2):
        with pytest.raises(DataError, match="vista summarize"):
            tables(tmp_path).bucket_files(since=before)
        assert undo(tables(tmp_path), "wrong").rows == 0
    record = ingest.run(options(tmp_path, done.again, "again"), LOCAL)
    assert record.counts["events"] == 1 and {r[0] for r in content(tmp_path)} == {1, 3, 4}
    with pytest.raises(DataError, match="expected one ingest called 'nobody'"):
        undo(tables(tmp_path), "nobody")


def test_an_ingest_that_shared_rows_with_one_taken_back_can_be_taken_back_too(tmp_path):
    ingest.run(options(tmp_path, file(tmp_path, "a", (1, 1, 0)), "one"), LOCAL)
    ingest.run(options(tmp_path, file(tmp_path, "b", (1, 1, 0), (3, 3, 2)), "two"), LOCAL)
    ingest.run(options(tmp_path, file(tmp_path, "c", (3, 3, 2), (4, 4, 2)), "three"), LOCAL)
    assert undo(tables(tmp_path), "one").again == (str(tmp_path / "b"), str(tmp_path / "c"))
    assert undo(tables(tmp_path), "two").rows == 1
    assert [r[0] for r in content(tmp_path)] == [4]
    assert undo(tables(tmp_path), "three").rows == 1 and content(tmp_path) == []
    assert not items_of(tmp_path)[0].size


def items_of(tmp_path):
    found = tables(tmp_path).read_items()
    there = found.events > 0
    return found.item[there], found.events[there]


def test_who_was_forgotten_stays_away_up_to_that_very_millisecond(tmp_path):
    log = file(tmp_path, "a", (1, 1, 0), (2, 2, 0), (2, 3, 8))
    ingest.run(options(tmp_path, log, "one"), LOCAL)
    forget_users(tables(tmp_path), [2], now_ms=T0 + 5_000)
    (until,) = forgotten_users(tables(tmp_path)).times.values()
    assert until == T0 + 8_000  # his newest row, though the clock said less
    grown = file(tmp_path, "b", (2, 2, 0), (2, 3, 8), (2, 4, 9), (1, 1, 0))
    record = ingest.run(options(tmp_path, grown, "two"), LOCAL)
    assert record.counts["events_forgotten"] == 2 and any("forgotten" in note for note in record.notes)
    assert [r[:2] for r in content(tmp_path)] == [(1, 1), (2, 4)]
    forget_users(tables(tmp_path), [2], now_ms=T0)  # the clock has gone back: no earlier forgetting is undone
    ingest.run(options(tmp_path, grown, "three", again=True), LOCAL)
    assert [r[0] for r in content(tmp_path)] == [1]


def test_forgetting_beside_a_run_that_has_built_takes_its_working_files_and_keeps_him_out(tmp_path):
    ingest.run(options(tmp_path, file(tmp_path, "a", (1, 1, 0)), "runs/one"), LOCAL)
    asked = options(tmp_path, file(tmp_path, "b", (2, 77, 0), (3, 3, 0)), "runs/two")
    directory = planned(asked)
    warehouse = tables(tmp_path)
    plan = ingest.IngestPlan.from_json((directory.path / "plan.json").read_text())
    job = Job("ingest", asked.run_dir, asked.identity(), LOCAL, progress=False)
    settings = ingest._settings(asked, warehouse, directory, plan)
    ingest._work(Run(job, directory, RunRecord.load(directory.path), 0.0), warehouse, plan, settings)
    assert any((directory.path / "spill").rglob("*.arrow"))
    done = forget.run(
        forget.ForgetOptions(users=[2], warehouse=str(tmp_path / "table"), runs=(str(tmp_path / "runs"),))
    )
    assert list(done.runs.values())[0].spills == ["two"] and not (directory.path / "spill").exists()
    assert not [p for p in (tmp_path / "table").rglob("00000002-*") if p.is_file()]
    assert ingest.run(asked, LOCAL).counts["events_forgotten"] == 1
    assert {r[0] for r in content(tmp_path)} == {1, 3}


def test_runs_that_nobody_needs_any_more_are_pruned_and_held_ones_never(tmp_path, monkeypatch):
    monkeypatch.setattr(leftovers, "KEPT_RUNS", 1)
    for name in ("a", "b", "c"):
        directory, record = RunDirectory.start(tmp_path / name, job="x", identity={}, started_ms=1)
        if name != "c":
            directory.finish(record)
    assert leftovers.prune_runs(tmp_path, before_ms=0) == []
    with RunDirectory(tmp_path / "c").hold():
        assert leftovers.prune_runs(tmp_path, before_ms=2**62, dry_run=True) == ["a"]
        assert leftovers.prune_runs(tmp_path, before_ms=2**62) == ["a"]
    assert leftovers.prune_runs(tmp_path, before_ms=2**62) == ["c"]
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["b"]


def test_what_killed_writers_left_unplaced_in_a_home_is_pruned_and_nothing_else(tmp_path):
    mark, earlier = "0123456789abcdef" * 2, "0123456789ab"
    others = [
        ".notes", ".a.tmp", ".model.building", "model/.git", f".{'x' * 32}", f".thesis.{mark}.tmp",
        f"model/.thesis.{earlier}.tmp", f"logs/.index.{mark}", f"runs/mine/.a.json.{mark}.tmp",
    ]  # fmt: skip
    left = [
        f".report.html.{mark}.tmp", f".index.{mark}", f".index.{mark}.old", f".model.{mark}.building",
        f"model/.2.{mark}.building", f"model/.2.items.npz.{mark}.tmp", f"runs/follow/.aside.json.{earlier}.tmp",
        f"warehouse/vista/history/metadata/.m0.avro.{mark}.tmp",
    ]  # fmt: skip
    for name in (*others, *left):
        (tmp_path / name / "part").mkdir(parents=True)
    (tmp_path / f".vista.toml.{mark}.tmp").touch()
    (tmp_path / f".model.{mark}").symlink_to(tmp_path / "model")
    others.append(f".model.{mark}")
    assert leftovers.prune_unplaced(tmp_path, before_ms=0) == []
    before = sorted(tmp_path.rglob("*"))
    assert len(leftovers.prune_unplaced(tmp_path, 2**62, dry_run=True)) == 9
    assert sorted(tmp_path.rglob("*")) == before
    assert len(leftovers.prune_unplaced(tmp_path, 2**62)) == 9
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob(".*")) == sorted(others)


@pytest.mark.parametrize("writer", ["file", "record", "folder"])
def test_what_a_live_writer_is_about_to_place_stays_and_a_dead_ones_goes(writer, tmp_path):
    (tmp_path / "runs/follow").mkdir(parents=True)
    how, place = {
        "file": (small_text.replacing, "vista.toml"),
        "record": (layout.replacing, "runs/follow/delivered-to.json"),
        "folder": (small_text.building, "index"),
    }[writer]
    with how(tmp_path / place):
        (temporary,) = (tmp_path / place).parent.glob(".*")
        assert leftovers.prune_unplaced(tmp_path, 2**62) == [] and temporary.exists()
    assert not temporary.exists()
    writing = f"from {how.__module__} import {how.__name__} as how; from pathlib import Path; import os\n"
    writing += f"with how(Path({str(tmp_path / place)!r})): os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", writing]).returncode == -9
    (temporary,) = (tmp_path / place).parent.glob(".*")
    assert leftovers.prune_unplaced(tmp_path, 2**62) == [temporary.name] and not temporary.exists()
