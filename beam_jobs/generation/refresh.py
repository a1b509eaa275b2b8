"""``refresh``: what came since the live generation, into a delta generation over it.

    files added since the parent's table snapshot ──▶ changed users ──▶ state + new events ──▶ delta, live

A task reads only the added files of its bucket, and of the old ones only what late users need. The result equals
a full ``summarize`` of everything to 1e-5 (law 2). Users that were dead-lettered in the parent are tried again
from their whole history, so a delta owes nothing to the one before. Where a refresh cannot go on from the store
(no generation, another model, another schema, an expired snapshot) it runs ``summarize`` and says why.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import xxhash

from beam_jobs.errors import OptionsError
from beam_jobs.generation import summarize
from beam_jobs.generation.bucket_task import BucketTask, worker_model
from beam_jobs.generation.changed_users import RefreshSource
from beam_jobs.generation.publish import nothing_to_do, to_generation
from beam_jobs.generation.summarize import SummarizeOptions, TablesAndModel, schema_of
from beam_jobs.run import job as jobs
from beam_jobs.run.job import Run
from beam_jobs.run.record import RunRecord
from cache_store import Manifest, Publication, Store, as_users, bucket_of
from cache_store.change.forget import read_dead_letters
from cache_store.errors import FormatUnknown, NothingPublished
from cache_store.format.layout import holds_store
from vista.data.tables.reading import DataFile
from vista.data.tables.warehouse import Warehouse
from vista.errors import DataError

JOB = "refresh"


@dataclass(frozen=True)
class RefreshOptions(SummarizeOptions):
    """What to bring up to date, and how: as to summarise, and:

    Attributes:
        run_dir: folder of this run; for :func:`follow` the folder of its runs.
        snapshot: history snapshot to go up to; the current one by default.
        since: history snapshot to go on from, if not the parent's own; it must not be newer than that.
        users: only these, from their whole history; the generation keeps its parent's table snapshot, so that
            the next refresh still sees what is new for all others.
        max_age_ms: also recompute, from their whole history, users summarised longer ago than this.
        codecs: by group name; those of the live generation by default.
        max_depth: deltas over a full generation before some of the chain is folded (``Store.fold``).
    """

    since: int | None = None
    users: tuple[int | str, ...] | None = None
    max_age_ms: int | None = None
    max_depth: int = 6

    JOB: ClassVar = JOB
    COUNTS: ClassVar[tuple[str, ...]] = (*SummarizeOptions.COUNTS, "max_depth")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.users is not None and (
            isinstance(self.users, (str, bytes)) or not hasattr(self.users, "__len__")
        ):
            raise OptionsError("users: expected a list of ids, found one; put a single user into a list")
        if self.max_age_ms is not None and self.max_age_ms < 0:
            raise OptionsError(
                f"max_age: expected 0 or more, found {self.max_age_ms}; see vista refresh --help"
            )

    def identity(self) -> dict[str, Any]:
        """What decides the result; a run can be continued only with the same."""
        return {
            **super().identity(),
            "since": self.since,
            "users": None if self.users is None else _mark(self.users),
            "max_age_ms": self.max_age_ms,
        }

    def full(self) -> SummarizeOptions:
        """The options of the full job that this falls back to."""
        return SummarizeOptions(
            **{f.name: getattr(self, f.name) for f in dataclasses.fields(SummarizeOptions)}
        )


def _mark(users: Sequence[int | str]) -> str:
    """Tells other users from these, and names nobody: 16 bits, which many share. A record outlives who is forgotten."""
    listed = json.dumps(sorted(str(user) for user in users))
    return f"{len(users)} users, {xxhash.xxh3_64_intdigest(listed.encode()) & 0xFFFF:04x}"


class NoParent(Exception):
    """There is nothing to go on from; the text says why. Never leaves this module."""


def run(options: RefreshOptions, beam_args: Sequence[str] = ()) -> RunRecord:
    """Bring the store up to date with the tables, by a delta generation or, where that cannot be, a full one.

    Returns:
        The record; ``generation`` is the live one, also where nothing had changed and nothing was published.

    Raises:
        VistaError, StoreError: with the exit code in the class; the old generation stays live.
    """
    world = TablesAndModel.of(options)
    warehouse = world.warehouse

    def work(run: Run) -> RunRecord:
        if run.record.fingerprint is None:  # a continued run goes on from what it began with
            run.record = dataclasses.replace(run.record, **world.facts(options.snapshot))
            run.keep(**_choose(options, run.record, warehouse))
        if run.record.facts["parent"] is None:
            return summarize.full_generation(run, options.full(), warehouse)
        return _delta(run, options, warehouse)

    return jobs.run(world.job(JOB, options, beam_args), work)


def follow(
    options: RefreshOptions,
    beam_args: Sequence[str] = (),
    *,
    every_s: float,
    wait: Callable[[float], bool] | None = None,
) -> Iterator[RunRecord]:
    """Refresh whenever the tables have a new snapshot; yields the record of every refresh that published.

    Runs get folders 000001, 000002, ... under ``options.run_dir``; one that was cut short is continued first.

    Args:
        every_s: seconds between looks at the tables.
        wait: called with ``every_s`` after each look; False ends the loop. Sleeps by default.

    Raises:
        as :func:`run`; call it again to go on.
    """
    wait = wait or _sleep
    folder = Path(options.run_dir)
    seen: int | None = None
    while True:
        done = [int(p.name) for p in folder.glob("[0-9]*") if p.name.isdigit()]
        number = max(done, default=0)
        open_run = number > 0 and _is_open(folder / f"{number:06d}")
        if not open_run:
            number += 1
        now = Warehouse(options.warehouse).open().snapshot()
        if open_run or (now != seen and _is_behind(options, now)):
            record = run(dataclasses.replace(options, run_dir=str(folder / f"{number:06d}")), beam_args)
            seen = record.table_snapshot
            if record.counts["users"]:
                yield record
        if not wait(every_s):
            return


def _is_open(run_dir: Path) -> bool:
    """Whether a run has not finished; one may have been killed before it had a record."""
    return not (run_dir / "run.json").exists() or RunRecord.load(run_dir).exit_code is None


def _is_behind(options: RefreshOptions, snapshot: int | None) -> bool:
    """Whether the live generation was made from another snapshot, or there is none."""
    try:
        with Store.open(options.store, line=options.line, verify=False) as store:
            return store.manifest.table_snapshot != snapshot
    except (NothingPublished, FormatUnknown):
        return True


def _sleep(seconds: float) -> bool:
    time.sleep(seconds)
    return True


def _choose(options: RefreshOptions, record: RunRecord, warehouse: Warehouse) -> dict[str, Any]:
    """Facts and notes of a run that begins: its parent, or None where a full generation is needed."""
    try:
        parent = parent_of(options, record, warehouse)
    except NoParent as why:
        return {"facts": {"parent": None}, "notes": [*record.notes, f"full instead of delta: {why}"]}
    with Store.open(options.store, line=options.line) as store:
        name = store.fold(options.max_depth)
    if name is None:
        return {"facts": {"parent": parent.generation}}
    note = f"folded generations up to {parent.generation} into {name}"
    return {"facts": {"parent": name}, "notes": [*record.notes, note]}


def parent_of(options: RefreshOptions, record: RunRecord, warehouse: Warehouse) -> Manifest:
    """Manifest of the live generation.

    Raises:
        NoParent: it cannot be gone on from.
    """
    if not holds_store(options.store):
        raise NoParent(f"there is no store at {options.store}")
    summarize.open_or_create(options.store, warehouse.user_kind, warehouse.num_buckets)
    try:
        with Store.open(options.store, line=options.line) as store:
            parent = store.manifest
    except NothingPublished:
        raise NoParent(f"line {options.line} has no generation yet") from None
    if parent.fingerprint != record.fingerprint:
        raise NoParent(
            f"generation {parent.generation} was made by model {parent.fingerprint}, not by this one"
        )
    model = worker_model(str(options.bundle), str(record.fingerprint))
    if not model.summarizer.resumable:
        raise NoParent("this model cannot resume (summarizer.chunk is 0)")
    codecs = options.codecs or {group.name: group.codec for group in parent.schema.groups}
    if parent.schema.as_dict() != schema_of(model, warehouse.user_kind, codecs).as_dict():
        raise NoParent(f"generation {parent.generation} has other codecs")
    if parent.records and not parent.states:
        raise NoParent(f"generation {parent.generation} keeps no states")
    if parent.table_snapshot is None and record.table_snapshot is not None:
        raise NoParent(f"generation {parent.generation} was made while the tables were empty")
    if parent.table_snapshot is not None:
        try:
            warehouse.bucket_files(record.table_snapshot, since=int(parent.table_snapshot))
        except DataError as error:
            raise NoParent(f"the tables no longer know snapshot {parent.table_snapshot} ({error})") from None
    return parent


def snapshot_of(parent: Manifest) -> int | None:
    """The snapshot of the tables that a generation was made from."""
    return None if parent.table_snapshot is None else int(parent.table_snapshot)


def _delta(run: Run, options: RefreshOptions, warehouse: Warehouse) -> RunRecord:
    name = run.record.facts["parent"]
    model = worker_model(str(options.bundle), str(run.record.fingerprint))
    store = Store(options.store)
    parent = store.generation(name)
    files, added = files_of(options, run.record, warehouse, parent)
    again = _again(options, warehouse, store, name)
    if options.users is not None:
        added = {}
        run.record = dataclasses.replace(run.record, table_snapshot=snapshot_of(parent))
    oldest = (
        None if options.max_age_ms is None or options.users else run.record.started_ms - options.max_age_ms
    )
    if not added and not again and oldest is None and options.expire_after_ms is None:
        return nothing_to_do(run, name, {}, {"users": 0, "events": 0})
    summarize.check_limits(run, options, model, parent.schema, added)
    tasks = [
        BucketTask(
            bucket,
            tuple(files.get(bucket, ())),
            added=tuple(added.get(bucket, ())),
            again=tuple(sorted(again.get(bucket, ()))),
        )
        for bucket in range(warehouse.num_buckets)
    ]
    source = RefreshSource(
        str(options.store),
        options.line,
        name,
        cap=model.config.summarizer.max_events,
        oldest_ms=oldest,
        complete=parent.expired_before_ms is None,
    )
    settings = summarize.settings_of(run, options, store, parent.schema, source)
    target = Publication(
        fingerprint=settings.fingerprint,
        watermark_ms=parent.watermark_ms,
        expected=0,
        line=options.line,
        kind="delta",
        parent=name,
        table_snapshot=run.record.table_snapshot,
        max_depth=options.max_depth,
        expired_before_ms=max(
            (t for t in (parent.expired_before_ms, settings.expired_before_ms) if t is not None), default=None
        ),
    )
    return to_generation(run, store, tasks, settings, target, warehouse, options.gate)


Files = dict[int, list[DataFile]]


def files_of(
    options: RefreshOptions, record: RunRecord, warehouse: Warehouse, parent: Manifest
) -> tuple[Files, Files]:
    """All files at the run's snapshot, and those to take as added.

    Raises:
        OptionsError: ``since`` is newer than the parent's snapshot, so events would be left out.
    """
    if record.table_snapshot is None:
        return {}, {}
    files = warehouse.bucket_files(record.table_snapshot)
    unseen = warehouse.bucket_files(record.table_snapshot, since=snapshot_of(parent))
    if options.since is None:
        return files, unseen
    added = warehouse.bucket_files(record.table_snapshot, since=options.since)
    skipped = {f.path for row in unseen.values() for f in row} - {
        f.path for row in added.values() for f in row
    }
    if skipped:
        raise OptionsError(
            f"--since {options.since}: expected a snapshot not newer than {parent.table_snapshot}, which generation "
            f"{parent.generation} was made from; {len(skipped)} files would be left out. Run vista refresh without it"
        )
    return files, added


def _again(
    options: RefreshOptions, warehouse: Warehouse, store: Store, parent: str
) -> dict[int, list[int | str]]:
    """Users by bucket to read from their first event: those asked for, or the dead letters of the parent."""
    kind = str if warehouse.user_kind == "string" else int
    users: set[int | str] = set()
    if options.users is not None:
        users |= {kind(u) for u in options.users}
    elif letters := store.dead_letters(parent):
        users |= {kind(u) for u in read_dead_letters(letters.parent)["user"].to_pylist()}
    found: dict[int, list[int | str]] = {}
    listed = sorted(users)
    if listed:
        for user, bucket in zip(listed, bucket_of(as_users(listed), warehouse.num_buckets), strict=True):
            found.setdefault(int(bucket), []).append(user)
    return found
