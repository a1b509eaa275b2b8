"""A store of a billion users, simulated from constants that are measured here first.

Measured, on one core and one disk of this machine: the model's rate, what a user costs beside its events, what a
bucket's task costs beside its users, bytes of a state, bytes per second of building a shard, of folding a chain, and
of reading states. Given, not measured: the hosts (cores, disk, price), how many users and how active.

Simulated: one refresh of every bucket on a pool of workers that take the next bucket when they are free. Changed users
per bucket are drawn from the binomial law, their new events from a lognormal, a task fails with a given probability
and is done again. Then thirty days of twelve such refreshes, with what they fold by the rule of the store.
docs/scale.md reads the result.
"""

from __future__ import annotations

import dataclasses
import heapq
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from beam_jobs.generation import refresh, summarize
from beam_jobs.generation.summarize import schema_of
from cache_store import Publication, Store
from cache_store.change.compact import due
from cache_store.format.keys import bucket_of
from cache_store.format.record import RecordSchema
from cache_store.write.writer import ShardWriter
from tools.bench.harness import Figure, Result, timed
from tools.bench.job import START_MS, histories, make_bundle
from vista import bundle as bundles
from vista.data.events import UserBatch
from vista.data.tables.appending import append
from vista.data.tables.warehouse import Warehouse
from vista.stage1.state import UserState
from vista.stage1.stream import summarize_stream


@dataclass(frozen=True)
class Measured:
    """Constants of one core and one disk.

    Attributes:
        event_s: seconds of model per event.
        user_s: per resumed user beside its events (state in and out, seeds, record).
        task_s: per bucket beside its users (files, LMDB, fsync, receipt).
        state_bytes: of one user.
        write_rate, fold_rate: bytes per second into a shard, and through a compaction.
        states_rate: states per second read and decoded.
        record_bytes: of one user, page waste included.
    """

    event_s: float
    user_s: float
    task_s: float
    state_bytes: float
    write_rate: float
    fold_rate: float
    states_rate: float
    record_bytes: int


@dataclass(frozen=True)
class Fleet:
    """What is given: machines and people.

    Attributes:
        users, active: users, and the share of them with new events between two refreshes.
        new_events: of an active user between two refreshes, on average; their logarithm spreads by ``sigma``.
        shard_users: users per bucket.
        every_h: hours between refreshes.
        deadline_h: a refresh should take at most.
        cores, disk_bytes, disk_rate, host_hour: of a host; bytes, bytes per second of writing, currency per hour.
        copies: of the store on different hosts.
        max_depth: deltas before some are folded.
        failure: probability that a task fails and is done again.
    """

    users: float = 1e9
    active: float = 0.1
    new_events: float = 20.0
    sigma: float = 1.2
    shard_users: int = 65_536
    every_h: float = 2.0
    deadline_h: float = 1.0
    cores: int = 64
    disk_bytes: float = 2 * 7.68e12
    disk_rate: float = 4e9
    host_hour: float = 4.0
    copies: int = 2
    max_depth: int = 6
    failure: float = 0.002


def measure(quick: bool) -> Measured:
    """The constants, in about a minute (``quick``: seconds)."""
    users, mean = (64, 500) if quick else (512, 2_000)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        bundle = make_bundle(root / "bundle", width=64, layers=2)
        model = bundles.load(bundle).model
        torch.set_num_threads(1)
        ids = np.arange(users, dtype=np.int64)
        first = UserBatch(ids, histories(np.full(users, mean), seed=0))
        list(summarize_stream(model, iter([UserBatch(ids[:1], first.events.user(0))])))
        start = time.perf_counter()
        made = list(summarize_stream(model, iter([first])))
        event_s = (time.perf_counter() - start) / len(first.events)
        states = [state.to_bytes() for answer in made for state in answer.states if state is not None]
        start = time.perf_counter()
        decoded = [UserState.from_bytes(data) for data in states]
        states_rate = len(states) / (time.perf_counter() - start)
        # Beside its events a resumed user pays for its tail, its seeds, its record and its state.
        more = UserBatch(ids, histories(np.ones(users, np.int64), seed=1, start_ms=START_MS + 10**13))
        start = time.perf_counter()
        resumed = list(summarize_stream(model, iter([more]), lambda _: decoded))
        packed = [state.to_bytes() for answer in resumed for state in answer.states if state is not None]
        user_s = (time.perf_counter() - start) / users + 1 / states_rate
        schema = schema_of(model, "int64", {})
        write_rate, fold_rate = _write_and_fold(root, 1_000 if quick else 20_000, schema, packed[0])
        task_s = _task(root, bundle, users)
    state_bytes = float(np.mean([len(data) for data in packed]))
    return Measured(
        event_s, user_s, task_s, state_bytes, write_rate, fold_rate, states_rate, schema.row_bytes
    )


def _write_and_fold(root: Path, users: int, schema: RecordSchema, state: bytes) -> tuple[float, float]:
    """Bytes per second into a shard of records with states (quantise, append, digest, fsync), and bytes per second of
    a compaction of it under a delta of a tenth of its users."""
    rng = np.random.default_rng(0)
    block = {g.name: rng.random((500, g.tokens, g.width), np.float32) for g in schema.groups}
    store = Store.create(root / "wide", num_shards=1)
    seconds, parent = [], None
    for step, kind in ((1, "full"), (10, "delta")):
        ids = np.arange(0, users, step, dtype=np.int64)
        folder = store.stage(kind)
        start = time.perf_counter()
        with ShardWriter(folder, 0, 1, schema, with_states=True, fingerprint="0" * 32) as writer:
            for i in range(0, len(ids), 500):
                part = ids[i : i + 500]
                zeros = np.zeros(len(part), np.int64)
                tokens = {name: values[: len(part)] for name, values in block.items()}
                writer.add(part, tokens, zeros, zeros, zeros)
                writer.add_states(part, [state] * len(part))
            receipt = writer.finish()
        seconds.append(time.perf_counter() - start)
        wanted = Publication(
            kind=kind, parent=parent, fingerprint="0" * 32, watermark_ms=0, expected=len(ids)
        )
        parent = store.publish(folder, [receipt], wanted).generation
    size = sum(fact.bytes for fact in receipt.files.values()) * 10
    took = timed(store.compact)
    store.close()
    return size / seconds[0], size / took


def _task(root: Path, bundle: Path, users: int) -> float:
    """Seconds per bucket of a refresh in which one user of all buckets changed."""
    buckets = 8
    ids = np.arange(users, dtype=np.int64)
    tables = Warehouse(root / "tables").create(num_buckets=buckets)
    append(tables, ids, histories(np.full(users, 20), seed=2), bucket_of(ids, buckets))
    asked = refresh.RefreshOptions(
        str(root / "tables"), str(bundle), str(root / "store"), str(root / "refresh"), progress=False
    )
    first = summarize.SummarizeOptions(
        asked.warehouse, asked.bundle, asked.store, str(root / "run"), progress=False
    )
    summarize.run(first)
    later = histories(np.ones(1, np.int64), seed=3, start_ms=START_MS + 10**13)
    append(tables, ids[:1], later, bucket_of(ids[:1], buckets))
    return refresh.run(asked).timings["total"] / buckets


def one_refresh(m: Measured, f: Fleet, workers: int, seed: int) -> tuple[float, float]:
    """(hours until the last bucket is done, hours of the workers' time) of one refresh."""
    rng = np.random.default_rng(seed)
    buckets = max(1, round(f.users / f.shard_users))
    changed = rng.normal(
        f.shard_users * f.active, np.sqrt(f.shard_users * f.active * (1 - f.active)), buckets
    )
    changed = np.maximum(changed, 0)
    # A sum of n lognormals: its mean and spread are enough at thousands of users per bucket.
    spread = f.new_events * np.sqrt(np.expm1(f.sigma**2))
    events = np.maximum(changed * f.new_events + rng.normal(0, 1, buckets) * spread * np.sqrt(changed), 0)
    share = f.disk_rate * (workers / f.cores) / workers  # a worker's share of its host's disk
    written = changed * (m.record_bytes + m.state_bytes)
    seconds = m.task_s + changed * m.user_s + events * m.event_s + written / min(m.write_rate, share)
    tries = 1 + rng.binomial(1, f.failure, buckets)
    free = [0.0] * workers
    for s in seconds * tries:
        heapq.heappush(free, heapq.heappop(free) + float(s))
    return max(free) / 3_600, float((seconds * tries).sum()) / 3_600


def folds(active: float, max_depth: int) -> tuple[float, float]:
    """(stores copied a refresh, most stores that lie on the disk at a time) by what ``compact.due`` folds; the users of
    deltas are drawn anew each time."""
    refreshes, chain, copied, most = 360, [1.0], 0.0, 0.0
    for _ in range(refreshes):
        many = due([round(size * 1e9) for size in chain], max_depth)
        if many != 0:
            many = many or len(chain)
            folded = 1.0 if many == len(chain) else 1 - float(np.prod([1 - size for size in chain[:many]]))
            most = max(most, sum(chain) + folded)
            chain[:many], copied = [folded], copied + folded
        chain.insert(0, active)
    return copied / refreshes, most


def plan(m: Measured, f: Fleet) -> dict[str, float]:
    """Hosts, bytes and hours of one fleet."""
    store_bytes = f.users * (m.record_bytes + m.state_bytes)
    delta_bytes = store_bytes * f.active
    refreshes = 24 / f.every_h
    copied, most = folds(f.active, f.max_depth)
    hosts_for_bytes = f.copies * store_bytes * most / f.disk_bytes
    one, busy = one_refresh(m, f, max(1, round(f.users / f.shard_users)), 0)
    hosts_for_time = busy / (f.deadline_h * f.cores)
    fold_day = refreshes * copied * store_bytes
    fold_h = fold_day / m.fold_rate / 3_600
    hosts_for_folding = fold_h / 24 / f.cores
    disk_day = f.copies * (refreshes * delta_bytes + fold_day)
    hosts_for_disk = disk_day / (f.disk_rate * 86_400)
    hosts = int(np.ceil(max(hosts_for_bytes, hosts_for_time, hosts_for_folding, hosts_for_disk)))
    hours, _ = one_refresh(m, f, hosts * f.cores, 1)
    return {
        "shards": round(f.users / f.shard_users),
        "files_per_generation": 4 * round(f.users / f.shard_users),
        "shard_gb": f.shard_users * m.record_bytes / 1e9,
        "store_tb": store_bytes / 1e12,
        "records_tb": f.users * m.record_bytes / 1e12,
        "delta_tb": delta_bytes / 1e12,
        "written_tb_day": disk_day / 1e12,
        "copied_per_record": copied / f.active,
        "stores_on_disk": most,
        "fold_core_h_day": fold_h,
        "refresh_core_h": busy,
        "refresh_h": hours,
        "longest_task_h": one,
        "hosts": hosts,
        "hosts_for_bytes": hosts_for_bytes,
        "hosts_for_refresh": hosts_for_time,
        "hosts_for_folding": hosts_for_folding,
        "hosts_for_disk": hosts_for_disk,
        "cost_day": hosts * f.host_hour * 24,
        "cost_million_users_month": hosts * f.host_hour * 24 * 30 / (f.users / 1e6),
    }


def run(
    quick: bool, users: tuple[float, ...] = (1e9, 3e9), active: tuple[float, ...] = (0.05, 0.1, 0.2)
) -> Result:
    """Measure the constants, then simulate every pair of ``users`` and ``active``; figures are of the first users
    at 10 %, one line of notes per pair."""
    measured = measure(quick)
    base = Fleet()
    result = Result({**dataclasses.asdict(base), "measured": dataclasses.asdict(measured)})
    for n in users:
        for share in active:
            out = plan(measured, dataclasses.replace(base, users=n, active=share))
            result.notes.append(
                f"{n:.0e} users, {share:.0%} active: " + ", ".join(f"{k} {v:.4g}" for k, v in out.items())
            )
    units = {"_tb": "TB", "_tb_day": "TB/day", "_gb": "GB", "_h": "h", "cost_day": "currency/day"}
    for name, value in plan(measured, base).items():
        unit = next((u for end, u in units.items() if name.endswith(end)), "count")
        result.figures[name] = Figure(float(value), unit, at_least=False)
    result.figures["refresh_in_time"] = Figure(
        result.figures["refresh_h"].value, "h", target=base.every_h, at_least=False
    )
    return result
