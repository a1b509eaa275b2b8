"""Runs of ingest that are killed, cut short or dealt out to workers end as one that was left alone."""

from __future__ import annotations

import dataclasses
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_logs import LOCAL, T0, content, expected, log, options, write

from beam_jobs.errors import IncompleteRun, RunOptionsDiffer
from beam_jobs.ingest import job as ingest
from beam_jobs.run import runner as pipeline
from beam_jobs.run.job import Job, Run
from beam_jobs.run.record import RunDirectory
from cache_store.format.layout import digest_file
from vista.data.tables.warehouse import Warehouse


def test_a_run_killed_before_its_commit_goes_on_where_it_was(tmp_path):
    table = log(np.random.default_rng(10), 300)
    asked = options(tmp_path, write(tmp_path / "in", table))

    class Killed(BaseException):
        pass

    ticks = iter([T0 / 1000 + 1e6])

    def clock() -> float:
        # The job asks for the time when it starts and, after its commit, when it ends.
        try:
            return next(ticks)
        except StopIteration:
            raise Killed from None

    with pytest.raises(Killed):
        ingest.run(asked, LOCAL, clock=clock)
    first = Warehouse(tmp_path / "table").open().snapshot()
    done = ingest.run(asked, LOCAL)
    assert Warehouse(tmp_path / "table").open().snapshot() == first == done.table_snapshot
    assert done.counts["events"] == len(content(tmp_path)) and content(tmp_path) == expected(table)
    assert ingest.run(asked, LOCAL) == done
    with pytest.raises(RunOptionsDiffer):
        ingest.run(dataclasses.replace(asked, skip_bad_files=True), LOCAL)


def held(asked, run_dir, record) -> Run:
    return Run(
        Job("ingest", asked.run_dir, asked.identity(), LOCAL, progress=False), run_dir, record, began=0.0
    )


def test_units_that_are_done_are_not_done_again_and_lost_ones_are(tmp_path):
    table = log(np.random.default_rng(11), 300)
    asked = options(tmp_path, write(tmp_path / "in", table), chunk_rows=100)
    ingest.run(asked, LOCAL)
    wanted = content(tmp_path)
    # As if the machine had died before the commit: no snapshot, one bucket's file half written.
    other = tmp_path / "other"
    again = dataclasses.replace(asked, warehouse=str(other / "table"), run_dir=str(other / "run"))
    run_dir, record = RunDirectory.start(
        again.run_dir, job="ingest", identity=again.identity(), started_ms=(T0 + 10**9)
    )
    warehouse = Warehouse(again.warehouse)
    plan = ingest.make_plan(again, warehouse, run_dir, record, LOCAL)
    plan = ingest._prepare(warehouse, run_dir, plan)
    settings = ingest._settings(again, warehouse, run_dir, plan)
    ingest._work(held(again, run_dir, record), warehouse, plan, settings)
    lost, receipt = next((n, r) for n, r in run_dir.receipts().items() if n.startswith("bucket-"))
    Path(receipt["table_files"][0].removeprefix("file://")).write_bytes(b"half")
    written = {p.stem: p.stat().st_mtime_ns for p in (run_dir.path / "receipts").iterdir()}
    done = ingest.run(again, LOCAL)
    assert done.exit_code == 0 and content(other) == wanted
    receipts = (run_dir.path / "receipts").iterdir()
    assert [p.stem for p in receipts if p.stat().st_mtime_ns != written.get(p.stem)] == [lost]


def test_rows_that_are_not_accounted_for_stop_the_commit(tmp_path):
    asked = options(tmp_path, write(tmp_path / "in", log(np.random.default_rng(11), 300)))
    run_dir, record = RunDirectory.start(
        asked.run_dir, job="ingest", identity=asked.identity(), started_ms=T0 + 10**9
    )
    warehouse = Warehouse(asked.warehouse)
    plan = ingest._prepare(warehouse, run_dir, ingest.make_plan(asked, warehouse, run_dir, record, LOCAL))
    settings = ingest._settings(asked, warehouse, run_dir, plan)
    ingest._work(held(asked, run_dir, record), warehouse, plan, settings)
    (run_dir.path / "receipts" / "bucket-00002.json").unlink()
    with pytest.raises(IncompleteRun, match="accounted for.*nothing was committed"):
        ingest._counts(run_dir, plan)


def test_a_commit_that_was_cut_short_leaves_no_trace_after_the_next_run(tmp_path):
    rng = np.random.default_rng(12)
    first, second = log(rng, 200), log(rng, 200, users=90)
    ingest.run(options(tmp_path, write(tmp_path / "in", first, name="a")), LOCAL)
    warehouse = Warehouse(tmp_path / "table").open()
    items = warehouse.read_items()
    # What a crash after the items' commit leaves: items and ledger are ahead of history.
    uri = warehouse.item_uri(warehouse.commit_number + 1, "crashed", 0)
    items.write(uri)
    summary = {"vista.commit": str(warehouse.commit_number + 1), "vista.run": "crashed"}
    warehouse.items.add_files([uri.removeprefix("file://")], snapshot_properties=summary)
    assert Warehouse(tmp_path / "table").open().read_items().events.sum() == 2 * items.events.sum()
    ingest.run(options(tmp_path, write(tmp_path / "in", second, name="b"), "next"), LOCAL)
    warehouse = Warehouse(tmp_path / "table").open()
    assert warehouse.read_items().events.sum() == len(content(tmp_path))
    assert content(tmp_path) == expected(first, second)


def test_workers_and_modes_do_not_change_a_byte(tmp_path, portable_args):
    rng = np.random.default_rng(13)
    pattern = write(tmp_path / "in", log(rng, 500), log(rng, 400))
    digests = []
    for name, args in {
        "one": LOCAL,
        "threads": pipeline.local_args("multi_threading", 3),
        "processes": pipeline.local_args("multi_processing", 2),
        "portable": portable_args,
    }.items():
        folder = tmp_path / name
        ingest.run(options(folder, pattern, chunk_rows=120, max_rows=200), args)
        files = Warehouse(folder / "table").open().bucket_files()
        digests.append([[digest_file(f.path.removeprefix("file://")) for f in fs] for fs in files.values()])
    assert len(digests[0]) == 4 and all(found == digests[0] for found in digests)


def test_a_run_killed_at_any_change_of_state_ends_as_if_it_had_not_been(tmp_path):
    rng = np.random.default_rng(14)
    pattern = write(tmp_path / "in", log(rng, 200), log(rng, 100))
    asked = options(tmp_path, pattern, chunk_rows=150, num_buckets=2)
    (tmp_path / "options.pickle").write_bytes(pickle.dumps(asked))
    script = Path(__file__).parents[1] / "killing_ingest.py"
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "options.pickle"), "5"],
        capture_output=True,
        text=True,
        check=True,
    )
    whole, *killed = json.loads(done.stdout)
    assert len(killed) > 5 and whole["snapshots"] == 1 and not whole["spill"]
    assert all(outcome == whole for outcome in killed)
