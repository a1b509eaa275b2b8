"""What a run needs is told before it begins; its record holds no secret and is its user's alone."""

from __future__ import annotations

import json

import pytest

from beam_jobs.errors import ExitCode, OptionsError, RunStorageFull
from beam_jobs.generation import refresh, summarize
from beam_jobs.run.limits import check_disk, check_memory, size
from beam_jobs.run.record import RunDirectory
from beam_jobs.run.secrets import redacted

SECRETS = {
    "uri": "postgresql://ana:hunter2@db:5432/catalog",
    "token": "t0ken-hunter2",
    "s3.secret-access-key": "hunter2",
    "s3.access-key-id": "hunter2",
    "header.Authorization": "Bearer hunter2",
    "warehouse": "s3://bucket/tables",
}


def test_a_run_that_its_disk_cannot_hold_is_refused_with_what_it_needs_and_what_there_is(tmp_path):
    needs = {tmp_path / "a" / "store": 3 << 30, tmp_path: 2 << 30}  # one disk: they add up
    check_disk(needs, None, free=lambda _: 6 << 30)
    with pytest.raises(
        RunStorageFull, match=r"needs at least 5.0 GB, there is 4.9 GB; nothing was begun"
    ) as told:
        check_disk(needs, None, free=lambda _: int(4.9 * 2**30))
    assert told.value.exit_code == ExitCode.NOT_PUBLISHED
    with pytest.raises(OptionsError, match=r"--max-bytes: .* at least 5.0 GB, allowed are 4.0 GB"):
        check_disk(needs, 4 << 30, free=lambda _: 1 << 50)


def test_workers_that_the_machine_cannot_hold_are_refused():
    check_memory(2, 1 << 30, total=2 << 30)
    with pytest.raises(OptionsError, match=r"--workers 3: each may hold 1.0 GB, this machine has 2.0 GB"):
        check_memory(3, 1 << 30, total=2 << 30)


def test_a_job_over_its_budget_or_its_memory_begins_nothing(small_world):
    for job, options in ((summarize, small_world.summarize), (refresh, small_world.refresh)):
        with pytest.raises(OptionsError, match="--max-bytes"):
            job.run(options(run=f"{job.JOB}-budget", max_bytes=100))
        with pytest.raises(OptionsError, match="--memory-events"):
            job.run(options(run=f"{job.JOB}-memory", max_events_in_memory=10**12))
    assert not (small_world.path / "store").exists()
    summarize.run(small_world.summarize(run="fits", max_bytes=1 << 30))


def test_sizes_are_told_in_the_unit_that_fits():
    assert [size(n) for n in (0, 1023, 1536, 5 << 20, 7 << 40)] == [
        "0 bytes",
        "1023 bytes",
        "1.5 KB",
        "5.0 MB",
        "7.0 TB",
    ]


def test_no_file_of_a_run_holds_a_secret_and_none_can_be_read_by_others(tmp_path):
    identity = {"warehouse": SECRETS, "store": "s"}
    args = ["--runner=X", "--s3_secret_access_key=hunter2", "--azure_token", "hunter2", "--region=eu"]
    run, record = RunDirectory.start(
        tmp_path / "r", job="summarize", identity=identity, environment={"beam_args": args}, started_ms=1
    )
    with run.hold():
        run.write_receipt("bucket-00000", {"counts": {}})
        run.note_failure("bucket-00001", ValueError("x"))
        run.finish(record)
    files = [path for path in run.path.rglob("*") if path.is_file()]
    assert not [path for path in files if b"hunter2" in path.read_bytes()]
    assert {oct(path.stat().st_mode & 0o077) for path in files} == {"0o0"}
    assert record.identity["warehouse"]["warehouse"] == "s3://bucket/tables"
    assert record.environment["beam_args"][-1] == "--region=eu"
    assert "hunter2" not in json.dumps(record.as_dict())


def test_a_run_goes_on_with_a_renewed_secret_and_one_that_was_recorded_in_clear_goes_on_too(tmp_path):
    run, record = RunDirectory.start(tmp_path / "r", job="s", identity={"warehouse": SECRETS}, started_ms=1)
    renewed = {"warehouse": {**SECRETS, "token": "another"}}
    assert RunDirectory.start(tmp_path / "r", job="s", identity=renewed, started_ms=2)[1] == record
    old = json.loads((run.path / "run.json").read_text()) | {"identity": {"warehouse": SECRETS}}
    (run.path / "run.json").write_text(json.dumps(old))
    assert RunDirectory.start(tmp_path / "r", job="s", identity=renewed, started_ms=3)[1].started_ms == 1


def test_what_is_no_secret_stays():
    plain = {"codecs": {"seeds": "int8"}, "users": [1, "a"], "since": None, "args": ["--runner=X", "-x", "y"]}
    assert redacted(plain) == plain
