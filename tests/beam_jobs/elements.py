"""Work for the tests of the runner, in a module of its own: each worker process imports it, and nothing heavier."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import apache_beam as beam

from beam_jobs.run import runner as pipeline


class WriteNumber(beam.DoFn):
    """Writes a file per element; kills its process at element 3 unless that was done before."""

    def __init__(self, folder: str, kill: bool):
        self._folder, self._kill = Path(folder), kill

    def process(self, n: int):
        if self._kill and n == 3 and not (self._folder / "killed").exists():
            (self._folder / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        pipeline.count("numbers")
        (self._folder / str(n)).touch()
        yield n


class Interrupt(beam.DoFn):
    """Sends Ctrl-C to the driver alone at element 3."""

    def __init__(self, folder: str, driver: int):
        self._folder, self._driver = Path(folder), driver

    def process(self, n: int):
        if n == 3:
            os.kill(self._driver, signal.SIGINT)
        (self._folder / str(n)).touch()


class Listening(beam.DoFn):
    """Writes the addresses at which this process and its parent listen."""

    def __init__(self, folder: str):
        self._folder = Path(folder)

    def process(self, n: int):
        (self._folder / f"{os.getpid()}").write_text(
            "\n".join(listening(os.getppid()) | listening(os.getpid()))
        )


def listening(pid: int) -> set[str]:
    """Local addresses, in hexadecimal, of the listening sockets of a process."""
    links = {os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir() if fd.is_symlink()}
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if state == "0A" and f"socket:[{rest[5]}]" in links:
                found.add(local.partition(":")[0])
    return found


class Wait(beam.DoFn):
    """Says its process, and then works for as long as it may."""

    def __init__(self, folder: str):
        self._folder = Path(folder)

    def process(self, n: int):
        (self._folder / f"{os.getpid()}").touch()
        threading.Event().wait(120)
