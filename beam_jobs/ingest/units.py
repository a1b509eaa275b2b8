"""Units of work of ``ingest``: what they are given, and the receipts that let a run go on where it was.

    ReadTask ──▶ pieces by bucket and item shard ──▶ Bucket ──▶ pieces by item shard ──▶ ItemShard

What one step hands to the next are paths of chunks (``spill``), which its receipts name; the driver groups them. A
receipt names the digest of the unit's inputs, so it counts only for the same inputs, rules and commit. What workers
unpickle lives here and in ``read``, ``build`` and ``items``, apart from the driver's part, so that they import no
catalog.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from beam_jobs.ingest.spill import Spilled, write_chunk
from beam_jobs.run.record import RunDirectory, peak_memory_bytes, unit_name
from vista.data import paths
from vista.data.logs.schema import LogFile
from vista.data.logs.values import Rules
from vista.data.tables.forgotten import ForgottenUsers
from vista.data.tables.reading import DataFile
from vista.data.tables.rows import HISTORY, IMPRESSIONS

KINDS = {"events": HISTORY, "impressions": IMPRESSIONS}


@dataclass(frozen=True)
class IngestSettings:
    """What all tasks of a run share; plain values.

    Attributes:
        rules, shown_rules: of events, and of files of impressions (by default the same).
        vector_width: floats of an item's vector.
    """

    run_dir: str
    run: str
    commit: int
    user_kind: str
    num_buckets: int
    item_shards: int
    roots: dict[str, str]
    rules: Rules
    chunk_rows: int
    max_rows: int
    skip_bad_files: bool
    forgotten: ForgottenUsers = ForgottenUsers()
    shown_rules: Rules | None = None
    vector_width: int = 0

    @property
    def directory(self) -> RunDirectory:
        return RunDirectory(self.run_dir)

    def spill(self, *names: str) -> Path:
        return Path(self.run_dir, "spill", *names)


@dataclass(frozen=True)
class ReadTask:
    """Some row groups of some files of one kind: (source, row groups, number of the first row) each."""

    number: int
    tag: str
    parts: tuple[tuple[LogFile, tuple[int, ...], int], ...]

    @property
    def name(self) -> str:
        return f"read-{self.tag}-{self.number:06d}"

    @property
    def rows(self) -> int:
        return sum(source.groups[g] for source, groups, _ in self.parts for g in groups)


@dataclass(frozen=True)
class OldFile:
    """A file that the table has already; its rows are looked up before new ones are written."""

    tag: str
    file: DataFile


@dataclass(frozen=True)
class Bucket:
    """New rows of a bucket and the files that the tables have of it."""

    number: int
    values: tuple[Spilled | OldFile, ...]

    @property
    def name(self) -> str:
        return unit_name(self.number)

    @property
    def rows(self) -> int:
        return sum(v.rows for v in self.values if isinstance(v, Spilled))


@dataclass(frozen=True)
class ItemShard:
    """Counts, names and content of a share of the items."""

    number: int
    values: tuple[Spilled, ...]

    @property
    def name(self) -> str:
        return f"items-{self.number:05d}"

    @property
    def rows(self) -> int:
        return sum(v.rows for v in self.values)


Routed = tuple[str, int, Spilled]
"""(``bucket`` or ``items``, number of the bucket or item shard, piece)."""


def write_unit(
    settings: IngestSettings,
    name: str,
    inputs: str,
    routed: Sequence[Routed],
    counts: dict[str, int],
    start: float,
    files: Sequence[str] = (),
) -> None:
    """Declare a unit finished. Table files that are local are named with their digests."""
    run = settings.directory
    local = [paths.local_path(f) for f in files if paths.is_local(f)]
    receipt = {
        "files": run.describe_files(local),
        "inputs": inputs,
        "table_files": list(files),
        "routed": [[to, number, asdict(piece)] for to, number, piece in routed],
        "counts": counts,
        "timings": {"seconds": round(time.monotonic() - start, 3)},
        "peak_memory_bytes": peak_memory_bytes(),
    }
    run.write_receipt(name, receipt)


def inputs_digest(values: Sequence[dict[str, Any]], settings: IngestSettings) -> str:
    """What a unit's receipt stands for: the same inputs, read by the same rules, for the same commit."""
    both = [r for r in (settings.rules, settings.shown_rules) if r is not None]
    rules = [{**asdict(r), "reading": r.reading.to_json()} for r in both]
    facts = [settings.commit, rules, sorted(json.dumps(v, sort_keys=True) for v in values)]
    return xxhash.xxh3_128_hexdigest(json.dumps(facts).encode())


def finished(settings: IngestSettings, name: str, inputs: str) -> dict[str, Any] | None:
    """A unit's receipt, where it is for these inputs and what it handed on is still there."""
    receipt = settings.directory.receipt(name)
    if receipt is None or receipt["inputs"] != inputs:
        return None
    pieces = {piece["path"] for _, _, piece in receipt["routed"]}
    return receipt if all(Path(path).exists() for path in pieces) else None


def handed_on(receipts: Iterable[Mapping[str, Any]]) -> Iterator[Routed]:
    """What finished units hand to the next step."""
    for receipt in receipts:
        shared: dict[str, str] = {}  # thousands of pieces lie in one file
        for to, number, piece in receipt["routed"]:
            yield to, number, Spilled(**{**piece, "path": shared.setdefault(piece["path"], piece["path"])})


def grouped(routed: Iterable[Routed], to: str) -> dict[int, list[Spilled]]:
    """Pieces for ``bucket`` or ``items`` by number, in order."""
    found: defaultdict[int, list[Spilled]] = defaultdict(list)
    for kind, number, piece in routed:
        if kind == to:
            found[number].append(piece)
    return dict(sorted(found.items()))


def by_item(
    tag: str, columns: dict[str, np.ndarray | pa.Array], file: str, settings: IngestSettings
) -> list[Routed]:
    """Spill rows to the item shards of the items in their first column."""
    part = item_shard(next(iter(columns.values())), settings.item_shards)
    pieces = write_chunk(settings.spill(tag, file), tag, part, columns)
    return [("items", shard, piece) for shard, piece in pieces.items()]


def item_shard(item: np.ndarray, shards: int) -> np.ndarray:
    """int32 [N]: which task adds an item up; any even spread will do."""
    with np.errstate(over="ignore"):
        mixed = item.astype(np.int64).view(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return ((mixed >> np.uint64(32)) % np.uint64(shards)).astype(np.int32)
