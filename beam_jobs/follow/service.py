"""``vista follow``: one process from a source of events to what serving reads.

    source ──▶ ingest-NUMBER.jsonl ──▶ tables (events and position in one commit) ──▶ delta, live ──▶ sinks ──▶ tidy

A turn takes what has arrived, ingests it, refreshes the users it touched, and delivers their records (``delivery``).
The position that the source was read up to is a fact of the history table and becomes visible with the events, in one
Iceberg commit: killed at any moment and started again, the service reads on from there, and no event is lost or taken
twice. A batch whose commit did not happen is read again from the source; its run directory is removed.

Between turns it tidies, by rules that are stated in ``FollowOptions``: small files of the tables are merged, deltas are
folded (``folding``), generations, snapshots and files that nothing needs are pruned, and finished run directories of
its own are removed, all but what they set aside.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import xxhash

from beam_jobs.errors import OptionsError, RunRecordDamaged
from beam_jobs.follow.delivery import Delivery
from beam_jobs.follow.folding import SLACK, Folding
from beam_jobs.follow.sinks import open_sink
from beam_jobs.follow.sources import Arrived, EventSource
from beam_jobs.generation import refresh
from beam_jobs.generation.refresh import RefreshOptions
from beam_jobs.generation.summarize import check_expiry
from beam_jobs.horizon import horizon_of
from beam_jobs.ingest import job as ingest
from beam_jobs.ingest.options import IngestOptions
from beam_jobs.run.children import leave
from beam_jobs.run.engines import HERE, here
from beam_jobs.run.files import write_atomically
from beam_jobs.run.record import RunDirectory, RunRecord
from beam_jobs.tables import compact
from cache_store import Store
from cache_store.errors import PublishConflict
from cache_store.format.layout import holds_store
from vista.data.logs.schema import MissingColumn, UnreadableFile, WrongTime, WrongType
from vista.data.tables.commits import TableChanged
from vista.data.tables.compaction import most_files
from vista.data.tables.pruning import prune
from vista.data.tables.warehouse import Warehouse
from vista.small_text import small_json

POSITION = "follow-"
"""Fact of the history table under which the position of a source is kept, followed by its name."""

CONFLICTS = 5
"""Refreshes in a row that may find another publisher faster."""
_OURS = re.compile(r"(ingest|refresh|compact)-[0-9]{8}")


@dataclass(frozen=True)
class FollowOptions:
    """What to keep up to date, and how.

    Attributes:
        warehouse, bundle, store, line, device: as in ``RefreshOptions``.
        run_dir: folder of the service's own runs; one service at a time holds it.
        deliver: URLs of sinks that get each changed record (``sinks``).
        kafka_config: file of settings for those that are topics (``kafka_client``).
        reading: further fields of ``IngestOptions``: how events are to be read.
        workers: processes that resume users: this one, or so many children of it.
        batch_events: most events of a turn, and
        growth: how many times as many while the service lags behind its source. A turn costs by its users: one that
            takes more events of the same users takes less for each.
        batch_s: seconds that a turn waits for the first event.
        expire_after_ms: users without an event for so long are left out; looked for every ``expire_s`` seconds.
        max_depth: deltas over a full generation before some are folded.
        most_files: files of a bucket before they are merged.
        keep: earlier generations kept beside the live one.
        keep_s: snapshots and files of the tables that are younger stay, for whoever reads them now.
        keep_runs: finished run directories kept.
        tidy_s: seconds between looks at what is to be tidied.
    """

    warehouse: str | Mapping[str, str]
    bundle: str
    store: str
    run_dir: str
    line: str = "main"
    device: str = "cpu"
    deliver: tuple[str, ...] = ()
    kafka_config: str = ""
    reading: Mapping[str, Any] = field(default_factory=dict)
    workers: int = 1
    batch_events: int = 20_000
    growth: int = 16
    batch_s: float = 1.0
    expire_after_ms: int | None = None
    expire_s: float = 3_600.0
    max_depth: int = 16
    most_files: int = 64
    keep: int = 2
    keep_s: float = 900.0
    keep_runs: int = 8
    tidy_s: float = 10.0

    def __post_init__(self) -> None:
        check_expiry(self.expire_after_ms)
        for name in ("workers", "batch_events", "growth", "expire_s", "batch_s", "max_depth", "most_files", "keep",
                     "keep_runs", "tidy_s"):  # fmt: skip
            if getattr(self, name) <= 0:
                raise OptionsError(
                    f"{name}: expected more than 0, found {getattr(self, name)}; see vista follow --help"
                )


@dataclass(frozen=True)
class Turn:
    """What one turn did.

    Attributes:
        number: of the turn, from 1.
        counts: events_written, dead_rows, users, ... of its runs; delivered, of records and sinks.
        generation: what is live after it; None while there is none.
        position: up to where the source was read.
        seconds: of each step: read, ingest, refresh, deliver, tidy.
        lag_s: from the arrival of its oldest event at the source to the publication; None where it is not known.
        tidied: what was set aside and what was tidied, in words.
    """

    number: int
    counts: Mapping[str, int]
    generation: str | None
    position: str
    seconds: Mapping[str, float]
    lag_s: float | None
    tidied: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


class Service:
    """Turns over one source. Not for several threads; a second service on the same ``run_dir`` is refused.

    Args:
        clock: seconds since the epoch.
    """

    def __init__(self, options: FollowOptions, source: EventSource, clock: Callable[[], float] = time.time):
        self.options, self.source, self._clock = options, source, clock
        self.folder = Path(options.run_dir)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.warehouse = Warehouse(options.warehouse)
        self._sinks = [(url, open_sink(url, options.kafka_config)) for url in options.deliver]
        self._deliveries: list[Delivery] = []  # from the moment on that there is a store
        self._folding: Folding | None = None  # likewise
        self._understood = False  # whether a batch was ingested
        self._most = options.batch_events
        self._turns, self._tidied_at = 0, clock()
        self._expired_at = float("-inf") if options.expire_after_ms is not None else float("inf")
        # Until a refresh has shown otherwise: the last service may have died before its own.
        self._behind = True

    def turns(self, go_on: Callable[[], bool] = lambda: True) -> Iterator[Turn]:
        """Turn after turn that did something, until ``go_on`` says no.

        Raises:
            RunInProgress: another service holds the folder. PublishConflict, TableChanged: others were faster, several
            times in a row. SourceLost, and whatever ingest and refresh raise; begin again to go on from the tables.
        """
        with RunDirectory(self.folder).hold():
            self._clear_unfinished()
            try:
                while go_on():
                    turn = self.turn()
                    if turn is not None:
                        yield turn
            finally:
                leave()
                if self._folding:
                    self._folding.close()
                    self._folding = None

    def turn(self) -> Turn | None:
        """Take what has arrived, bring it live, tidy; None where there was nothing to do."""
        began = time.perf_counter()
        seconds: dict[str, float] = {}
        counts: dict[str, int] = {}

        def took(step: str) -> None:
            nonlocal began
            now = time.perf_counter()
            seconds[step] = round(now - began, 3)
            began = now

        batch = self.source.read(self.position, self._most, self.options.batch_s)
        self._most = self._next_most(len(batch.messages) if batch else 0)
        took("read")
        aside: list[str] = []
        if batch is not None:
            try:
                counts |= self._take(batch, aside)
            except (
                TableChanged
            ):  # another writer was faster: the batch is read again, from the position that stands
                return None
            self._behind = True
            took("ingest")
        generation = None
        if (self._behind or self._expiry_is_due()) and self.warehouse.exists():
            record = self._refresh()
            self._behind, generation = False, record.generation
            told = ("users", "resumed", "expired", "dead_letters")
            counts |= {name: record.counts.get(name, 0) for name in told}
            took("refresh")
        published = self._clock()
        if delivered := self._deliver():
            counts["delivered"] = delivered
            took("deliver")
        tidied = self._tidy() if published - self._tidied_at >= self.options.tidy_s else []
        if not self._behind:
            options = self.options
            self._folding = self._folding or Folding(options.store, options.line, options.max_depth)
            tidied += filter(None, [self._folding.advance()])
        if batch is None and generation is None and not delivered and not tidied:
            return None
        took("tidy")
        self._turns += 1
        lag = published - batch.arrived_ms / 1000 if batch and batch.arrived_ms is not None else None
        return Turn(self._turns, counts, generation, self.position, seconds, lag, (*aside, *tidied))

    def _next_most(self, taken: int) -> int:
        """Most events of the next turn: twice as many after a full one, half after one that was not full by far."""
        least = self.options.batch_events
        if taken >= self._most:
            return min(2 * self._most, self.options.growth * least)
        return self._most if 4 * taken > self._most else max(self._most // 2, least)

    @property
    def position(self) -> str:
        """Up to where the source was taken; "" before the first commit.

        That is where the tables hold it, or the end of what was set aside from there on.
        """
        committed = self._committed
        try:
            aside = small_json(self._aside)
            return str(aside["position"] if aside["after"] == committed else committed)
        except FileNotFoundError:
            return committed
        except (ValueError, KeyError, TypeError) as error:
            raise RunRecordDamaged(
                f"{self._aside}: expected two positions, found {error!r}; remove it, and what was set aside last is "
                f"looked at again"
            ) from error

    @property
    def _committed(self) -> str:
        exists = self.warehouse.exists()
        return self.warehouse.refresh().fact(POSITION + self.source.name) if exists else ""

    @property
    def _aside(self) -> Path:
        """Says how far beyond the tables' position the source was taken, where nothing of that could be ingested."""
        return self.folder / f"set-aside-{self.source.name}.json"

    def _take(self, batch: Arrived, aside: list[str]) -> Mapping[str, int]:
        """Ingest a batch. Where it holds nothing that can be ingested, it is set aside and the service goes on.

        Raises:
            MissingColumn, WrongType, WrongTime: the first messages that this service sees have not the declared form,
            which is a fault of the options rather than theirs.
        """
        try:
            counts = self._ingest(batch).counts
            self._understood = True
            return counts
        except (UnreadableFile, MissingColumn, WrongType, WrongTime) as error:
            said = str(error)
            if batch.messages and not self._understood and not isinstance(error, UnreadableFile):
                raise
        self._clear_unfinished()
        if batch.messages:
            return self._set_aside(batch, said, aside)
        if len(batch.files) == 1:
            aside.append(f"left out {batch.files[0]}: {said}")
            return {"bad_files": 1}
        counts = Counter[str]()
        for file in batch.files:
            counts.update(self._take(dataclasses.replace(batch, files=(file,)), aside))
        return counts

    def _set_aside(self, batch: Arrived, said: str, aside: list[str]) -> Mapping[str, int]:
        """Keep the messages of a batch as a file beside the dead letters, and go on after it."""
        folder = self.folder / "dead-letters"
        folder.mkdir(exist_ok=True)
        kept = folder / f"set-aside-{xxhash.xxh3_64_hexdigest(batch.position.encode())}.jsonl"
        write_atomically(kept, b"".join(m.replace(b"\n", b" ") + b"\n" for m in batch.messages))
        taken = {"after": self._committed, "position": batch.position}
        write_atomically(self._aside, json.dumps(taken).encode())
        aside.append(f"set aside {len(batch.messages)} messages, none of them an event, as {kept}: {said}")
        return {"dead_rows": len(batch.messages)}

    def _ingest(self, batch: Arrived) -> RunRecord:
        folder = self._next("ingest")
        files = tuple(batch.files)
        if batch.messages:
            log = self.folder / f"{folder.name}.jsonl"
            # A line is a message, whatever is in it: one that is no event becomes a dead letter of its own.
            log.write_bytes(
                b"".join((m.replace(b"\n", b" ").strip() or b"null") + b"\n" for m in batch.messages)
            )
            files = (str(log),)
        options = IngestOptions(
            events=files,
            warehouse=self.options.warehouse,
            run_dir=str(folder),
            properties={POSITION + self.source.name: batch.position},
            again=bool(batch.messages),  # two batches may be alike to the byte and are still two
            skip_bad_files=bool(batch.files),
            **self.options.reading,
        )
        record = ingest.run(options, (HERE,), clock=self._clock, progress=False)
        for file in files if batch.messages else ():
            Path(file).unlink()
        return record

    def _refresh(self) -> RunRecord:
        """A delta on what is live; where others publish or take files away meanwhile (a compaction, a
        forgetting), another on what is then."""
        conflicts, began = 0, self._clock()
        after = self.options.expire_after_ms if self._expiry_is_due() else None
        while True:
            folder = self._next("refresh")
            options = RefreshOptions(
                warehouse=self.options.warehouse,
                bundle=self.options.bundle,
                store=self.options.store,
                run_dir=str(folder),
                line=self.options.line,
                expire_after_ms=after,
                max_depth=SLACK * self.options.max_depth,
                device=self.options.device,
                progress=False,
            )
            try:
                record = refresh.run(options, here(self.options.workers))
                self._expired_at = self._expired_at if after is None else began
                return record
            except (PublishConflict, TableChanged):
                conflicts += 1
                if conflicts == CONFLICTS:
                    raise
                self._remove(folder)

    def _expiry_is_due(self) -> bool:
        """Whether to look through the whole store for users that fell silent, which not every turn can do."""
        return self._clock() - self._expired_at >= self.options.expire_s

    def _deliver(self) -> int:
        """Records sent; what a service that died had not delivered is among them."""
        options = self.options
        if self._sinks and not self._behind and not self._deliveries:
            store = Store.open(options.store, line=options.line)
            self._deliveries = [Delivery(sink, url, store, self.folder) for url, sink in self._sinks]
        return sum(delivery.advance() for delivery in self._deliveries)

    def _tidy(self) -> list[str]:
        """Merge, prune and forget runs by the stated rules; what was done, in words."""
        options, done = self.options, []
        if self.warehouse.exists() and holds_store(options.store):
            most, due = most_files(self.warehouse.refresh(), horizon_of(self.warehouse, [options.store]))
            if due and most > options.most_files:
                merged = compact.run(
                    compact.CompactOptions(
                        warehouse=options.warehouse, run_dir=str(self._next("compact")), stores=[options.store],
                        most=options.most_files, progress=False,
                    ),
                    (HERE,),
                )  # fmt: skip
                done.append(f"merged {merged.counts.get('files', 0)} files of the tables")
            store = Store(options.store)
            report = store.prune(options.keep, int(options.keep_s * 1000))
            if report.generations:
                done.append(f"pruned {len(report.generations)} generations, {report.bytes} bytes")
            kept = {int(m.table_snapshot) for m in store.generations() if m.table_snapshot is not None}
            pruned = prune(self.warehouse.refresh(), kept, int((self._clock() - options.keep_s) * 1000))
            if pruned.files or pruned.snapshots:
                done.append(
                    f"pruned {len(pruned.snapshots)} snapshots and {len(pruned.files)} files of the tables"
                )
        for run in [run for run in self._runs() if _is_finished(run)][: -options.keep_runs]:
            self._remove(run)
        self._tidied_at = self._clock()
        return done

    def _runs(self) -> list[Path]:
        """Run directories of this service, oldest first."""
        found = [p for p in self.folder.iterdir() if _OURS.fullmatch(p.name) and p.is_dir()]
        return sorted(found, key=lambda p: p.name[-8:])

    def _next(self, job: str) -> Path:
        last = max((int(p.name[-8:]) for p in self._runs()), default=0)
        return self.folder / f"{job}-{last + 1:08d}"

    def _clear_unfinished(self) -> None:
        """Remove runs that a killed service left: what they did is in the tables and the store, or is done again."""
        for run in self._runs():
            if not _is_finished(run):
                self._remove(run)
        for path in self.folder.glob("ingest-*.jsonl"):
            if _OURS.fullmatch(path.stem):
                path.unlink()

    def _remove(self, run: Path) -> None:
        """Remove a run directory, but not what was set aside in it: that goes to ``dead-letters/``."""
        letters = run / "dead-letters.parquet"
        if letters.exists() and pq.read_metadata(letters).num_rows:
            (self.folder / "dead-letters").mkdir(exist_ok=True)
            os.replace(letters, self.folder / "dead-letters" / f"{run.name}.parquet")
        shutil.rmtree(run)


def _is_finished(run: Path) -> bool:
    try:
        return small_json(run / "run.json").get("exit_code") is not None
    except (OSError, ValueError, AttributeError):
        return False
