"""From an event to the lookup that shows it: ``vista follow`` on a Redis stream at a stated rate, beside a reader.

Every quarter of a second one event is of a user who was never seen; a reader that moves to new generations as serving
does looks those users up until they are there. Beside the lags it tells what grew: memory, open files and mappings of
the service, bytes, files and deltas below the home, open files of the reader; each as its mean in each quarter of the
time. At the end the tables must hold every event once.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tools.bench.harness import Figure, Result, median, sized

START = 1_700_000_000_000
ACTIONS = ("view", "like")
UNITS = {"memory": "MB", "mapped": "MB", "disk": "MB"}
STEPS = ("read", "ingest", "refresh", "tidy")
NEW = 1 << 40
"""Users from here on were never seen before."""


@sized(rate=50, users=200, seconds=8.0, kills=1)
def run(
    quick: bool,
    rate: int = 1_000,
    users: int = 100_000,
    seconds: float = 180.0,
    kills: int = 0,
    width: int = 64,
    workers: int = 1,
    record: str = "whole",
    seed: int = 0,
) -> Result:
    """Follow a stream for a while.

    Args:
        rate: events a second.
        users: who they are of.
        seconds: how long events arrive.
        kills: SIGKILLs of the service at random moments; it is started again at once.
        width: D of the model.
        workers: processes that resume users.
        record: how large a record is: whole, half, small or tiny, of 32 to 4 KiB.
    """
    if shutil.which("redis-server") is None:
        raise FileNotFoundError(
            "redis-server: expected on the PATH, found none; apt-get install redis-server"
        )
    with tempfile.TemporaryDirectory(prefix="vista-freshness-") as folder, _redis(folder) as (client, url):
        home = Path(folder)
        _model(home, width, record)
        rng = np.random.default_rng(seed)
        sent = _send(client, rng, 0, users, users)  # everybody has been here before
        with contextlib.closing(_Service(home, url, workers)) as service:
            _until(lambda: service.position().startswith(_last(client)), 600, "the first turn")
            lags, seen, grew = _drive(client, service, rng, rate, users, seconds, kills, sent)
            _until(lambda: service.position().startswith(_last(client)), 600, "the last turn")
        stored, told = _stored(home), service.told()
    turns = [turn["seconds"] for turn in told]
    result = Result()
    result.figures = {
        "lag_p50_s": median(np.array(lags), "s", target=3.0, at_least=False),
        "lag_p99_s": Figure(float(np.percentile(lags, 99)), "s", target=10.0, at_least=False),
        "markers": Figure(len(lags), "users"),
        "events_lost": Figure(seen - stored, "events", target=0.0, at_least=False),
        "events_sent": Figure((seen - users) / seconds, "events/s"),
        "turns": Figure(len(turns), "turns"),
        "turn_events": median([t["counts"].get("events_written", 0) for t in told[1:]], "events"),
        **{f"turn_{step}_s": median([t.get(step, 0.0) for t in turns[1:]], "s") for step in STEPS},
        "load": median([size.pop("load") for size in grew], "processes"),
        **{name: _quarters(grew, name) for name in grew[0]},
    }
    return result


@contextlib.contextmanager
def _redis(folder: str) -> Iterator[tuple[Any, str]]:
    """A server of its own: a client, and the address of the stream."""
    import redis

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        client = redis.Redis(port=port)
        try:
            _until(lambda: _answers(client), 10, "Redis")
            yield client, f"redis://127.0.0.1:{port}?stream=events"
        finally:
            server.kill()


def _answers(client: Any) -> bool:
    try:
        return bool(client.ping())
    except OSError:
        return False
    except Exception as error:
        if type(error).__name__ == "ConnectionError":
            return False
        raise


def _until(done: Callable[[], bool], limit_s: float, what: str) -> None:
    end = time.monotonic() + limit_s
    while not done():
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: expected within {limit_s:g} s")
        time.sleep(0.05)


def _model(home: Path, width: int, record: str = "whole") -> None:
    """A bundle whose weights are as drawn: what it costs does not depend on them."""
    from vista import bundle
    from vista.config import ModelConfig, TokenConfig
    from vista.model import VistaModel

    tokens = TokenConfig.named(record)
    model = VistaModel(ModelConfig(width=width, actions=ACTIONS, tokens=tokens)).eval()
    items = bundle.items_table(np.array([1]), np.array([0]), np.array([1]))
    bundle.save(home / "model", model, bundle.Meta(actions=ACTIONS), items)


def _send(
    client: Any, rng: np.random.Generator, at: int, count: int, users: int, marker: int | None = None
) -> int:
    """Add events number ``at`` and on; the next number. No two events are alike."""
    pipe = client.pipeline(transaction=False)
    who = rng.integers(0, users, count)
    if marker is not None:
        who[-1] = marker
    for n, user, item in zip(
        range(at, at + count), who.tolist(), rng.integers(0, 50_000, count).tolist(), strict=True
    ):
        event = {"user_id": user, "item_id": item, "action": ACTIONS[n % 2], "timestamp_ms": START + n}
        pipe.xadd("events", {"event": json.dumps(event)})
    pipe.execute()
    return at + count


def _last(client: Any) -> str:
    return client.xinfo_stream("events")["last-generated-id"].decode()


class _Service:
    """The command as a child; started again after a kill."""

    def __init__(self, home: Path, url: str, workers: int):
        actions = [word for name in ACTIONS for word in ("--action", name)]
        self.command = [
            sys.executable, "-m", "tools.cli", "follow", url, "--home", str(home), "--json", "--buckets", "4", *actions,
            "--workers", str(workers), "--keep-minutes", "1",
        ]  # fmt: skip
        self.home = home
        self.log = open(home / "turns.jsonl", "a+")
        self.start()

    def start(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.child = subprocess.Popen(self.command, stdout=self.log, env=environment)

    def kill(self) -> None:
        self.child.send_signal(signal.SIGKILL)
        self.child.wait(30)
        self.start()

    def close(self) -> None:
        self.child.terminate()  # ends with its turn; ^C is ignored where a shell started the benchmark with &
        try:
            self.child.wait(120)
        finally:
            self.child.kill()
            self.log.close()

    def told(self) -> list[dict[str, Any]]:
        """Turns that it told of, since the beginning."""
        lines = (self.home / "turns.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines if line.endswith("}")]

    def position(self) -> str:
        """Of the last turn that was told."""
        if self.child.poll() is not None:
            raise RuntimeError(f"vista follow ended with {self.child.returncode}")
        told = self.told()
        return told[-1]["position"] if told else ""

    def sizes(self) -> dict[str, float] | None:
        """Memory of its own and mapped files in MB, open files, mappings; MB and files below the home. None where it
        just ended."""
        proc, found = Path(f"/proc/{self.child.pid}"), {"disk": 0.0, "files": 0.0}
        try:
            of = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
            found["memory"] = int(of["RssAnon"].split()[0]) / 1e3
            found["mapped"] = int(of["RssFile"].split()[0]) / 1e3
            found["open_files"] = len(os.listdir(proc / "fd"))
            found["mappings"] = (proc / "maps").read_bytes().count(b"\n")
        except (OSError, KeyError):
            return None
        for folder, _, names in os.walk(self.home):  # what goes meanwhile is not counted
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    found["disk"] += os.stat(f"{folder}/{name}").st_blocks * 512 / 1e6
                    found["files"] += 1
        return found


def _quarters(sizes: list[dict[str, float]], name: str) -> Figure:
    """Mean of a size in the last quarter of the time; its unit has the means of all four, low and high every moment."""
    values = np.array([size[name] for size in sizes])
    means = [part.mean() for part in np.array_split(values, min(4, len(values)))]
    unit = f"{UNITS.get(name, '')} (quarters {' '.join(f'{mean:.4g}' for mean in means)})".strip()
    return Figure(float(means[-1]), unit, low=float(values.min()), high=float(values.max()))


def _drive(
    client: Any,
    service: _Service,
    rng: np.random.Generator,
    rate: int,
    users: int,
    seconds: float,
    kills: int,
    sent: int,
) -> tuple[list[float], int, list[dict[str, float]]]:
    """Send at the rate and look markers up; lags in seconds, events sent, sizes over time."""
    from cache_store import Status, Store

    begin = time.monotonic()
    deaths = sorted(random.Random(int(rng.integers(1 << 30))).uniform(0, seconds) for _ in range(kills))
    waiting: dict[int, float] = {}
    lags: list[float] = []
    sizes: list[dict[str, float]] = []
    marker, due, look = NEW, begin, 0.0
    with Store.open(service.home / "store") as store:
        while (now := time.monotonic()) < begin + seconds or waiting:
            if now > begin + seconds + 600:
                raise TimeoutError(f"{len(waiting)} users are not there ten minutes after their events")
            if now >= due and now < begin + seconds:
                sent = _send(client, rng, sent, max(1, rate // 4), users, marker)
                waiting[marker] = time.monotonic()
                marker, due = marker + 1, due + 0.25
            if deaths and now > begin + deaths[0]:
                deaths.pop(0)
                service.kill()
            store.refresh()
            users_now = np.array(list(waiting), np.int64)
            there = (
                users_now[store.lookup(users_now).status != Status.MISSING] if len(users_now) else users_now
            )
            lags += [time.monotonic() - waiting.pop(user) for user in there.tolist()]
            if now > begin + look:
                look += 5
                if size := service.sizes():
                    size |= {"load": os.getloadavg()[0], "deltas": float(store.manifest.depth)}
                    sizes.append(size | {"reader_open_files": float(len(os.listdir("/proc/self/fd")))})
            time.sleep(0.02)
    return lags, sent, sizes


def _stored(home: Path) -> int:
    """Distinct events in the tables."""
    from vista.data.tables.reading import read_bucket
    from vista.data.tables.warehouse import Warehouse

    times: list[np.ndarray] = []
    for files in Warehouse(str(home / "warehouse")).open().bucket_files().values():
        times += [batch.events.time for batch in read_bucket(files, max_rows=1 << 20)]
    found = np.concatenate(times)
    if len(np.unique(found)) != len(found):
        raise AssertionError(f"{len(found)} events in the tables, {len(np.unique(found))} of them distinct")
    return len(found)
