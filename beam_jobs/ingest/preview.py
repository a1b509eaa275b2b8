"""What ``vista ingest --dry-run`` shows: of one file of each kind (names that differ by numbers alone are one), its
columns, how each is read, some rows as events.

Looks at the first rows of a file, in a folder that is gone afterwards; nothing else is touched.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from beam_jobs.ingest.items import vector_width
from beam_jobs.ingest.options import IngestOptions
from beam_jobs.ingest.plan import FIRST_ORDER_MS, inspect_all, logs_asked, time_bounds, which_are_events
from beam_jobs.ingest.vocabulary import text_columns
from beam_jobs.run.record import RunDirectory
from beam_jobs.run.runner import local_args
from cache_store.read.options import wall_clock
from vista.data import paths
from vista.data.logs import arrays
from vista.data.logs.columnar import as_rows
from vista.data.logs.csv_rows import QuotesAreText, csv_rows, first_line
from vista.data.logs.guessing import Guess, guess, guess_unnamed, headless
from vista.data.logs.importer import accepted, check, check_items
from vista.data.logs.json_rows import flattened, parsed, records
from vista.data.logs.letters import Letter, shown
from vista.data.logs.reading import Reading
from vista.data.logs.schema import (
    BROKEN,
    LINE,
    SECOND,
    TOLD,
    LogFile,
    MissingColumn,
    UnreadableFile,
    open_source,
)
from vista.data.logs.values import Rules
from vista.errors import DataError

ROWS = 1_000
HEAD_BYTES = 1 << 20
SHOWN = 10
SAMPLE = 200
KINDS = 64
"""Series of names (``part-*.csv``) of which one file is looked at."""


@dataclass(frozen=True)
class Look:
    """What was found in one file.

    Attributes:
        of: what the file is of.
        rows: looked at.
        columns: (meaning, column, type, how it is read).
        unused: columns that no meaning has.
        names: of the columns of ``events``, the first rows as they would be ingested.
        letters: rows set aside.
    """

    path: str
    of: str
    rows: int
    columns: list[tuple[str, str, str, str]]
    unused: list[str]
    names: tuple[str, ...] = ()
    events: list[tuple[Any, ...]] = field(default_factory=list)
    letters: list[Letter] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def preview(options: IngestOptions) -> list[Look]:
    """Look at a file of each kind that the options name.

    Raises:
        DataError: as ingesting would.
    """
    with tempfile.TemporaryDirectory() as folder:
        heads: dict[str, str] = {}
        of_items = Reading(columns=options.item_columns, encoding=options.log.encoding)
        asked = dataclasses.replace(
            options,
            events=_heads(options.events, folder, heads, options.log),
            impressions=_heads(options.impressions, folder, heads, options.log),
            items=_heads(options.items, folder, heads, of_items),
            log=dataclasses.replace(options.log, encoding=""),
        )
        run_dir = RunDirectory(Path(folder, "run"))
        run_dir.path.mkdir()
        groups = logs_asked(asked, [])
        bounds = time_bounds(asked, wall_clock())
        try:
            inspect_all(groups, {}, asked, bounds, run_dir, local_args())
        except DataError as error:
            text = str(error)
            for head, path in heads.items():
                text = text.replace(head, path)
            named = type(error)(text)
            if isinstance(named, MissingColumn):
                named = which_are_events(named, len(paths.expand(options.events or ())), options)
            raise named from error
        looks: dict[Any, Look] = {}
        for name, group in zip(("events", "impressions", "items"), groups, strict=True):
            for source in group.good:
                look = _look(source, heads[source.path], name, group.reading, bounds)
                read = tuple(look.columns), tuple(look.unused)
                same = source.path if paths.text_ending(source.path) else read
                looks.setdefault((name, same), look)
        return [*looks.values()]


def _heads(patterns: Sequence[str], folder: str, heads: dict[str, str], reading: Reading) -> tuple[str, ...]:
    """The first rows of a file of each kind, in the folder; ``heads`` takes where each is from."""
    series = _series(paths.expand(patterns)) if patterns else {}
    return tuple(
        _head(files[0], folder, heads, reading) for files in itertools.islice(series.values(), KINDS)
    )


def _series(files: Sequence[str]) -> dict[str, list[str]]:
    """Files by their names with any number in the place of numbers, as a glob."""
    series: dict[str, list[str]] = {}
    start = os.path.commonprefix(list(files)).rfind("/")
    for path in files:
        series.setdefault(path[:start] + re.sub(r"\d+", "*", path[start:]), []).append(path)
    return series


def _head(path: str, folder: str, heads: dict[str, str], reading: Reading) -> str:
    """The first rows of a file, in the folder, text as UTF-8."""
    below = Path(folder, str(len(heads)), *(f"{k}={v}" for k, v in paths.partitions(path).items()))
    below.mkdir(parents=True)
    target = below / os.path.basename(path)
    if paths.text_ending(path):
        name, ending = os.path.splitext(target.name)
        target = target.with_name(name if ending.lower() in paths.COMPRESSED else target.name)
        try:
            _text_head(path, target, reading.encoding)
        except paths.UNREADABLE as error:
            raise UnreadableFile(f"{path}: expected a readable log, found: {error}") from error
    elif paths.array_ending(path):
        target = target.with_suffix(".parquet")
        arrays.as_rows(path, str(target), reading, ROWS)
    elif paths.table_ending(path) not in (".feather", ".arrow", ".ipc", ".orc"):
        with open_source(path) as file:
            batch = next(file.iter_batches(ROWS), pa.RecordBatch.from_pylist([], file.schema_arrow))
            pq.write_table(pa.Table.from_batches([batch]), target)
    else:
        shutil.copyfile(paths.local_path(path), target)
    heads[str(target)] = path
    return str(target)


def _text_head(path: str, target: Path, encoding: str) -> None:
    with paths.open_text(path, encoding) as stream, open(target, "wb") as out:
        if paths.text_ending(path) == ".json":
            for record in itertools.islice(records(stream, True), ROWS):
                out.write((record if isinstance(record, bytes) else json.dumps(record).encode()) + b"\n")
            return
        head = b""
        while len(head) < HEAD_BYTES and (block := stream.read(HEAD_BYTES - len(head))):
            head += block
        lines = head.splitlines(keepends=True)
        whole = lines if len(head) < HEAD_BYTES else lines[:-1] or lines
        out.write(b"".join(whole[: ROWS + 1]))


def _look(source: LogFile, path: str, of: str, reading: Reading, bounds: tuple[int, int]) -> Look:
    with open_source(source.data, text_columns(source)) as file:
        schema = file.schema_arrow
        wanted = list(dict.fromkeys(source.names.values()))
        batch = next(file.iter_batches(ROWS, columns=wanted), None)
    types = {
        n: _type(schema.field(n).type) if not paths.text_ending(source.path) else "text" for n in schema.names
    }
    columns = [
        (m.removeprefix(TOLD), name, types[name], _how(m, source, reading))
        for m, name in source.names.items()
        if m not in (LINE, BROKEN)
    ]
    columns += [
        (m, "(path)" if m not in reading.constants else "(constant)", "text", f"{v!r} in all rows")
        for m, v in source.constants.items()
    ]
    if reading.action_is:
        columns.append(("action", "(constant)", "text", f"{reading.action_is!r} in all rows"))
    if reading.by_order:
        columns.append(("timestamp_ms", "(order)", "", "a millisecond for each row, in order"))
    used = set(source.names.values())
    unused = [n for n in schema.names if n not in used and n not in (LINE, BROKEN)]
    rows = 0 if batch is None else batch.num_rows
    look = Look(path, of, rows, columns, unused)
    if batch is None:
        return look
    return (
        _as_items(look, batch, source) if of == "items" else _as_events(look, batch, source, reading, bounds)
    )


def _how(meaning: str, source: LogFile, reading: Reading) -> str:
    kind = source.kinds.get(meaning, "text")
    if meaning.startswith(TOLD):
        action = next(a for a in reading.actions if TOLD + a.name == meaning)
        if kind.startswith("list"):
            return "action where the item is in the list"
        return f"action where {action}" if action.operator else "action where it is not 0"
    if meaning == "timestamp_ms":
        since = f" since {reading.time_from}" if reading.time_from else ""
        if kind in ("int", "float", "uint", "decimal") and not reading.time_format:
            return f"number in {reading.time_unit}{since}"
        return f"time as {reading.time_format}" if reading.time_format else f"time{since}"
    if meaning == SECOND:
        return "time of the day"
    names = {"int": "number", "string": "name", "null": "nothing in it", "list of int": "list of numbers"}
    return names.get(kind, kind)


def _as_items(look: Look, batch: pa.RecordBatch, source: LogFile) -> Look:
    width = 0
    if source.kinds.get("vector", "null") != "null":
        width = vector_width([source], 0)
    found = check_items(batch, source, 0, width)
    rows = []
    told = {n: c.to_pylist() for n, c in found.content.items()}
    for i in range(min(SHOWN, len(found.item))):
        vector = told["vector"][i] if "vector" in told else None
        start = "-" if vector is None else " ".join(f"{v:.3g}" for v in vector[:3]) + f" ... ({len(vector)})"
        words = [(told[n][i] or "-")[:40] if n in told else "-" for n in ("category", "text")]
        rows.append((str(found.item[i]), found.name[i].as_py()[:40], *words, start))
    head = ("item", "name", "category", "text", "vector")
    return dataclasses.replace(look, names=head, events=rows, letters=found.letters[:SHOWN])


def _as_events(
    look: Look, batch: pa.RecordBatch, source: LogFile, reading: Reading, bounds: tuple[int, int]
) -> Look:
    first = FIRST_ORDER_MS if reading.by_order else 0
    open_rules = Rules(*bounds, (), (), reading, first)
    asked = [
        m
        for m in ("action", "actions", "surface")
        if m in source.names
        and (source.kinds[m] != "null")
        and not (m == "surface" and source.kinds[m] == "int")
    ]
    found = accepted(batch, source, open_rules, 0, asked)
    actions: list[str] = list(reading.named_actions())
    for key in ("action", "actions"):
        values = found.get(key, [])
        if values and isinstance(values[0], int):
            actions += [str(a) for a in range(len(actions), min(max(int(v) for v in values), 30) + 1)]
        else:
            actions += sorted({str(v) for v in values} - set(actions))
    surfaces = tuple(sorted(str(v) for v in found.get("surface", [])))
    fixed = source.constants.get("surface")
    rules = Rules(*bounds, tuple(actions[:31]), surfaces or ((fixed,) if fixed else ()), reading, first)
    checked = check(batch, source, rules, 0)
    names = dict(zip(checked.names[0].tolist(), checked.names[1].to_pylist(), strict=True))
    events = []
    for i in range(min(SHOWN, len(checked))):
        c = {name: column[i] for name, column in checked.columns.items()}
        item = int(c["item"])
        did = [a for k, a in enumerate(rules.actions) if int(c["action"]) >> k & 1]
        surface = int(c.get("surface", 0))
        kind = "event" if checked.engaged is None or checked.engaged[i] else "impression"
        when = np.datetime64(int(c["time"]), "ms") if c["time"] >= 0 else "of its request"
        where = rules.surfaces[surface] if rules.surfaces else surface
        row = (
            str(checked.user[i].as_py()),
            str(names.get(item, item)),
            "+".join(did) or "-",
            str(when),
            str(where),
        )
        events.append((*row, "impression" if source.shows else kind))
    head = ("user", "item", "actions", "time (UTC)", "surface", "becomes")
    return dataclasses.replace(look, names=head, events=events, letters=checked.letters[:SHOWN])


def _type(type_: pa.DataType) -> str:
    return str(type_.value_type if pa.types.is_dictionary(type_) else type_)


@dataclass(frozen=True)
class FoundLogs:
    """Files of the same columns: where they lie (paths or globs), the columns, how they are most likely read."""

    logs: tuple[str, ...]
    path: str
    columns: list[str]
    guess: Guess

    def says(self) -> str:
        """For people: what such files are taken for."""
        lacks = ", ".join(self.guess.missing)
        if self.guess.impressions:
            return "impressions, by its columns: vista ingest EVENTS --impressions takes them in"
        if not lacks:
            return "events too, of other columns"
        return f"items, by its columns (no {lacks})" if self.guess.missing[0] == "user_id" else f"no {lacks}"


def look_first(patterns: Sequence[str]) -> tuple[FoundLogs, list[FoundLogs]]:
    """(the files that most likely are the events, the other kinds beside them) of logs, whatever their columns mean.

    Raises:
        DataError: no file, or none that can be read.
    """
    kinds: dict[tuple[str, ...], FoundLogs] = {}
    bytes_: dict[tuple[str, ...], int] = {}
    fault: DataError | None = None
    left_out: list[str] = []
    series = _series(paths.expand(patterns, left_out))
    unsure = _series([name for name in left_out if paths.text_ending(name)])
    for glob, files in itertools.islice([*series.items(), *unsure.items()], KINDS):
        if glob in unsure and any(not (k.guess.missing or k.guess.impressions) for k in kinds.values()):
            break
        try:
            columns, found = _first_look(files[0])
        except DataError as error:
            fault = fault or error
            continue
        named = (files[0],) if len(files) == 1 else (glob,) if _names(glob, files) else tuple(files)
        before = kinds.get(tuple(columns))
        kinds[tuple(columns)] = FoundLogs(
            (*(before.logs if before else ()), *named),
            *((before.path, columns, before.guess) if before else (files[0], columns, found)),
        )
        bytes_[tuple(columns)] = bytes_.get(tuple(columns), 0) + sum(paths.size(f) for f in files)
    if not kinds:
        raise fault or UnreadableFile(f"{patterns[0]}: expected a readable log, found none")

    def unlikely(kind: FoundLogs) -> tuple[int, bool, int]:
        lacks = len(kind.guess.missing) + 3 * kind.guess.impressions
        return lacks, "action" in kind.guess.why, -bytes_[tuple(kind.columns)]

    best, *others = sorted(kinds.values(), key=unlikely)
    return (best if others else dataclasses.replace(best, logs=tuple(patterns))), others


def _names(glob: str, files: Sequence[str]) -> bool:
    """Whether a glob names these files alone."""
    try:
        return paths.expand([glob]) == list(files)
    except DataError:
        return False


def _first_look(path: str) -> tuple[list[str], Guess]:
    """(its columns, how it is most likely read) of a file."""
    with tempfile.TemporaryDirectory() as folder:
        head = _head(path, folder, {}, Reading())
        ending = paths.text_ending(head)
        try:
            if ending in paths.JSON_ENDINGS:
                columns = _json_columns(head, ending)
            elif ending:
                with pa.input_stream(head, compression="detect") as stream:
                    names = first_line(stream, ending)
                if headless(names):
                    unnamed = Reading(header=tuple(f"c{i + 1}" for i in range(len(names))))
                    return names, guess_unnamed(list(_csv_columns(head, ending, unnamed).values()))
                columns = _csv_columns(head, ending, Reading())
            else:
                table = _first_rows(head)
                while any(pa.types.is_struct(f.type) for f in table.schema):
                    table = table.flatten()
                rows = np.arange(min(table.num_rows, SAMPLE))
                columns = {n: shown(table[n], rows) for n in table.schema.names if n not in (LINE, BROKEN)}
        except (ValueError, QuotesAreText, pa.ArrowException) as error:
            if isinstance(error, DataError):
                raise
            raise UnreadableFile(f"{path}: expected a readable log, found: {error}") from error
        return list(columns), guess(columns)


def _json_columns(path: str, ending: str) -> dict[str, list[Any]]:
    rows = []
    with pa.input_stream(path, compression="detect") as stream:
        for line in itertools.islice(records(stream, ending == ".json"), SAMPLE):
            try:
                rows.append(flattened(line if isinstance(line, dict) else parsed(line)))
            except (ValueError, RecursionError):
                continue
    keys = dict.fromkeys(name for row in rows for name in row)
    return {n: [row.get(n) for row in rows] for n in keys}


def _csv_columns(path: str, ending: str, reading: Reading) -> dict[str, list[Any]]:
    with pa.input_stream(path, compression="detect") as stream:
        table = pa.Table.from_batches(list(csv_rows(stream, ending, _Any(), [], reading, None)))
    rows = np.arange(min(table.num_rows, SAMPLE))
    return {n: shown(table[n], rows) for n in table.schema.names if n not in (LINE, BROKEN)}


class _Any:
    """Contains every name."""

    def __contains__(self, name: object) -> bool:
        return True


def _first_rows(path: str) -> pa.Table:
    target = f"{path}.rows"
    if paths.table_ending(path) in (".parquet", ".pq", ".parq"):
        return open_source(path).read()
    as_rows(path, target, (), Reading(), every=True)
    return pq.read_table(target)
