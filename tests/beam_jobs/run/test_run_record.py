"""One run, one directory: what is finished stays finished, what is damaged is done again."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beam_jobs.errors import ExitCode, RunInProgress, RunOptionsDiffer, RunRecordDamaged, RunStorageFull
from beam_jobs.ingest import job as ingest
from beam_jobs.ingest.options import IngestOptions
from beam_jobs.run.files import room_for, write_atomically
from beam_jobs.run.record import DeadLetter, RunDirectory, RunRecord, peak_memory_bytes, unit_name
from vista.errors import DataError


def start(path, **identity):
    return RunDirectory.start(path, job="summarize", identity=identity, started_ms=7)


def finished_unit(run, name="bucket-00000", data=b"shard"):
    file = run.path / f"{name}.mdb"
    file.write_bytes(data)
    run.write_receipt(name, {"files": run.describe_files([file]), "counts": {"users": 2, "events": 5}})
    return file


def test_a_run_started_twice_keeps_its_first_start(tmp_path):
    start(tmp_path / "r", snapshot=1)
    _, record = RunDirectory.start(tmp_path / "r", job="summarize", identity={"snapshot": 1}, started_ms=99)
    assert record.started_ms == 7
    assert record.exit_code is None


def test_a_run_refuses_to_continue_with_another_option_and_says_which(tmp_path):
    start(tmp_path / "r", snapshot=1, threads=1)
    with pytest.raises(RunOptionsDiffer, match="snapshot: the run has 1, you ask 2"):
        start(tmp_path / "r", snapshot=2, threads=1)
    with pytest.raises(RunOptionsDiffer, match="summarize"):
        RunDirectory.start(tmp_path / "r", job="refresh", identity={}, started_ms=0)


def test_a_directory_with_other_files_is_not_taken_for_a_run(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunRecordDamaged, match="notes|other files"):
        start(tmp_path)


def test_a_record_reads_back_as_it_was_written(tmp_path):
    run, record = start(tmp_path / "r", codecs={"seeds": "float16"})
    record = dataclasses.replace(record, counts={"users": 3}, notes=["a"], exit_code=3)
    run.save(record)
    assert RunRecord.load(run.path) == record


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 99, "job": "x", "run_id": "r", "path": "p"}'])
def test_a_damaged_record_is_a_typed_error(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(RunRecordDamaged):
        RunRecord.load(tmp_path)


def test_a_receipt_is_trusted_only_while_its_files_are_as_it_says(tmp_path):
    run, _ = start(tmp_path / "r")
    file = finished_unit(run)
    assert run.receipt("bucket-00000")["counts"]["users"] == 2
    file.write_bytes(b"shaRd")
    assert run.receipt("bucket-00000") is None
    file.unlink()
    assert run.receipt("bucket-00000") is None
    assert run.receipt("bucket-00001") is None


def test_a_half_written_receipt_counts_as_none(tmp_path):
    run, _ = start(tmp_path / "r")
    finished_unit(run)
    path = run.path / "receipts" / "bucket-00000.json"
    path.write_text(path.read_text()[:-20])
    assert run.receipt("bucket-00000") is None
    assert run.receipts() == {}


def test_a_receipt_clears_the_failure_of_its_unit(tmp_path):
    run, _ = start(tmp_path / "r")
    run.note_failure("bucket-00000", ValueError("bad"))
    found = run.failures()["bucket-00000"]
    assert found.pop("trace")[-1] == "ValueError: bad\n"
    assert found == {"error": "ValueError", "text": "bad", "exit_code": 1}
    finished_unit(run)
    assert run.failures() == {}


def test_progress_adds_finished_units_to_those_under_work(tmp_path):
    run, _ = start(tmp_path / "r")
    finished_unit(run)
    run.note_progress("bucket-00001", users=1, events=10)
    run.note_progress("bucket-00000", users=9, events=90)  # late word of a finished unit counts once
    assert run.progress({"bucket-00000", "bucket-00001", "bucket-00002"}) == (1, 3, 15)


def test_dead_letters_are_gathered_in_order_of_unit_and_counted_by_rows(tmp_path):
    run, record = start(tmp_path / "r")
    run.write_dead_letters(unit_name(10), [DeadLetter("ingest", "null_user", rows=4)])
    run.write_dead_letters(unit_name(9), [DeadLetter("ingest", "absurd_time", source="a.parquet", row=3)])
    run.write_dead_letters(unit_name(11), [])
    done = run.finish(record)
    assert done.counts["dead_letters"] == 5
    table = pq.read_table(run.path / "dead-letters.parquet")
    assert table["reason"].to_pylist() == ["absurd_time", "null_user"]
    assert table["row"].to_pylist() == [3, -1]


def test_dead_letters_may_come_as_a_table_with_columns_in_any_order(tmp_path):
    run, record = start(tmp_path / "r")
    names = ["rows", "row", "source", "detail", "reason", "user", "bucket", "job"]
    table = pa.table([[2], [0], ["f"], [""], ["null_user"], [""], [-1], ["ingest"]], names=names)
    run.write_dead_letters("file-0", table)
    assert run.finish(record).counts["dead_letters"] == 2


def test_only_one_process_holds_a_run_and_a_killed_one_lets_go(tmp_path):
    run, _ = start(tmp_path / "r")
    code = (
        "import sys; from beam_jobs.run.record import RunDirectory\n"
        f"with RunDirectory({str(run.path)!r}).hold():\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(RunInProgress), run.hold():
            pass
    finally:
        other.kill()
        other.communicate()
    with run.hold():
        pass


def test_an_atomic_write_leaves_no_temporary_file(tmp_path):
    write_atomically(tmp_path / "a" / "b.json", b"1")
    write_atomically(tmp_path / "a" / "b.json", b"2")
    assert [(p.name, p.read_bytes()) for p in (tmp_path / "a").iterdir()] == [("b.json", b"2")]


def test_peak_memory_is_of_this_process_and_in_bytes():
    assert 10 << 20 < peak_memory_bytes() < 1 << 40


def test_a_full_disk_is_told_as_such_and_other_errors_as_they_are(tmp_path):
    with (
        pytest.raises(RunStorageFull, match=f"{tmp_path}: no space left.*--run-dir") as told,
        room_for(tmp_path),
        open("/dev/full", "wb", buffering=0) as file,
    ):
        file.write(b"x")
    assert told.value.exit_code == ExitCode.NOT_PUBLISHED
    with pytest.raises(FileNotFoundError), room_for(tmp_path):
        (tmp_path / "nothing").read_bytes()


def test_a_run_that_is_refused_before_it_began_leaves_nothing_and_its_folder_can_be_used(tmp_path):
    asked = {"warehouse": str(tmp_path / "tables"), "run_dir": str(tmp_path / "run")}
    with pytest.raises(DataError):
        ingest.run(IngestOptions(events=(str(tmp_path / "*.parquet"),), **asked))
    assert not (tmp_path / "run").exists()
    table = pa.table(
        {"user_id": [1], "item_id": [2], "action": ["click"], "timestamp_ms": [1_600_000_000_000]}
    )
    pq.write_table(table, tmp_path / "events.parquet")
    assert ingest.run(IngestOptions(events=(str(tmp_path / "*.parquet"),), **asked)).counts["events"] == 1
