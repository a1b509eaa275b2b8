"""Logs that are no Parquet with a row per event to that, under the run's directory, one task per file, before
``ingest`` looks at their columns.

    text logs  ──draft──▶ what their values are ──(together)──▶ kinds ──typed──▶ RUN/spill/text/KEY.parquet
    other files (Feather, Arrow IPC, ORC, lists to take apart) ────────────────▶ RUN/spill/text/KEY.parquet

The kind of a column is one for all text logs of a run (vista/data/logs/text.py makes it so):

- times are numbers (``--time-unit``) where half of the values are, else text of times; positions are integers;
- any other column has the kind that the tables, or the run's other files, give it already (if that is int and most
  values are not, the file is refused); else it is int where every value in every file of events and impressions is
  an integer, else string. Files of items follow. Rows that will be refused have no say.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import xxhash

from beam_jobs.run.engines import run_tasks
from beam_jobs.run.files import write_atomically
from beam_jobs.run.progress import files_bar
from beam_jobs.run.record import RunDirectory
from vista.data import paths
from vista.data.logs import schema
from vista.data.logs.columnar import as_rows
from vista.data.logs.facts import Facts
from vista.data.logs.inspecting import refuse_text
from vista.data.logs.reading import Reading
from vista.data.logs.schema import SECOND, TOLD, Column, UnreadableFile
from vista.data.logs.text import draft, typed

Columns = tuple[Column, ...]
Mark = tuple[str, Columns]


@dataclass(frozen=True)
class Log:
    """One log on its way to Parquet.

    Attributes:
        folder: where its Parquet files go.
        columns, reading: as in :func:`vista.data.logs.inspecting.inspect`.
        bounds: least and largest time that is taken.
    """

    path: str
    folder: str
    columns: Columns
    reading: Reading
    bounds: tuple[int, int]

    @property
    def mark(self) -> tuple[str, Columns]:
        """The file and what its rows are taken for: one file may be a log of events and of items."""
        return self.path, self.columns

    @property
    def is_text(self) -> bool:
        return bool(paths.text_ending(self.path))

    @cached_property
    def key(self) -> str:
        size, digest = schema.identity(self.path)
        how = json.dumps(self.reading.to_json(), sort_keys=True) + ",".join(c.name for c in self.columns)
        return xxhash.xxh3_64_hexdigest(f"{self.path}|{size}|{digest}|{how}".encode())

    def file(self, end: str) -> Path:
        return Path(self.folder, self.key + end)

    def facts(self) -> Facts:
        return Facts(**json.loads(self.file(".json").read_text()))

    def write_draft(self) -> None:
        """Of a text log its draft, of any other file all that there is to do.

        Raises:
            UnreadableFile.
        """
        self.file("").parent.mkdir(parents=True, exist_ok=True)
        if self.is_text and not self.file(".json").exists():
            found = draft(self.path, str(self.file(".draft")), self.columns, self.reading, self.bounds)
            write_atomically(self.file(".json"), json.dumps(asdict(found)).encode())
        elif not self.is_text and not self.file(".parquet").exists():
            as_rows(self.path, str(self.file(".parquet")), self.columns, self.reading)

    def write_typed(self, kinds: Mapping[str, str]) -> None:
        """``kinds``: by column name."""
        if not self.file(".parquet").exists():
            typed(str(self.file(".draft")), str(self.file(".parquet")), kinds, self.reading)
            self.file(".draft").unlink()

    def named(self, facts: Facts) -> dict[str, str]:
        """Column name by meaning, for the columns that are there."""
        there = facts.names
        found: dict[str, str] = {}
        for column in schema.needed(self.columns, self.reading):
            name = schema.column_name(column, self.reading.columns, there)[0]
            parts = [name] if name in facts.values else schema.parts_of(name)
            if all(p in facts.values for p in parts):
                found[column.name] = parts[0]
                if len(parts) > 1:
                    found[SECOND] = parts[1]
        told = {TOLD + a.name: a.column for a in self.reading.actions if a.column in facts.values}
        return found | told


def _draft(log: Log) -> dict[str, int]:
    """Keeps the text of an unreadable file's error where the driver finds it."""
    try:
        log.write_draft()
    except UnreadableFile as error:
        RunDirectory(Path(log.folder).parents[1]).note_failure(f"text-{log.key}", error)
    return {}


def _typed(task: tuple[Log, dict[str, str]]) -> dict[str, int]:
    task[0].write_typed(task[1])
    return {}


@dataclass(frozen=True)
class Converted:
    """Logs as Parquet.

    Attributes:
        rows_at: ``Log.mark`` to Parquet file.
        bad: to the error of those that cannot be read.
        names: to all columns of a text log.
        undecided: text logs none of whose rows says what an id is.
    """

    rows_at: dict[Mark, str]
    bad: dict[Mark, str]
    names: dict[Mark, list[str]]
    undecided: frozenset[Mark]


def convert_others(logs: Sequence[Log], beam_args: Sequence[str], show: bool = False) -> Converted:
    """Draft text logs, and convert what is neither text nor Parquet with a row per event. ``show``: a progress bar."""
    if not logs:
        return Converted({}, {}, {}, frozenset())
    run = RunDirectory(Path(logs[0].folder).parents[1])
    with files_bar("ingest: text", [log.file(".json" if log.is_text else ".parquet") for log in logs], show):
        run_tasks("ingest: text", logs, _draft, beam_args, run)
    failures = {name: fact["text"] for name, fact in run.failures().items()}
    bad = {log.mark: failures[f"text-{log.key}"] for log in logs if f"text-{log.key}" in failures}
    done = {log.mark: str(log.file(".parquet")) for log in logs if not log.is_text and log.mark not in bad}
    return Converted(done, bad, {}, frozenset())


def as_parquet(
    logs: Sequence[Log],
    drafted: Converted,
    fixed: Mapping[str, str],
    beam_args: Sequence[str],
    show: bool = False,
) -> Converted:
    """Convert the text logs among ``logs``.

    Args:
        fixed: kind by meaning (actions: ``action``) where the tables or other files have settled it.
        show: a progress bar.

    Raises:
        WrongTime: most of a log's times are none.
    """
    good = [log for log in logs if log.is_text and log.mark not in drafted.bad]
    if not good:
        return drafted
    found = [(log, log.facts()) for log in good]
    for log, facts in found:
        _check_times(log, facts)
    kinds = kinds_of(found, dict(fixed))
    run = RunDirectory(Path(good[0].folder).parents[1])
    made = {log.mark: log.file(".parquet") for log in good}
    with files_bar("ingest: types", list(made.values()), show):
        run_tasks("ingest: types", list(zip(good, kinds, strict=True)), _typed, beam_args, run)
    return Converted(
        {**drafted.rows_at, **{mark: str(path) for mark, path in made.items()}},
        drafted.bad,
        {log.mark: facts.names for log, facts in found},
        frozenset(log.mark for log, facts in found if not facts.taken),
    )


def _check_times(log: Log, facts: Facts) -> None:
    values, _, _, read = facts.times
    if facts.samples and 2 * read < values:
        names = log.named(facts)
        refuse_text(log.path, names.get("timestamp_ms", "timestamp_ms"), facts.samples, log.reading)


def kinds_of(logs: Sequence[tuple[Log, Facts]], fixed: Mapping[str, str]) -> list[dict[str, str]]:
    """Per log, the kind of each column that is to stay."""
    named = [log.named(facts) for log, facts in logs]
    texts = set()
    for (log, facts), names in zip(logs, named, strict=True):
        if log.columns == schema.ITEMS:
            continue
        for meaning, name in names.items():
            listed = facts.lists.get(name) if _is_listed(meaning, name, facts) else None
            if "string" in listed if listed is not None else _is_text(name, facts):
                texts.add("action" if meaning == "actions" else meaning)
    fixed = {**dict.fromkeys(texts, "string"), **fixed}
    found = []
    for (log, facts), names in zip(logs, named, strict=True):
        kinds: dict[str, str] = {}
        for meaning, name in names.items():
            kind = _kind(meaning, name, facts, fixed, log.reading)
            kinds[name] = kind if kinds.get(name, kind) == kind else "string"
        found.append(kinds)
    return found


def _is_text(name: str, facts: Facts) -> bool:
    return facts.integers.get(name, 0) < facts.values[name] or (
        name in facts.texts and facts.values[name] > 0
    )


def _is_listed(meaning: str, name: str, facts: Facts) -> bool:
    """Whether a column is one of lists: of actions if any is one, else if most are."""
    listed = facts.listed.get(name, 0)
    return listed > 0 and (meaning in ("action", "actions") or 2 * listed > facts.values[name])


def _kind(meaning: str, name: str, facts: Facts, fixed: Mapping[str, str], reading: Reading) -> str:
    values = facts.values[name]
    if meaning.startswith(TOLD):
        listed = facts.lists.get(name)
        return "string" if listed is None else f"list of {listed[0] if len(listed) == 1 else 'string'}"
    if meaning in ("position", "name", "text", SECOND):
        return "int" if meaning == "position" else "string"
    if meaning in ("category", "vector"):
        words = "list of string" if name in facts.lists else "string"
        return "vector" if meaning == "vector" and values else words
    if meaning == "timestamp_ms":
        count, integers, numbers, _ = facts.times
        if reading.time_format or "+" in reading.columns.get(meaning, ""):
            return "string" if "+" in reading.columns.get(meaning, "") else "time"
        if 2 * integers >= count:
            return "int"
        return "float" if 2 * numbers >= count else "time"
    kind = fixed.get("action" if meaning == "actions" else meaning, "int")
    if _is_listed(meaning, name, facts):
        return f"list of {kind}"
    if not values:
        return "string"
    # Names where numbers are wanted are no stray values: as text the file is refused for what it is.
    return "string" if 2 * facts.integers[name] < values else kind
