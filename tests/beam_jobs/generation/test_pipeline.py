"""The local runner in its three modes; a worker that dies fails the run at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import apache_beam as beam
import pytest
import torch
from elements import Listening, WriteNumber
from small_worlds import LOST_STREAMS, until

from beam_jobs.errors import EngineAway, OptionsError, WorkerLost
from beam_jobs.generation.bucket_task import torch_threads
from beam_jobs.run import runner as pipeline


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """Worker processes import this module by name, as they do a job's."""
    here = Path(__file__)
    monkeypatch.setenv("PYTHONPATH", f"{here.parent}{os.pathsep}{here.parents[1]}")


def numbers(folder: Path, kill: bool = False):
    def build(p: beam.Pipeline) -> None:
        _ = p | beam.Create(range(6)) | beam.Reshuffle() | beam.ParDo(WriteNumber(str(folder), kill))

    return build


@pytest.mark.parametrize("mode, workers", [("in_memory", 1), ("multi_threading", 2), ("multi_processing", 2)])
def test_every_element_is_done_once_and_counted_in_each_mode(tmp_path, mode, workers):
    counters = pipeline.run(numbers(tmp_path), pipeline.local_args(mode, workers))
    assert sorted(p.name for p in tmp_path.iterdir()) == list("012345")
    if mode == "in_memory":
        assert counters == {"numbers": 6}


INTERRUPTED = """
import os, signal, sys
from pathlib import Path
import apache_beam as beam
from beam_jobs.run import runner as pipeline
from elements import Interrupt
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts with & ignores it
folder, *args = sys.argv[1:]
try:
    pipeline.run(lambda p: p | beam.Create(range(6)) | beam.ParDo(Interrupt(folder, os.getpid())), args)
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize("mode, workers", [("in_memory", 1), ("multi_processing", 2)])
def test_ctrl_c_ends_a_run_and_is_no_failure_to_try_again(tmp_path, mode, workers):
    command = [sys.executable, "-c", INTERRUPTED, str(tmp_path), *pipeline.local_args(mode, workers)]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 130
    if mode == "in_memory":
        assert "Traceback" not in found.stderr
        assert {p.name for p in tmp_path.iterdir()} < set("0123")


@pytest.mark.filterwarnings(LOST_STREAMS)
def test_a_killed_worker_process_fails_the_run_and_the_next_run_succeeds(tmp_path):
    args = pipeline.local_args("multi_processing", 2)
    with pytest.raises(WorkerLost, match="137|-9"):
        pipeline.run(numbers(tmp_path, kill=True), args)
    pipeline.run(numbers(tmp_path, kill=True), args)
    assert (tmp_path / "3").exists()


@pytest.mark.parametrize("mode, workers", [("in_memory", 2), ("multi_processing", 0), ("flink", 1)])
def test_a_mode_or_worker_count_that_cannot_be_is_refused(mode, workers):
    with pytest.raises(OptionsError):
        pipeline.local_args(mode, workers)


def test_without_a_runner_the_local_one_is_named_and_others_pass_through():
    assert pipeline.is_local(pipeline.pipeline_options([]))
    assert pipeline.is_local(pipeline.pipeline_options(pipeline.local_args("multi_threading", 3)))
    options = pipeline.pipeline_options(["--runner=PortableRunner", "--job_endpoint=h:1", "--mine=x"])
    assert not pipeline.is_local(options)
    assert options.get_all_options(drop_default=True)["job_endpoint"] == "h:1"


@pytest.mark.parametrize(
    "words, text",
    {
        ("--runner=FlinkRuner",): "FlinkRuner.*Valid values",
        ("--runner=nowhere.Runner",): "nowhere",
        ("--direct_num_wokers=2",): "known to Beam, found --direct_num_wokers",
        ("--direct_num_workers=2", "--direct_num_workers=3"): "once each, found --direct_num_workers",
    }.items(),
)
def test_a_runner_or_an_option_that_beam_would_pass_over_is_refused(words, text):
    with pytest.raises(OptionsError, match=text):
        pipeline.run(lambda p: p | beam.Create([1]), words)


def test_options_that_a_job_server_may_know_pass_and_experiments_may_repeat():
    pipeline.pipeline_options(["--runner=PortableRunner", "--mine=x", "--experiments=a", "--experiments=b"])


@pytest.mark.parametrize(
    "words",
    [
        ("--runner=PortableRunner", "--job_endpoint=localhost:1"),
        ("--runner=FlinkRunner", "--flink_master=http://localhost:1"),
    ],
)
def test_a_job_server_that_is_away_is_told_with_its_address(words):
    with pytest.raises(EngineAway, match="nothing answers at .*localhost:1 .*refused"):
        pipeline.run(lambda p: p | beam.Create([1]), words)


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="asks Linux who listens where")
def test_local_workers_and_their_driver_listen_on_the_loopback_alone(tmp_path):
    def build(p: beam.Pipeline) -> None:
        _ = p | beam.Create(range(2)) | beam.Reshuffle() | beam.ParDo(Listening(str(tmp_path)))

    pipeline.run(build, pipeline.local_args("multi_processing", 2))
    found = set().union(*(path.read_text().split() for path in tmp_path.iterdir()))
    ipv4, ipv6 = "0100007F", "00000000000000000000000001000000"
    assert found and all(address == ipv6 or address.endswith(ipv4) for address in found)


ORPHANED = """
import sys
from beam_jobs.run import runner as pipeline
import apache_beam as beam
from elements import Wait
pipeline.run(lambda p: p | beam.Create(range(2)) | beam.Reshuffle() | beam.ParDo(Wait(sys.argv[1])), sys.argv[2:])
"""


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_worker_processes_end_with_their_driver_however_that_ends(tmp_path, signum):
    args = pipeline.local_args("multi_processing", 2)
    driver = subprocess.Popen([sys.executable, "-c", ORPHANED, str(tmp_path), *args])
    try:
        assert until(lambda: any(tmp_path.iterdir()) or driver.poll() is not None) and driver.poll() is None
        workers = [int(path.name) for path in tmp_path.iterdir()]
        driver.send_signal(signum)
        assert driver.wait(60) == -signum
        assert until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
    finally:
        driver.kill()


def test_the_number_of_torch_threads_is_set_for_the_task_and_put_back():
    before = torch.get_num_threads()
    with torch_threads(3):
        assert torch.get_num_threads() == 3
    assert torch.get_num_threads() == before


@pytest.fixture(scope="module")
def imported() -> subprocess.CompletedProcess[str]:
    """What a process says that imports what workers do, and then tells which modules of a catalog it has."""
    modules = ", ".join(
        f"beam_jobs.{m}"
        for m in (
            "generation.bucket_task",
            "generation.changed_users",
            "ingest.build",
            "ingest.items",
            "ingest.text",
        )
    )
    code = f"import sys, {modules}; print([m for m in ('pyiceberg', 'sqlalchemy', 'pydantic') if m in sys.modules])"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


def test_importing_the_jobs_says_nothing(imported):
    assert len(imported.stdout.splitlines()) == 1 and imported.stderr == ""


def test_what_workers_import_is_no_catalog(imported):
    assert imported.stdout.strip() == "[]"
