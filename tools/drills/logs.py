"""Logs that nobody would write on purpose: text and Parquet by hypothesis, against the accounting law.

Every row of a log is kept or set aside, once; or the file is refused with a typed error. Each log goes through what
``vista ingest`` does with a file (first pass, kinds, first look, vocabularies, check), every ``--whole``-th through the
whole job, where nothing may be committed but what is accounted for.
"""

from __future__ import annotations

import gzip
import json
import os
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from beam_jobs.ingest import job as ingest
from beam_jobs.ingest.options import IngestOptions
from beam_jobs.ingest.text import Log, kinds_of
from beam_jobs.run.engines import HERE
from tools.drills.asked import asked
from tools.drills.drill import memory_folder
from vista.data.logs import schema
from vista.data.logs.columnar import as_rows, is_columnar
from vista.data.logs.importer import accepted, check
from vista.data.logs.inspecting import inspect
from vista.data.logs.reading import ActionColumn, Reading
from vista.data.logs.schema import batches, open_source
from vista.data.logs.values import Rules
from vista.data.tables.warehouse import Warehouse
from vista.errors import VistaError

T0 = 1_700_000_000_000
BOUNDS = (schema.MIN_TIME_MS, 2 * T0)
SLOW_SECONDS = 10.0
PART = 2_500
NAMES = (
    "user_id", "item_id", "action", "timestamp_ms", "surface", "request_id", "timestamp", "like", "events",
)  # fmt: skip
READINGS = (
    Reading(),
    Reading(time_unit="s"),
    Reading(time_format="%Y%m%d"),
    Reading(time_from="order"),
    Reading(time_from="2020-01-01", time_unit="s"),
    Reading(action_is="view"),
    Reading(actions=(ActionColumn("like", "like"), ActionColumn("high", "item_id", ">", "3")), unengaged="impressions"),
    Reading(actions=(ActionColumn("like", "like"),), unengaged="refused"),
    Reading(header=NAMES[:4]),
    Reading(header=("user_id", "item_id", "-", "timestamp_ms"), quotes=False, action_is="view"),
    Reading(explode=("events",), action_is="view"),
    Reading(explode=("events:item_id-like",), action_is="view"),
    Reading(columns={"timestamp_ms": "timestamp+request_id"}),
    Reading(sections="item_id", header=("user_id", "action", "timestamp_ms"), separator=","),
    Reading(keep_repeats=True, constants={"surface": "web"}),
)  # fmt: skip


def files() -> Any:
    """Strategy: (name, bytes, reading) of a log."""
    from hypothesis import strategies as st

    odd = st.sampled_from(
        ["", "\\N", "NULL", "nan", "-", "007", "+7", "7.0", "1e3", "1.70E+12", "inf", "-1", str(2**63), str(2**64),
         "9" * 400, "2023-11-14", "2023-11-14 22:13:20 UTC", "01/31/2024", "20231114", '"', '""', "a,b", "x\ny",
         "\x00", "é", "[1, 2]", "N1-0 N2-1", "{}", "true", "\u202e", *NAMES[:4]]
    )  # fmt: skip
    number = st.integers(0, 9).map(str)
    times_ = st.integers(T0 - 10**9, T0 + 10**9)
    cell = st.one_of(number, number, odd, times_.map(str), st.text(max_size=6))
    line = st.one_of(
        st.tuples(number, number, st.sampled_from(["click", "view", "0"]), times_.map(str)).map(list),
        st.lists(cell, max_size=9),
    )
    header = st.one_of(
        st.just(list(NAMES[:4])), st.permutations(NAMES).map(lambda p: list(p)), st.lists(cell, max_size=6)
    )
    separator = st.sampled_from([",", "\t", ";"])

    def as_text(head: list[str], lines: list[list[str]], by: str, end: str, quote: bool) -> bytes:
        def spelled(value: str) -> str:
            return '"' + value.replace('"', '""') + '"' if quote and (by in value or '"' in value) else value

        return end.join(by.join(map(spelled, row)) for row in (head, *lines)).encode("utf-8", "surrogatepass")

    text = st.builds(as_text, header, st.lists(line, max_size=12), separator, st.sampled_from(["\n", "\r\n", "\r"]),
                     st.booleans())  # fmt: skip
    leaf = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), times_)
    name = st.sampled_from(NAMES)
    value = st.recursive(
        leaf, lambda v: st.lists(v, max_size=3) | st.dictionaries(name, v, max_size=3), max_leaves=6
    )
    good = st.fixed_dictionaries({"user_id": st.integers(0, 9), "item_id": st.integers(0, 9), "action": st.just("c"),
                                  "timestamp_ms": times_})  # fmt: skip
    row = st.one_of(good, st.dictionaries(st.sampled_from(NAMES), value, max_size=6))
    objects = st.lists(st.one_of(row.map(json.dumps), st.text(max_size=8)), max_size=12).map(
        lambda rows: "\n".join(rows).encode("utf-8", "surrogatepass")
    )
    damage = st.lists(st.tuples(st.integers(0, 400), st.binary(min_size=1, max_size=2)), max_size=2)

    def damaged(data: bytes, edits: list[tuple[int, bytes]], zipped: int) -> tuple[bytes, str]:
        for at, put in edits:
            data = data[:at] + put + data[at + len(put) :] if at < len(data) else data
        if not zipped:
            return data, ""
        packed = gzip.compress(data, 1)
        return (packed[:-zipped] if zipped > 1 else packed), ".gz"

    def named(ending: str, data: tuple[bytes, str], reading: Reading) -> tuple[str, bytes, Reading]:
        return f"a{ending}{data[1]}", data[0], reading

    zipped = st.sampled_from([0, 0, 0, 1, 9])
    readings = st.sampled_from(READINGS)
    csvs = st.builds(named, st.sampled_from([".csv", ".tsv", ".txt", ".inter"]),
                     st.builds(damaged, text, damage, zipped), readings)  # fmt: skip
    jsons = st.builds(named, st.just(".jsonl"), st.builds(damaged, objects, damage, zipped), readings)
    tables_ = st.builds(
        lambda seed, reading: ("a.parquet", parquet(seed), reading), st.integers(0, 2**32 - 1), readings
    )
    return st.one_of(csvs, csvs, jsons, tables_)


def parquet(seed: int) -> bytes:
    """A Parquet file of odd types and values."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(0, 9))
    small = [None if rng.random() < 0.1 else int(v) for v in rng.integers(0, 5, n)]
    times_ = [T0 + int(v) for v in rng.integers(-(10**9), 10**9, n)]
    wild = [int(v) for v in rng.choice([0, -1, 2**62, -(2**62), T0, T0 * 1000], n)]
    texts = [None if v is None else str(v) for v in small]
    choices: list[Any] = [
        pa.array(small, pa.int64()),
        pa.array(small, pa.int8()),
        pa.array(texts, pa.string()),
        pa.array(texts, pa.large_string()),
        pa.array(texts, pa.string()).dictionary_encode(),
        pa.array([None if t is None else t.encode() + b"\xff" * int(rng.integers(0, 2)) for t in texts], pa.binary()),
        pa.array([None if v is None else v + 0.5 * int(rng.integers(0, 2)) for v in small], pa.float64()),
        pa.array([float(rng.choice([1, np.nan, np.inf, -np.inf, 1e300])) for _ in range(n)], pa.float32()),
        pa.array([2**64 - 1 if rng.random() < 0.3 else 1 for _ in range(n)], pa.uint64()),
        pa.array(small, pa.decimal128(20, 2)),
        pa.array([None if v is None else v > 2 for v in small], pa.bool_()),
        pa.nulls(n),
        pa.array(times_, pa.int64()),
        pa.array(wild, pa.int64()),
        pa.array(times_, pa.timestamp("ms")),
        pa.array(wild, pa.timestamp("us")),
        pa.array([v % 10_000 for v in wild], pa.date32()),
        pa.array(wild, pa.duration("us")),
        pa.array([str(t) for t in times_]),
        pa.array([[1, None, 2][: int(rng.integers(0, 4))] for _ in range(n)], pa.list_(pa.int64())),
        pa.array([["a", None][: int(rng.integers(0, 3))] for _ in range(n)], pa.list_(pa.string())),
        pa.array([[{"item_id": 1, "like": True}] * int(rng.integers(0, 3)) for _ in range(n)],
                 pa.list_(pa.struct([("item_id", pa.int64()), ("like", pa.bool_())]))),
    ]  # fmt: skip
    usual = {"user_id": (0, 2, 4), "item_id": (0, 2, 4), "action": (0, 2, 10), "timestamp_ms": (12, 14, 18)}
    columns = {}
    for name in NAMES:
        if rng.random() < (0.9 if name in usual else 0.4):
            kinds = usual.get(name, range(len(choices))) if rng.random() < 0.8 else range(len(choices))
            columns[name] = choices[int(rng.choice(list(kinds)))]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink, row_group_size=max(1, int(rng.integers(1, 6))),
                   write_statistics=bool(rng.integers(0, 2)))  # fmt: skip
    data = bytearray(sink.getvalue().to_pybytes())
    if rng.random() < 0.1 and data:
        data[int(rng.integers(0, len(data)))] ^= 1 << int(rng.integers(0, 8))
    return bytes(data)


def account(folder: Path, name: str, data: bytes, reading: Reading) -> str:
    """Put a log through what ingest does with a file: ``kept and set aside`` or the refusal's class.

    Raises:
        AssertionError: a row is neither kept nor set aside, or is both.
    """
    path = folder / name
    path.write_bytes(data)
    log = Log(str(path), str(folder / "spill" / "text"), schema.EVENTS, reading, BOUNDS)
    rows_at, names = "", []
    try:
        if log.is_text:
            log.write_draft()
            facts = log.facts()
            (kinds,) = kinds_of([(log, facts)], {})
            log.write_typed(kinds)
            rows_at, names = str(log.file(".parquet")), facts.names
        elif is_columnar(str(path), reading):
            rows_at = str(log.file(".parquet"))
            log.file("").parent.mkdir(parents=True, exist_ok=True)
            as_rows(str(path), rows_at, schema.EVENTS, reading)
        source = inspect(str(path), schema.EVENTS, reading, BOUNDS, rows_at, names)
        if not source.decides and not source.rows:
            return "empty"
        seen = _checked(source, reading)
    except VistaError as error:
        return type(error).__name__
    except (OSError, ValueError, pa.ArrowException) as error:
        # Pages of a damaged Parquet file: the readers of the job make UnreadableFile of these three.
        if name.endswith(".parquet") and not rows_at:
            return f"page: {type(error).__name__}"
        raise
    assert seen == source.rows, f"{seen} of {source.rows} rows accounted for"
    return "kept and set aside"


def _checked(source: schema.LogFile, reading: Reading) -> int:
    meanings = [m for m in ("action", "surface") if m in source.names and source.kinds[m] not in ("null",)]
    meanings = [m for m in meanings if not (m == "surface" and source.kinds[m] == "int")]
    rules = Rules(*BOUNDS, (), (), reading, 0)
    with open_source(source.data) as file:
        found_rows = list(batches(file, 4, list(dict.fromkeys(source.names.values()))))
    row = total = 0
    for batch in found_rows:
        found = accepted(batch, source, rules, row, meanings)
        words = [str(v) for v in found.get("action", [])][:20]
        names = tuple(dict.fromkeys((*reading.named_actions(), *words)))
        surfaces = tuple(str(v) for v in found.get("surface", ())) or ("web",)
        checked = check(batch, source, Rules(*BOUNDS, names, surfaces, reading, T0), row)
        assert all(len(x.values) < 20_000 for x in checked.letters)
        assert len({x.row for x in checked.letters}) == len(checked.letters) or reading.explode
        assert all(len(c) == len(checked) for c in checked.columns.values())
        total += len(checked) + len(checked.letters)
        row += batch.num_rows
    return total


def whole(folder: Path, name: str, data: bytes, reading: Reading) -> str:
    """The same by the whole job.

    Raises:
        AssertionError: what is in the tables is not what the record says.
    """
    path = folder / name
    path.write_bytes(data)
    home = folder / "whole"
    try:
        options = IngestOptions((str(path),), str(home / "tables"), str(home / "run"), log=reading, num_buckets=1,
                                max_time_ms=BOUNDS[1])  # fmt: skip
        record = ingest.run(options, [HERE], progress=False)
    except VistaError as error:
        tables = Warehouse(home / "tables")
        assert not (home / "tables").exists() or not tables.exists() or tables.snapshot() is None
        return type(error).__name__
    counts = record.counts
    parts = ("written", "repeated", "in_table", "forgotten", "dead")
    assert counts["events_read"] == sum(counts[f"events_{p}"] for p in parts) + counts["unengaged"]
    return "ingested"


def run(logs: int, seed: int, whole_every: int, keep: Path | None = None) -> dict[str, Any]:
    """Try so many logs, ``PART`` of a seed, the next of the next; what came of them.

    Args:
        keep: folder for the logs that show a fault.
    """
    outcome: Counter[str] = Counter()
    found: dict[str, Any] = {"logs": 0, "seed": seed, "slowest_cpu_seconds": 0.0, "faults": []}
    with tempfile.TemporaryDirectory(dir=memory_folder(), ignore_cleanup_errors=True) as root:
        for number, begin in enumerate(range(0, logs, PART)):
            _part(min(PART, logs - begin), seed + number, whole_every, Path(root), outcome, found, keep)
    found["logs"] = sum(n for k, n in outcome.items() if not k.startswith("whole"))
    return {**found, "outcomes": dict(outcome.most_common())}


def _part(
    logs: int, seed: int, whole_every: int, root: Path, outcome: Counter[str], found: dict[str, Any], keep: Path | None
) -> None:  # fmt: skip
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded

    last: list[tuple[str, bytes, Reading]] = []

    @seeded(seed)
    @settings(max_examples=logs, deadline=None, database=None, suppress_health_check=list(HealthCheck),
              phases=(Phase.generate, Phase.shrink))  # fmt: skip
    @given(files())
    def one(log: tuple[str, bytes, Reading]) -> None:
        last[:] = [log]
        with tempfile.TemporaryDirectory(dir=root, ignore_cleanup_errors=True) as name:
            folder, start = Path(name), time.process_time()
            outcome[account(folder, *log)] += 1
            if whole_every and sum(outcome.values()) % whole_every == 0:
                outcome[f"whole: {whole(folder, *log)}"] += 1
            took = round(time.process_time() - start, 3)
            found["slowest_cpu_seconds"] = max(found["slowest_cpu_seconds"], took)
            assert took < SLOW_SECONDS, f"{took} s of processor for one log"

    try:
        one()
    except Exception as error:
        name, data, reading = last[0]
        text = f"seed {seed}: {type(error).__name__}: {error}; {name} {data!r} {reading}"
        found["faults"].append(text[:2_000])
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
            (keep / f"{seed}-{name}").write_bytes(data)
            (keep / f"{seed}.txt").write_text(f"{reading}\n{traceback.format_exc()}")


def main() -> None:
    """``vista drill logs``."""
    whole = (200, "every so many logs the whole job; 0 for none")
    keep = (Path, "folder for the logs that show a fault")
    given = asked(__doc__, logs=1_000, seed=0, whole=whole, keep=keep)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    found = run(given.logs, given.seed, given.whole, given.keep)
    print(json.dumps(found))
    raise SystemExit(1 if found["faults"] else 0)
