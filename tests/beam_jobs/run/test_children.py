"""Children that stay: they outlive a run, not their parent; one that is killed ends the attempt and no more."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import dying
import pytest

from beam_jobs.errors import WorkerLost
from beam_jobs.run import children, engines, quiet_worker
from beam_jobs.run.record import RunDirectory


@pytest.fixture
def run(tmp_path: Path):
    yield RunDirectory(tmp_path)
    children.leave()


def test_children_stay_for_the_next_run_and_one_that_is_killed_is_lost_with_its_attempt_alone(run):
    do = functools.partial(dying.dies_once, folder=run.path)
    with pytest.raises(WorkerLost, match="run the same command again"):
        engines.run_tasks("x", [1, 2, 3], do, engines.here(2), run)
    first = engines.run_tasks("x", [1, 2, 3], do, engines.here(2), run)
    second = engines.run_tasks("x", [1, 2, 3], do, engines.here(2), run)
    assert first["done"] == second["done"] == 3
    assert len({*first, *second} - {"done"}) <= 2 and f"by-{os.getpid()}" not in {*first, *second}


def test_children_end_with_a_parent_that_is_killed(tmp_path):
    code = (
        "import functools, pathlib, dying\n"
        "from beam_jobs.run import engines; from beam_jobs.run.record import RunDirectory\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "if __name__ == '__main__':\n"
        "    do = functools.partial(dying.waits, folder=folder)\n"
        "    engines.run_tasks('x', [1, 2], do, engines.here(2), RunDirectory(folder))"
    )
    path = os.pathsep.join([str(Path(dying.__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    driver = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path})
    try:
        pids = within(60, lambda: len(found := list(tmp_path.glob("pid-*"))) == 2 and found)
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait(30)
    within(60, lambda: not any(Path("/proc", p.name.partition("-")[2]).exists() for p in pids))


def test_an_interrupt_that_meets_a_child_before_it_is_ready_ends_it_then_and_leaves_no_trace():
    code = (
        "import os, signal; os.kill(os.getpid(), signal.SIGINT); print('went on', flush=True)\n"
        "from beam_jobs.run.quiet_worker import end_by_interrupts; end_by_interrupts(); print('and on')"
    )
    with quiet_worker.interrupts_held():
        ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (-signal.SIGINT, "went on\n", "")
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def within(limit_s: float, found):
    end = time.monotonic() + limit_s
    while not (answer := found()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return answer
