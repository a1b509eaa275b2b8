"""A server under load while generations are published, killed by SIGKILL and started again on the same port.

    python -m tools.drills.serving --seconds 60 --kills 3        # a minute
    python -m tools.drills.serving --generations 6 --kills 1     # bounded by count, what `make test` has time for

The server is `vista serve` itself. Clients are processes that ask without pause, one exchange each, and compare every
value with the truth of ``cache_store.testing`` at the generation that the answer names. A client whose server dies asks
again; a question that is not answered in the end, a value of another generation and a step back are faults.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from cache_store.flight.client import SummaryClient
from cache_store.testing import STEP, Truth
from tools.drills.asked import asked

ROOT = Path(__file__).parents[2]
DEPTH = 4
"""Every so many generations a full one, deltas between."""
START_S = 60.0


@dataclass
class ServingReport:
    """What a drill did.

    Attributes:
        answers: requests answered and compared.
        users: rows in them.
        faults: what did not hold, in words.
        seen: generations that some client was answered from.
        latency_ms: p50, p99 and largest of a request, kills included.
    """

    answers: int = 0
    users: int = 0
    published: int = 0
    kills: int = 0
    seen: int = 0
    faults: list[str] = field(default_factory=list)
    latency_ms: tuple[float, float, float] = (0.0, 0.0, 0.0)
    seconds: float = 0.0


class Served:
    """`vista serve` as a process."""

    def __init__(self, store: Path, port: int = 0, *options: str, token: str | None = None) -> None:
        words = [sys.executable, "-m", "tools", "serve", "--store", str(store), "--port", str(port), "--http-port", "0",
                 "--refresh-seconds", "0.1", "--json", *options]  # fmt: skip
        env = {k: v for k, v in os.environ.items() if k != "VISTA_SERVE_TOKEN"} | {"PYTHONPATH": str(ROOT)}
        env |= {"VISTA_SERVE_TOKEN": token} if token else {}
        self._errors = tempfile.TemporaryFile("w+")
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(words, stdout=pipe, stderr=self._errors, text=True, env=env)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()  # ends with the process, if that is what happens
        if not line:
            raise RuntimeError(f"vista serve did not start: {self.errors()}")
        told = json.loads(line)
        self.address, self.http = str(told["flight"]), str(told["http"])
        self.port = int(self.address.rpartition(":")[2])

    def errors(self) -> str:
        """What it wrote on standard error."""
        self._errors.seek(0)
        return self._errors.read()

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait; the exit code."""
        self.process.send_signal(number)
        try:
            return self.process.wait(START_S)
        finally:
            if self.process.poll() is None:
                self.process.kill()


@contextmanager
def served(store: Path, *options: str, token: str | None = None) -> Iterator[Served]:
    """A server that is killed when the body ends."""
    server = Served(store, 0, *options, token=token)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.wait(START_S)


def version_of(generation: str) -> int:
    """The version that a generation of this drill holds."""
    full, delta = divmod(int(generation) - 1, DEPTH)
    return STEP * (full + 1) + delta


def publish(truth: Truth, store: Any, number: int) -> str:
    """Publish generation ``number``; its name."""
    name = f"{number:08d}"
    version = version_of(name)
    delta = version % STEP
    return truth.publish(
        store, f"run-{number}", version, base=version - 1 if delta else None,
        parent=f"{number - 1:08d}" if delta else None,
    )  # fmt: skip


def compare(truth: Truth, answer: Any, at: np.ndarray) -> str:
    """Hold an answer in form ``groups`` against the truth; the generation it is of.

    Raises:
        WrongValue
    """
    names = set(answer.column("generation").to_pylist())
    if len(names) != 1 or answer.column("user").to_pylist() != truth.users[at].tolist():
        raise AssertionError(f"one answer of generations {sorted(names)}, or of other users than asked for")
    generation = str(names.pop())
    groups = [answer.column(g.name).to_numpy_ndarray() for g in truth.schema.groups]
    facts = {c: answer.column(c).to_numpy() for c in ("status", "event_count", "last_event_ms")}
    found = SimpleNamespace(tokens=np.concatenate(groups, axis=1), generation=generation, **facts)
    truth.check(found, at, version_of(generation))  # type: ignore[arg-type]
    return generation


def _client(address: str, token: str, truth: Truth, seed: int, stop: Any, count: Any, out: Any) -> None:
    rng, seen, seconds, users, faults = np.random.default_rng(seed), set[str](), list[float](), 0, list[str]()
    newest = ""
    with SummaryClient(address, token=token, retry_s=START_S, form="groups") as client:
        while not stop.is_set() and not faults:
            at = rng.integers(0, truth.num_users, rng.integers(1, 65))
            start = time.perf_counter()
            try:
                name = compare(truth, client.lookup(truth.users[at]), at)
                if name < newest:
                    faults.append(f"generation {name} after {newest}")
                newest = name
                seen.add(name)
            except Exception as error:
                faults.append(f"{type(error).__name__}: {error}")
            seconds.append(time.perf_counter() - start)
            users += len(at)
            with count.get_lock():
                count.value += 1
    out.send((len(seconds), users, sorted(seen), seconds, faults))


def run(
    seed: int, *, clients: int = 4, seconds: float | None = None, generations: int = 6, kills: int = 1,
    users: int = 200,
) -> ServingReport:  # fmt: skip
    """Serve, publish and kill; see the module.

    Args:
        seconds: how long; None publishes ``generations`` and waits after each for answers, instead of for time.
        kills: spread over it.
    """
    context, report, began = multiprocessing.get_context("spawn"), ServingReport(), time.monotonic()
    truth, token = Truth(num_users=users, num_shards=2), secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="drill-serving-") as folder:
        path = Path(folder) / "store"
        store = truth.create(path)
        publish(truth, store, 1)
        server = Served(path, token=token)
        address, port = server.address, server.port
        stop, pipes, processes, counts = context.Event(), [], [], []
        try:
            for k in range(clients):
                mine, theirs = context.Pipe(False)
                counts.append(context.Value("q", 0))
                asked = (address, token, truth, seed * 1_000 + k, stop, counts[-1], theirs)
                processes.append(context.Process(target=_client, args=asked, daemon=True))
                processes[-1].start()
                pipes.append(mine)
            _wait_for(counts, 1, processes)
            number = 1
            while (number < generations) if seconds is None else (time.monotonic() - began < seconds):
                number += 1
                publish(truth, store, number)
                if number % (2 * DEPTH) == 0:
                    store.prune(keep=1)
                due = number / generations if seconds is None else (time.monotonic() - began) / seconds
                if report.kills < kills and due >= (report.kills + 1) / (kills + 1):
                    server.end(signal.SIGKILL)
                    report.kills += 1
                    server = Served(path, port, token=token)
                if seconds is None:
                    _wait_for(counts, 5, processes)
                else:
                    time.sleep(0.5)
            report.published = number
            stop.set()
            told = [pipe.recv() for pipe in pipes if pipe.poll(START_S)]
            if len(told) < clients:
                report.faults.append(f"{clients - len(told)} clients were not heard of again")
        finally:
            stop.set()
            for process in processes:
                process.join(START_S)
                process.kill()
            server.process.kill()
            server.process.wait(START_S)
    took = np.concatenate([np.array(t[3]) for t in told]) if told else np.zeros(1)
    report.answers, report.users = sum(t[0] for t in told), sum(t[1] for t in told)
    report.seen = len(set().union(*(t[2] for t in told)))
    report.faults += [fault for t in told for fault in t[4]]
    p50, p99, largest = np.percentile(took * 1e3, [50, 99, 100]).round(2).tolist()
    report.latency_ms = p50, p99, largest
    report.seconds = round(time.monotonic() - began, 1)
    return report


def _wait_for(counts: list[Any], more: int, processes: list[Any]) -> None:
    """Until every client has so many more answers, or has ended, or a minute has passed."""
    goal, end = [c.value + more for c in counts], time.monotonic() + START_S
    while time.monotonic() < end:
        if all(c.value >= g or not p.is_alive() for c, g, p in zip(counts, goal, processes, strict=True)):
            return
        time.sleep(0.01)


def main() -> None:
    given = asked(__doc__, seconds=float, generations=6, kills=1, clients=4, seed=1)
    report = run(**vars(given))
    print(json.dumps(dataclasses.asdict(report)))
    sys.exit(1 if report.faults else 0)


if __name__ == "__main__":
    main()
