"""`vista serve` on loopback, beside the lookup in process and beside Redis.

All sides hold the same records of 32 KiB, and give the stored bytes with TCP between: ours in form ``rows`` over
one open exchange, Redis by one pipelined MGET (a client that knows the reply's size). ``in_process`` is
``Store.lookup_raw``. A batch is 512 users; ``single`` one user, p50 and p99 over all requests. With ``clients``
processes at once each asks for ``share`` users a request: users a second over all of them, and how many users the
server looked up together.

``sequence`` is what a ranker asks for where records hold a table of items: the 128 heaviest with their bias, 1.5 KB a
user on the wire instead of 32.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import re
import shutil
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cache_store import Group, RecordSchema, Store, Table
from cache_store.flight.client import SummaryClient
from tools.bench.harness import Figure, Result, at_once, in_turn, median, ratio, sized, timed
from tools.bench.lookup import fill
from tools.bench.redis_rows import RedisRows, connect, reader
from tools.drills.serving import START_S, served

BATCH = 512
SHARDS = 4
ITEMS, CLUSTERS, LIVES = 1_824, 4_096, (None, 2_048.0, 256.0)
SCHEMA = RecordSchema(
    (Group("keys", 57, 64, "int64"), Group("masses", 86, 64, "log8"), Group("counters", 192, 64, "log8")),
    "int64",
    (Table("keys", "masses", ITEMS, LIVES, 1), Table("", "counters", CLUSTERS, LIVES, 1)),
)  # fmt: skip
"""The default record: exact tokens and cluster counters."""


@sized(users=1_024, repeats=5)
def run(quick: bool, users: int = 8_192, repeats: int = 31, clients: int = 4, share: int = 16) -> Result:
    """Measure; see the module.

    Args:
        users: in the store and in Redis.
        clients: processes that ask at once.
        share: users of each of their requests.
    """
    singles, asked = (50, 50) if quick else (2_000, 1_000)
    ids = np.arange(users, dtype=np.int64) * 7_919
    figures: dict[str, Figure] = {}
    notes: list[str] = []
    with contextlib.ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-serve-")))
        _build(place / "store", ids)
        store = stack.enter_context(Store.open(place / "store"))
        server = stack.enter_context(served(place / "store"))
        client = stack.enter_context(SummaryClient(server.address, form="rows"))
        decoded = stack.enter_context(SummaryClient(server.address, form="sequence", tokens=128))
        redis = None
        if shutil.which("redis-server"):
            redis = stack.enter_context(RedisRows(place, store.row_bytes, tcp=True))
            blocks = (ids[i : i + BATCH] for i in range(0, users, BATCH))
            redis.fill((block, store.lookup_raw(block).rows) for block in blocks)
        else:
            notes.append("redis-server is not installed: Redis was left out")
        for count, name in ((BATCH, "batch"), (1, "single")):
            ask, out = _asker(ids, count), np.zeros((count, store.row_bytes), np.uint8)
            sides: dict[str, Callable[[], Any]] = {
                "in_process": functools.partial(_ask, functools.partial(store.lookup_raw, out=out), ask),
                "serve": functools.partial(_ask, client.lookup, ask),
                "serve_sequence": functools.partial(_ask, decoded.lookup, ask),
            }
            if redis is not None:
                sides["redis"] = redis.reader(ask, out)
                _same(store, client, sides["redis"], ids[:count], out, ask)
            seconds = in_turn(sides, repeats if count > 1 else singles, warmup=3)
            for side, took in seconds.items():
                if count > 1:
                    figures[f"{side}_users_per_s"] = median(count / took, "users/s")
                else:
                    for q in (50, 99):
                        figures[f"{side}_single_p{q}"] = Figure(float(np.percentile(took, q)), "s")
            if redis is not None:
                figures[f"vs_redis_{name}"] = ratio(seconds["redis"], seconds["serve"])
            figures[f"of_in_process_{name}"] = ratio(seconds["in_process"], seconds["serve"])
        before = _lookups(server.http)
        crowds = {"serve": server.address, "serve_sequence": server.address}
        for kind, where in (crowds | ({"redis": redis.address} if redis is not None else {})).items():
            rate, p99 = _together(clients, asked, share, ids, (kind, where), store.row_bytes)
            figures[f"{kind}_users_per_s_{clients}_clients"] = Figure(rate, "users/s")
            figures[f"{kind}_p99_{clients}_clients"] = Figure(p99, "s")
        after = _lookups(server.http)
        figures["users_per_lookup"] = Figure((after[1] - before[1]) / (after[0] - before[0]), "users")
    return Result({"batch": BATCH, "kernel": store.kernel, "row_bytes": SCHEMA.row_bytes}, figures, notes)


def _build(path: Path, users: np.ndarray) -> None:
    rng = np.random.default_rng(0)

    def tokens(n: int) -> dict[str, np.ndarray]:
        keys = np.sort(rng.integers(0, 1 << 40, (n, ITEMS)), axis=1)
        return {
            "keys": keys.view(np.float32).reshape(n, 57, 64),
            "masses": np.exp2(rng.integers(0, 9, (n, 86, 64))).astype(np.float32),
            "counters": np.exp2(rng.integers(0, 9, (n, 192, 64))).astype(np.float32),
        }

    fill(Store.create(path, num_shards=SHARDS), users, SCHEMA, tokens, step=128)


def _asker(ids: np.ndarray, count: int, seed: int = 1) -> Callable[[], np.ndarray]:
    rng = np.random.default_rng(seed)
    batches = itertools.cycle([rng.choice(ids, count, replace=False) for _ in range(64)])
    return lambda: next(batches)


def _ask(look: Callable[[np.ndarray], Any], ask: Callable[[], np.ndarray]) -> Any:
    return look(ask())


def _same(store: Store, client: SummaryClient, read: Callable[[], Any], users: np.ndarray, out: np.ndarray,
          ask: Callable[[], np.ndarray]) -> None:  # fmt: skip
    """Rivals that answer something else would be no comparison."""
    told = [row[16:] for row in client.lookup(users).column("row").to_pylist()]
    if told != [row[16:].tobytes() for row in store.lookup_raw(users).rows]:
        raise RuntimeError("bench serve: the server gave other bytes than the store")
    read()
    found = {row[16:].tobytes() for row in out}
    known = {
        row[16:].tobytes() for batch in [ask() for _ in range(64)] for row in store.lookup_raw(batch).rows
    }
    if not found <= known:
        raise RuntimeError("bench serve: Redis gave other bytes than the store")


def _lookups(http: str) -> tuple[float, float]:
    """Lookups of the server so far, and users in them."""
    with urllib.request.urlopen(f"{http}/metrics", timeout=START_S) as answer:
        text = answer.read().decode()
    found = dict(re.findall(r"vista_serve_lookup_users_(count|sum) (\S+)", text))
    return float(found["count"]), float(found["sum"])


def _together(
    clients: int, asked: int, share: int, ids: np.ndarray, where: tuple[str, Any], size: int
) -> tuple[float, float]:
    """Users a second over all clients, and p99 of their requests."""
    told = at_once(_client, [(where, size, ids, asked, share, k) for k in range(clients)])
    wall = max(t[1] for t in told) - min(t[0] for t in told)
    return clients * asked * share / wall, float(np.percentile(np.concatenate([t[2] for t in told]), 99))


def _client(
    where: tuple[str, Any],
    size: int,
    ids: np.ndarray,
    asked: int,
    share: int,
    seed: int,
    barrier: Any,
    pipe: Any,
) -> None:
    ask, out = _asker(ids, share, seed), np.zeros((share, size), np.uint8)
    if where[0] == "redis":
        read: Callable[[], Any] = reader(connect(where[1]), ask, out)
    else:
        client = SummaryClient(where[1], form="rows" if where[0] == "serve" else "sequence")
        read = functools.partial(_ask, client.lookup, ask)
    read()
    barrier.wait(START_S)
    start, took = time.monotonic(), [timed(read) for _ in range(asked)]
    pipe.send((start, time.monotonic(), took))
