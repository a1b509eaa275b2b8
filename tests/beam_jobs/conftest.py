"""Fixtures of the jobs: small worlds, Beam's portable job service with its workers, and a killer."""

from __future__ import annotations

import json
import os
import pickle
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_worlds import CONFIG, World, histories, save_bundle

from vista.model import VistaModel


@pytest.fixture(scope="session")
def bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bundle(tmp_path_factory.mktemp("bundle") / "model", VistaModel(CONFIG))


@pytest.fixture
def world(tmp_path: Path, bundle_path: Path) -> World:
    """120 users, some with far more events than a window holds, in 3 buckets."""
    rng = np.random.default_rng(7)
    users = np.unique(rng.integers(-(2**40), 2**40, 120))
    lengths = rng.geometric(1 / 30, len(users))
    lengths[5] = 1_500
    return World(tmp_path, bundle_path).create().add(users, histories(rng, lengths))


@pytest.fixture
def small_world(tmp_path: Path, bundle_path: Path) -> World:
    """12 users in 2 buckets."""
    rng = np.random.default_rng(5)
    users = np.arange(12, dtype=np.int64)
    return (
        World(tmp_path, bundle_path).create(2).add(users, histories(rng, rng.geometric(1 / 20, len(users))))
    )


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="session")
def portable_args(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Arguments for a job service and an external pool of workers, both processes of their own."""
    folder = tmp_path_factory.mktemp("portable")
    jobs, pool = _free_port(), _free_port()
    # The pool starts its workers as "python".
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    beam = "apache_beam.runners"
    with open(folder / "log", "w") as log:
        service = [
            f"{beam}.portability.local_job_service_main",
            f"--port={jobs}",
            f"--staging_dir={folder}/staged",
        ]
        workers = [f"{beam}.worker.worker_pool_main", f"--service_port={pool}"]
        running = [
            subprocess.Popen([sys.executable, "-m", *command], env=env, stdout=log, stderr=log)
            for command in (service, workers)
        ]
        try:
            for port in (jobs, pool):
                _until_it_answers(port)
            yield [
                "--runner=PortableRunner",
                f"--job_endpoint=localhost:{jobs}",
                "--environment_type=EXTERNAL",
                f"--environment_config=localhost:{pool}",
            ]
        finally:
            for process in running:
                process.terminate()
            for process in running:
                process.wait()


def _until_it_answers(port: int) -> None:
    """Wait for a process that listens; two minutes at most."""
    end = time.monotonic() + 120
    while True:
        try:
            return socket.create_connection(("localhost", port), timeout=1).close()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


@pytest.fixture
def killed_at(tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """Kills a job at each of its renames and continues it (killing.py); what came of each."""

    def run(job: str, options: Any, step: int = 1) -> list[dict[str, Any]]:
        path = tmp_path / "kill" / "options.pickle"
        path.parent.mkdir()
        path.write_bytes(pickle.dumps((job, options)))
        script = Path(__file__).with_name("killing.py")
        command = [sys.executable, str(script), str(path), str(step)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]

    return run
