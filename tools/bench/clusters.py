"""Real daemons of an engine on the loopback, started and ended here; for ``bench engines`` and for tests."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

MODULES = {"spark": "pyspark", "ray": "ray", "dask": "distributed"}
STARTED_WITHIN_S = 120


def missing(engine: str) -> str | None:
    """Why an engine cannot be started here; None where it can."""
    if importlib.util.find_spec(MODULES[engine]) is None:
        return f"pip install 'vista-cache[{engine}]'"
    return "there is no java" if engine == "spark" and shutil.which("java") is None else None


@contextlib.contextmanager
def cluster(engine: str, env: Mapping[str, str] | None = None, applications: int = 1) -> Iterator[str]:
    """Address of a cluster of two slots that lasts as long as the body.

    Args:
        env: beside this process's environment, for the daemons.
        applications: of Spark that may hold two slots each at a time.

    Raises:
        RuntimeError: it did not start; with what it said.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = Path(tempfile.mkdtemp(prefix=f"{engine}-", dir="/tmp"))  # Ray's sockets need a short path
    own = {"PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"}
    before = {name: os.environ.get(name) for name in own}
    os.environ.update(own)  # of the driver, too
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    address, daemons = _daemons(engine, port, folder, applications)
    sign = "Ray runtime started" if engine == "ray" else ""
    log = folder / "log"
    with open(log, "w") as out:
        running = [
            subprocess.Popen(
                words, env={**os.environ, "PATH": path, **(env or {})}, stdout=out, stderr=out, start_new_session=True
            )
            for words in daemons
        ]  # fmt: skip
        try:
            end, pause = time.monotonic() + STARTED_WITHIN_S, threading.Event()
            while not (_answers(port) and sign in log.read_text()):
                if time.monotonic() > end:
                    raise RuntimeError(f"{engine} did not start: {log.read_text()[-2000:]}")
                pause.wait(0.1)
            yield address
        finally:
            _end(running)
            shutil.rmtree(folder, ignore_errors=True)
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})


def _daemons(engine: str, port: int, folder: Path, applications: int) -> tuple[str, list[list[str]]]:
    at, python = f"127.0.0.1:{port}", [sys.executable, "-m"]
    if engine == "dask":
        worker = [*python, "distributed.cli.dask_worker", f"tcp://{at}", "--nthreads=1", "--host=127.0.0.1",
                  "--no-dashboard", f"--local-directory={folder}"]  # fmt: skip
        scheduler = [*python, "distributed.cli.dask_scheduler", "--host=127.0.0.1", f"--port={port}",
                     "--no-dashboard"]  # fmt: skip
        return f"tcp://{at}", [scheduler, worker, worker]
    if engine == "ray":
        head = [*python, "ray.scripts.scripts", "start", "--head", "--block", f"--port={port}",
                "--node-ip-address=127.0.0.1", "--num-cpus=2", "--include-dashboard=false",
                "--object-store-memory=80000000", "--disable-usage-stats", f"--temp-dir={folder}/r"]  # fmt: skip
        return at, [head]
    import pyspark

    def daemon(kind: str, *words: str) -> list[str]:
        start = f"{Path(pyspark.__file__).parent}/bin/spark-class"
        name = f"org.apache.spark.deploy.{kind.lower()}.{kind}"
        return [start, name, "--host", "127.0.0.1", "--webui-port", "0", *words]

    each = ("--cores", f"{applications}", "--memory", f"{applications}g")
    worker = daemon("Worker", *each, "--work-dir", f"{folder}/work", f"spark://{at}")
    return f"spark://{at}", [daemon("Master", "--port", str(port)), worker, worker]


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True


def _end(running: list[subprocess.Popen[bytes]]) -> None:
    for process in running:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
    for process in running:
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)
