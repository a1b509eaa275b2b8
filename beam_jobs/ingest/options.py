"""What an ingest run is asked."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from beam_jobs.errors import OptionsError
from vista.data.logs import schema
from vista.data.logs.reading import Reading

LOG_KINDS = ("events", "impressions", "items")
"""Kinds of logs, as the ledger names them."""

FLAGS = {"max_rows": "--memory-rows", "num_buckets": "--buckets", "actions": "--action"}
"""Options whose flag of ``vista ingest`` is not their own name."""


@dataclass(frozen=True)
class IngestOptions:
    """What to ingest, and where to.

    Attributes:
        events: files, folders or globs.
        impressions: likewise, or none.
        items: files with ``item_id`` and what is told of items: ``name``, ``category``, ``text``, ``vector``; lists
            items that no event has touched, too.
        warehouse: folder of the tables, or properties of a PyIceberg catalog.
        run_dir: where the run keeps its record, and its chunks while it works; all workers see it.
        log: how the files of events are read.
        impression_columns, item_columns: meaning to column name in the other files, where they differ.
        num_buckets: of a new warehouse; an existing one keeps its own (0 takes it, or 16).
        actions, surfaces: the whole vocabulary, in order; None finds them in the logs. A value that is not in a
            given vocabulary is a dead letter.
        min_time_ms, max_time_ms: bounds on times; by default 1990 and a day after the start of the run.
        skip_bad_files: go on without files that cannot be read; they are counted and listed.
        again: read files that are in the ledger already; their rows are dropped one by one.
        max_rows: rows that a task holds while sorting, about 200 bytes each.
        chunk_rows: while reading.
        attempts: how often a failed task is handed to the runner.
        max_bytes: refuse to write more than this, so far as it can be told before; None for what the disk has.
        properties: facts of the history table that become visible with the events, in one commit.
        weighed: actions whose weight was asked for here and now, so that they must be there; a layout's need not.
    """

    events: tuple[str, ...]
    warehouse: str | Mapping[str, str]
    run_dir: str
    impressions: tuple[str, ...] = ()
    items: tuple[str, ...] = ()
    log: Reading = field(default_factory=Reading)
    impression_columns: Mapping[str, str] = field(default_factory=dict)
    item_columns: Mapping[str, str] = field(default_factory=dict)
    num_buckets: int = 0
    actions: tuple[str, ...] | None = None
    surfaces: tuple[str, ...] | None = None
    min_time_ms: int = schema.MIN_TIME_MS
    max_time_ms: int | None = None
    skip_bad_files: bool = False
    again: bool = False
    max_rows: int = 4_000_000
    chunk_rows: int = 1_000_000
    attempts: int = 2
    max_bytes: int | None = None
    properties: Mapping[str, str] = field(default_factory=dict)
    weighed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, low in (("max_rows", 1), ("chunk_rows", 1), ("attempts", 1), ("num_buckets", 0)):
            if getattr(self, name) < low:
                raise OptionsError(
                    f"{FLAGS.get(name, name)}: expected at least {low}, found {getattr(self, name)}; "
                    f"see vista ingest --help"
                )
        if self.min_time_ms < 0:
            raise OptionsError(
                f"--min-time: expected 0 or more (1970), as times before 1970 cannot be kept, found "
                f"{self.min_time_ms}; for example --min-time 0"
            )
        for option, names, of in (
            ("--impression-column", self.impression_columns, schema.IMPRESSIONS),
            ("--item-column", self.item_columns, schema.ITEMS),
        ):
            known = [c.name for c in of]
            unknown = [n for n in names if n not in known and schema.ALIASES.get(n) not in known]
            if unknown:
                raise OptionsError(
                    f"{option}: expected names among {', '.join(known)}, found {unknown[0]!r}; for example "
                    f"{option} {known[-1]}={names[unknown[0]]}"
                )
        for option, given in (("--action", self.actions), ("--surface", self.surfaces)):
            twice = sorted({n for n in given or () if (given or ()).count(n) > 1})
            if twice:
                raise OptionsError(
                    f"{option}: expected each name once, found {twice[0]!r} twice; for example {option} {twice[0]}"
                )
        if not self.events and not self.impressions and not self.items:
            raise OptionsError(
                "expected files of events, impressions or items, found none; see vista ingest --help"
            )
        if self.max_time_ms is not None and self.max_time_ms <= self.min_time_ms:
            raise OptionsError(
                f"--max-time: expected more than --min-time {self.min_time_ms}, found {self.max_time_ms}; "
                f"see vista ingest --help"
            )

    def reading(self, kind: str) -> str:
        """How the logs of a kind (:data:`LOG_KINDS`) are read, as far as it was asked for: JSON, "" for nothing."""
        if kind == "items":
            return json.dumps(dict(self.item_columns), sort_keys=True) if self.item_columns else ""
        log = self.log if kind == "events" else self.impression_log()
        asked = {
            **{k: v for k, v in log.to_json().items() if k not in ("weights", "about")},
            "min_time_ms": None if self.min_time_ms == schema.MIN_TIME_MS else self.min_time_ms,
            "max_time_ms": self.max_time_ms,
            "actions": self.actions or log.to_json().get("actions"),
            "surfaces": self.surfaces,
        }
        said = {n: value for n, value in asked.items() if value or (n == "min_time_ms" and value == 0)}
        return json.dumps(said, sort_keys=True) if said else ""

    def identity(self) -> dict[str, Any]:
        """What decides the result."""
        values = dataclasses.asdict(self)
        values["log"] = self.log.to_json()
        return {
            k: v
            for k, v in values.items()
            if k not in ("run_dir", "max_rows", "chunk_rows", "attempts", "max_bytes", "weighed")
        }

    def impression_log(self) -> Reading:
        """How the files of impressions are read: as those of events, but for their columns."""
        return dataclasses.replace(
            self.log,
            columns=self.impression_columns,
            actions=(),
            action_is="",
            unengaged="events",
            explode=(),
        )
