"""What an ingest run decides before it reads a row.

All faults of whole files and of the configuration are found here, before anything is written.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from beam_jobs.errors import OptionsError
from beam_jobs.ingest.items import vector_width
from beam_jobs.ingest.options import LOG_KINDS, IngestOptions
from beam_jobs.ingest.text import Converted, Log, as_parquet, convert_others
from beam_jobs.ingest.units import ReadTask
from beam_jobs.ingest.vocabulary import ScanColumns, vocabularies
from beam_jobs.run.files import write_atomically
from beam_jobs.run.record import RunDirectory, RunRecord
from vista.data import paths
from vista.data.logs import schema
from vista.data.logs.arrays import ids_file
from vista.data.logs.columnar import is_columnar
from vista.data.logs.inspecting import inspect
from vista.data.logs.reading import Reading
from vista.data.logs.schema import LogFile, UnreadableFile, WrongType
from vista.data.logs.values import Rules
from vista.data.tables import ledger
from vista.data.tables.commits import recover
from vista.data.tables.content import WIDTH
from vista.data.tables.warehouse import Warehouse
from vista.errors import DataError

FIRST_ORDER_MS = 946_684_800_000
"""2000-01-01: the first row's time, where order is time."""


@dataclass(frozen=True)
class IngestPlan:
    """What a run decided at its start; ``plan.json``.

    Attributes:
        run: name of the run in file names and snapshots.
        commit: number of its commit.
        events, impressions, items: files to read.
        known: how many were in the ledger already.
        basis: ``Warehouse.basis`` of the tables that it was made for.
        readings: kind of logs to how they are read, as the ledger keeps it.
        remarks: about files that are in the ledger, for the run's notes.
        bad_files: (path, why) of files that were skipped.
        log: how the events are read (``Reading.to_json``).
        first_time_ms: of the first row, where order is time.
        vector_width: floats of an item's vector; 0 where no item has one.
        left_out: files below folders that are no logs by their names.
    """

    run: str
    commit: int
    min_time_ms: int
    max_time_ms: int
    user_kind: str
    num_buckets: int
    kinds: dict[str, str]
    events: tuple[LogFile, ...]
    impressions: tuple[LogFile, ...]
    items: tuple[LogFile, ...]
    known: int
    bad_files: tuple[tuple[str, str], ...]
    actions: tuple[str, ...] = ()
    surfaces: tuple[str, ...] = ()
    basis: str = ""
    readings: dict[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    log: dict[str, Any] = field(default_factory=dict)
    first_time_ms: int = 0
    left_out: int = 0
    vector_width: int = 0

    @property
    def rows(self) -> int:
        return sum(s.rows for s in (*self.events, *self.impressions))

    def to_json(self) -> bytes:
        return (json.dumps(dataclasses.asdict(self), indent=1) + "\n").encode()

    @staticmethod
    def from_json(text: str) -> IngestPlan:
        values = json.loads(text)
        for name in ("events", "impressions", "items"):
            values[name] = tuple(LogFile(**{**s, "groups": tuple(s["groups"])}) for s in values[name])
        values["bad_files"] = tuple((a, b) for a, b in values["bad_files"])
        for name in ("actions", "surfaces", "remarks"):
            values[name] = tuple(values.get(name, ()))
        return IngestPlan(**values)


@dataclass
class _Logs:
    """Files of one option (``events``, ``impressions``, ``items``), the ``good`` and the ``bad`` ones (path, why)."""

    files: list[str]
    columns: tuple[schema.Column, ...]
    reading: Reading
    seen: set[tuple[int, str]] = field(default_factory=set)
    good: list[LogFile] = field(default_factory=list)
    bad: list[tuple[str, str]] = field(default_factory=list)

    def to_convert(self, folder: str, bounds: tuple[int, int]) -> list[Log]:
        """Files that are not read as they are; of these, what was ingested before is left out of all files."""
        asked = [p for p in self.files if paths.text_ending(p) or is_columnar(p, self.reading)]
        known = {path for path in asked if schema.identity(path) in self.seen} if self.seen else set()
        self.files = [path for path in self.files if path not in known]
        return [Log(p, folder, self.columns, self.reading, bounds) for p in asked if p not in known]

    def inspect(self, files: Sequence[str], converted: Converted, bounds: tuple[int, int]) -> None:
        """Check the footers of files, or of what they were converted to.

        Raises:
            DataError: the first fault of a column.
        """

        def look(path: str) -> LogFile | UnreadableFile:
            try:
                found = inspect(
                    path, self.columns, self.reading, bounds,
                    converted.rows_at.get((path, self.columns), ""), converted.names.get((path, self.columns), ()),
                )  # fmt: skip
            except UnreadableFile as error:
                return error
            return dataclasses.replace(
                found, decides=found.rows > 0 and (path, self.columns) not in converted.undecided
            )

        with ThreadPoolExecutor(8) as pool:
            for path, found in zip(files, pool.map(look, files), strict=True):
                if isinstance(found, UnreadableFile):
                    self.bad.append((path, str(found)))
                else:
                    self.good.append(found)


def inspect_all(
    groups: Sequence[_Logs],
    fixed: Mapping[str, str],
    options: IngestOptions,
    bounds: tuple[int, int],
    run_dir: RunDirectory,
    beam_args: Sequence[str],
    show: bool = False,
) -> tuple[dict[str, str], int]:
    """Check all files, converting first those that are no Parquet with a row per event; the kinds of the columns, and
    how many files were ingested before. ``show``: a progress bar.

    Raises:
        UnreadableFile: names all of those, unless they are skipped. DataError: the first fault of a column.
    """
    folder = str(run_dir.path / "spill" / "text")
    all_files = sum(len(g.files) for g in groups)
    logs = [g.to_convert(folder, bounds) for g in groups]
    known = all_files - sum(len(g.files) for g in groups)
    flat = [log for some in logs for log in some]
    converted = convert_others(flat, beam_args, show)
    texts = {log.path for log in flat if log.is_text}
    for group in groups:
        bad = {p: converted.bad[m] for p in group.files if (m := (p, group.columns)) in converted.bad}
        group.bad += bad.items()
        group.inspect([p for p in group.files if p not in texts and p not in bad], converted, bounds)
    kinds = _agreed(groups, fixed)
    converted = as_parquet(flat, converted, kinds, beam_args, show)
    for group in groups:
        mine = [p for p in group.files if p in texts and (p, group.columns) not in converted.bad]
        group.inspect(mine, converted, bounds)
        order = {path: i for i, path in enumerate(group.files)}
        group.good.sort(key=lambda s: order[s.path])
    why = [text for group in groups for _, text in sorted(group.bad)]
    if why and not options.skip_bad_files:
        listed = "\n  ".join(why[:20])
        more = f"\n  and {len(why) - 20} more" if len(why) > 20 else ""
        raise UnreadableFile(
            f"{len(why)} of {sum(len(g.files) for g in groups)} files cannot be read; nothing was written:\n  "
            f"{listed}{more}"
        )
    return _agreed(groups, fixed), known


def _agreed(groups: Sequence[_Logs], fixed: Mapping[str, str]) -> dict[str, str]:
    events, shown, items = (group.good for group in groups)
    kinds = common_kinds([*events, *shown], fixed)
    named = common_kinds(items, {k: v for k, v in kinds.items() if k == "item_id"})
    return {**named, **kinds}


def common_kinds(sources: Iterable[LogFile], fixed: Mapping[str, str]) -> dict[str, str]:
    """The kind of each meaning (user, item, action, surface) over all files, equal to what the table has. Files without
    a row that will be taken, and columns of nulls, say nothing.

    Raises:
        WrongType: two files, or a file and the table, differ.
    """
    sources = list(sources)
    for meaning in {m for s in sources for m in s.constants}:  # 1 and home beside each other are names
        mine = [s for s in sources if meaning in s.constants]
        if fixed.get(meaning) == "string" or any(s.kinds[meaning] == "string" for s in mine):
            for source in mine:
                source.kinds[meaning] = "string"
    kinds = dict(fixed)
    where = {meaning: "the table" for meaning in kinds}
    for source in sources:
        for name, kind in source.kinds.items() if source.decides else ():
            meaning = "action" if name == "actions" else name
            kind = kind.removeprefix("list of ")
            if meaning not in ("user_id", "item_id", "action", "surface") or kind == "null":
                continue
            if kinds.setdefault(meaning, kind) != kind:
                raise WrongType(
                    f"{source.path}: column {source.names.get(name, name)!r} ({meaning}): expected {kinds[meaning]} "
                    f"as in {where[meaning]}, found {kind}; cast the column and run vista ingest again"
                )
            where.setdefault(meaning, source.path)
    return kinds


def read_tasks(sources: Sequence[LogFile], tag: str, chunk_rows: int) -> list[ReadTask]:
    """Row groups dealt out in order: tasks of about ``chunk_rows`` rows, across files where those are small."""
    tasks: list[ReadTask] = []
    parts: list[tuple[LogFile, tuple[int, ...], int]] = []
    rows = 0

    def close() -> None:
        nonlocal parts, rows
        if parts:
            tasks.append(ReadTask(len(tasks), tag, tuple(parts)))
        parts, rows = [], 0

    for source in sources:
        groups: list[int] = []
        first = row = 0
        for g, size in enumerate(source.groups):
            if rows and rows + size > chunk_rows:
                if groups:
                    parts.append((source, tuple(groups), first))
                close()
                groups, first = [], row
            groups.append(g)
            rows += size
            row += size
        if groups:
            parts.append((source, tuple(groups), first))
    close()
    return tasks


def time_bounds(options: IngestOptions, now_ms: int) -> tuple[int, int]:
    """Least and largest time that is taken. Where order or a start of its own tells the time, any from 1970 is."""
    latest = now_ms + schema.CLOCK_SKEW_MS if options.max_time_ms is None else options.max_time_ms
    own = bool(options.log.time_from)
    earliest = 0 if own and options.min_time_ms == schema.MIN_TIME_MS else options.min_time_ms
    return earliest, latest


def logs_asked(options: IngestOptions, left_out: list[str]) -> list[_Logs]:
    """Files of events, impressions and items; ``left_out`` takes those below folders that are no logs."""
    asked = (
        (options.events, schema.EVENTS, options.log),
        (options.impressions, schema.IMPRESSIONS, options.impression_log()),
        (options.items, schema.ITEMS, Reading(columns=options.item_columns, encoding=options.log.encoding)),
    )
    return [
        _Logs(paths.expand(names, left_out) if names else [], columns, reading)
        for names, columns, reading in asked
    ]


def make_plan(
    options: IngestOptions,
    warehouse: Warehouse,
    run_dir: RunDirectory,
    record: RunRecord,
    beam_args: Sequence[str],
    show: bool = False,
) -> IngestPlan:
    """The plan of an earlier attempt, or a new one. ``show``: a progress bar."""
    path = run_dir.path / "plan.json"
    if path.exists():
        return _unchanged(IngestPlan.from_json(path.read_text()), run_dir)
    bounds = time_bounds(options, record.started_ms)
    left_out: list[str] = []
    groups = logs_asked(options, left_out)
    there = warehouse.exists()
    fixed: dict[str, str] = {}
    if there:
        warehouse.open()
        recover(warehouse)
        fixed = {k: v for k in ("item_id", "action", "surface") if (v := warehouse.fact(f"kind-{k}"))}
        if holds_users(warehouse):
            fixed["user_id"] = "int" if warehouse.user_kind == "int64" else "string"
        if options.num_buckets not in (0, warehouse.num_buckets):
            raise OptionsError(
                f"{warehouse.name}: expected --buckets {warehouse.num_buckets} (fixed when the tables were made), "
                f"found {options.num_buckets}; leave the option out of vista ingest"
            )
    basis, lines = (warehouse.basis(), ledger.entries(warehouse)) if there else ("", [])
    readings = {kind: options.reading(kind) for kind in LOG_KINDS}
    readings["items"] += _ids_of_vectors(groups[-1])
    for kind, group in zip(LOG_KINDS, groups, strict=True):
        group.seen = set() if options.again else ledger.known(lines, kind, readings[kind])
    try:
        kinds, known = inspect_all(groups, fixed, options, bounds, run_dir, beam_args, show)
    except schema.MissingColumn as error:
        raise which_are_events(error, len(groups[0].files), options) from error
    bad = [letter for group in groups for letter in group.bad]
    if bad and not any(group.good for group in groups) and not known:
        raise UnreadableFile(
            f"{len(bad)} files, none of which can be read; nothing was written. See {', '.join(options.events)}"
        )
    events, shown, items = ([s for s in g.good if (s.bytes, s.digest) not in g.seen] for g in groups)
    known += sum(len(g.good) for g in groups) - len(events) - len(shown) - len(items)
    plan = IngestPlan(
        run=record.run_id,
        commit=warehouse.commit_number + 1 if there else 1,
        min_time_ms=bounds[0],
        max_time_ms=bounds[1],
        user_kind=_user_kind(kinds, warehouse if there else None),
        num_buckets=warehouse.num_buckets if there else options.num_buckets or 16,
        kinds=kinds,
        events=_numbered(events),
        impressions=tuple(shown),
        items=tuple(items),
        known=known,
        bad_files=tuple(bad),
        basis=basis,
        readings=readings,
        remarks=_remarks(groups, lines, readings),
        log=options.log.to_json(),
        first_time_ms=_first_time(options, warehouse if there else None),
        left_out=len(left_out),
        vector_width=vector_width(items, int(warehouse.fact(WIDTH, "0")) if there else 0),
    )
    scan = ScanColumns(
        str(run_dir.path),
        options.skip_bad_files,
        rules_of(plan, options.log),
        rules_of(plan, options.impression_log()),
    )
    actions, surfaces = vocabularies(
        plan.events,
        plan.impressions,
        (warehouse.actions, warehouse.surfaces) if there else ((), ()),
        (options.actions, options.surfaces),
        options.log.named_actions(),
        scan,
        beam_args,
    )
    plan = dataclasses.replace(
        plan, actions=actions, surfaces=surfaces, log=_known_weights(plan.log, actions, options)
    )
    write_atomically(path, plan.to_json())
    return plan


def which_are_events(error: schema.MissingColumn, files: int, options: IngestOptions) -> schema.MissingColumn:
    """The refusal of one of several files, with what tells which of them are events."""
    if files < 2:
        return error
    return schema.MissingColumn(
        f"{error}. If not all of {files} files are events, vista init {shlex.join(options.events)} tells which are"
    )


def _remarks(
    groups: Sequence[_Logs], lines: Sequence[tuple[str, ledger.LedgerRow]], readings: Mapping[str, str]
) -> tuple[str, ...]:
    """What the ledger says of the files that are read: they were before, as something else or another way."""
    found = Counter[str]()
    taken = [(run, row) for run, row in lines if row.taken and row.kind]
    for kind, group in zip(LOG_KINDS, groups, strict=True):
        for source in group.good:
            before = [(run, row) for run, row in taken if row.key[:2] == (source.bytes, source.digest)]
            for run, row in before[-1:]:
                if (row.kind, row.reading) != (kind, readings[kind]):
                    found[run] += 1
    return tuple(
        f"{n} files were read before, as another kind of log or another way, by {run}: what they brought then is still "
        f"there; vista ingest --undo {run} takes it back"
        for run, n in found.items()
    )


def _ids_of_vectors(items: _Logs) -> str:
    """What files of ids beside vectors (``.npy``) hold, so that others make the vectors unknown again."""
    arrays = [p for p in items.files if p.lower().endswith(".npy")]
    names = [name for p in arrays if paths.exists(name := ids_file(p, items.reading))]
    return " ".join(schema.identity(name)[1] for name in dict.fromkeys(names))


def holds_users(warehouse: Warehouse) -> bool:
    """Whether the tables ever held a row of a user, so that the kind of users is fixed."""
    return any(warehouse.table(n).current_snapshot() is not None for n in ("history", "impressions"))


def _user_kind(kinds: Mapping[str, str], warehouse: Warehouse | None) -> str:
    if "user_id" in kinds or warehouse is None:
        return "string" if kinds.get("user_id") == "string" else "int64"
    return warehouse.user_kind


def rules_of(plan: IngestPlan, reading: Reading) -> Rules:
    """What the rows of a plan's files must satisfy."""
    return Rules(plan.min_time_ms, plan.max_time_ms, plan.actions, plan.surfaces, reading, plan.first_time_ms)


def _known_weights(log: dict[str, Any], actions: Sequence[str], options: IngestOptions) -> dict[str, Any]:
    """The reading with the weights of actions that there are: a layout's may name others.

    Raises:
        OptionsError: a name that was asked for, or every name of a layout, is none.
    """
    told = log.get("weights", {})
    known = {a: w for a, w in told.items() if a in actions}
    unknown = [a for a in options.weighed if a not in actions] or (list(told) if not known else [])
    if unknown and actions:
        raise OptionsError(
            f"--weight: expected names among {', '.join(actions)}, found {', '.join(unknown)}; for example "
            f"--weight {actions[0]}=1"
        )
    return {**log, "weights": known} if told else log


def _numbered(sources: Sequence[LogFile]) -> tuple[LogFile, ...]:
    """The files with their numbers, and the number of each one's first row."""
    found: list[LogFile] = []
    first = 0
    for number, source in enumerate(sources):
        found.append(dataclasses.replace(source, number=number, first=first))
        first += source.rows
    return tuple(found)


def _first_time(options: IngestOptions, warehouse: Warehouse | None) -> int:
    """Where order is time: the moment behind the newest event of the tables, or 2000-01-01."""
    if not options.log.by_order:
        return 0
    files = [] if warehouse is None else [f for some in warehouse.bucket_files().values() for f in some]
    times = [f.max_time for f in files if f.max_time is not None]
    return max(times) + 1 if times else FIRST_ORDER_MS


def _unchanged(plan: IngestPlan, run_dir: RunDirectory) -> IngestPlan:
    """The plan, if its files are still those it was made for, and none was replaced or removed since."""
    for source in (*plan.events, *plan.impressions, *plan.items):
        try:
            found = schema.identity(source.path)
        except OSError as error:
            raise DataError(
                f"{source.path}: expected the file that {run_dir.path} began with, found none ({error}); put it back "
                f"to continue, or run vista ingest with another run directory"
            ) from error
        if found != (source.bytes, source.digest):
            raise DataError(
                f"{source.path}: expected the file that {run_dir.path} began with ({source.bytes} bytes), found "
                f"another ({found[0]} bytes); run vista ingest with another run directory"
            )
    return plan
