"""The steps of ``ingest``: read, then build each bucket from what was read for it, then add items up.

    ReadTask ──▶ pieces by bucket and item shard ──▶ Bucket ──▶ pieces by item shard ──▶ ItemShard

What one step hands to the next are paths of chunks (``spill``), which its receipts name; the driver groups them. What
workers unpickle lives here, apart from the driver's part, so that they import no catalog.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from beam_jobs.ingest.build import build_bucket
from beam_jobs.ingest.items import build_items
from beam_jobs.ingest.read import read_logs
from beam_jobs.ingest.spill import Spilled
from beam_jobs.ingest.units import IngestSettings, OldFile, ReadTask, Routed
from beam_jobs.run.record import unit_name


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


def read(task: ReadTask, settings: IngestSettings) -> dict[str, int]:
    read_logs(task, settings)
    return {"rows_read": task.rows}


def build(task: Bucket, settings: IngestSettings) -> dict[str, int]:
    build_bucket(task.number, task.values, settings)
    counts = (settings.directory.receipt(task.name, verify=False) or {"counts": {}})["counts"]
    return {name: counts.get(name, 0) for name in ("users", "events")}


def add_up(task: ItemShard, settings: IngestSettings) -> dict[str, int]:
    build_items(task.number, task.values, settings)
    return {}


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
