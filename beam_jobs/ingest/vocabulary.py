"""Names of actions and surfaces: given, or found in the logs; they only ever grow at the end.

Rows that will be refused name nothing. So rows are looked at, one task per file, before they are read, but where all
that the footer knows is named already.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from beam_jobs.run.engines import run_tasks
from beam_jobs.run.files import write_atomically
from beam_jobs.run.record import RunDirectory
from vista.data.logs.actions import MAX_ACTION
from vista.data.logs.importer import accepted
from vista.data.logs.inspecting import column_bounds
from vista.data.logs.schema import BROKEN, LINE, SECOND, LogFile, UnreadableFile, batches, open_source
from vista.data.logs.values import Rules
from vista.errors import DataError

MAX_SURFACES = 1_000_000
BATCH_BYTES = 1 << 28
Names = tuple[str, ...]


MAX_VALUES = 100_000
"""Different values of a column of a file that are looked at: far more than any vocabulary has."""


@dataclass(frozen=True)
class ScanColumns:
    """Finds the distinct values of columns of one file's good rows; the answer lies under ``RUN/vocabulary/``."""

    run_dir: str
    skip_bad_files: bool
    events: Rules
    impressions: Rules

    def __call__(self, task: tuple[LogFile, Names]) -> dict[str, int]:
        self.scan(*task)
        return {}

    def path(self, source: LogFile) -> Path:
        name = xxhash.xxh3_64_hexdigest(
            f"{source.path}|{source.bytes}|{source.digest}|{source.shows}".encode()
        )
        return Path(self.run_dir, "vocabulary", f"{name}.json")

    def scan(self, source: LogFile, meanings: Sequence[str]) -> None:
        """Raises UnreadableFile."""
        if self.path(source).exists():
            return
        found: dict[str, set[str | int]] = {m: set() for m in meanings}
        rules = self.impressions if source.shows else self.events
        needed = {"user_id", "item_id", "timestamp_ms", SECOND, LINE, BROKEN, *meanings}
        some = dataclasses.replace(source, names={m: n for m, n in source.names.items() if m in needed})
        first = 0
        # Where bad pages are skipped, a bad row group hides no other.
        for group, rows in enumerate(source.groups):
            try:
                self._scan_group(some, rules, group, first, found)
            except (OSError, ValueError, pa.ArrowException) as error:
                if not self.skip_bad_files:
                    raise UnreadableFile(
                        f"{source.path}: expected readable rows, found ({', '.join(meanings)}): "
                        f"{str(error).splitlines()[0]}; replace the file, or run vista ingest --skip-bad-files"
                    ) from error
            first += rows
        values = {m: sorted(v)[: MAX_VALUES + 1] for m, v in found.items()}
        write_atomically(self.path(source), json.dumps(values).encode())

    def _scan_group(
        self, source: LogFile, rules: Rules, group: int, row: int, found: dict[str, set[str | int]]
    ) -> None:
        with open_source(source.data, text_columns(source)) as file:
            columns = list(dict.fromkeys(source.names.values()))
            for batch in batches(file, batch_rows(file, 1 << 20), columns, [group]):
                for m, values in accepted(batch, source, rules, row, list(found)).items():
                    if len(found[m]) <= MAX_VALUES:
                        found[m].update(values)
                row += batch.num_rows

    def values(self, source: LogFile, meaning: str) -> list[str | int]:
        return json.loads(self.path(source).read_text()).get(meaning, [])


def text_columns(source: LogFile) -> list[str]:
    """Columns to read as dictionaries: a text that stands in a million rows is held once."""
    return [n for m, n in source.names.items() if source.kinds.get(m) == "string" or m == BROKEN]


def batch_rows(file: pq.ParquetFile, most: int) -> int:
    """Rows to read at a time: ``most``, or fewer where rows are large by the footer."""
    metadata = file.metadata
    held = sum(metadata.row_group(g).total_byte_size for g in range(metadata.num_row_groups))
    return max(1, min(most, BATCH_BYTES * max(metadata.num_rows, 1) // max(held, 1)))


def vocabularies(
    events: Sequence[LogFile],
    impressions: Sequence[LogFile],
    present: tuple[Names, Names],
    given: tuple[Names | None, Names | None],
    named: Names,
    scan: ScanColumns,
    beam_args: Sequence[str],
) -> tuple[Names, Names]:
    """(actions, surfaces) after this run: those present, then new ones in order.

    Args:
        present: of the tables.
        given: by option; a given vocabulary is the whole.
        named: actions that the way of reading names, in order.

    Raises:
        DataError: too many, or a given one that does not continue the present one.
    """
    for name, old, new in zip(("actions", "surfaces"), present, given, strict=True):
        if new is not None and new[: len(old)] != old:
            raise DataError(
                f"{name}: expected a continuation of {', '.join(old)} (names only grow at the end), found "
                f"{', '.join(new)}; run vista ingest without naming them (--action), or with new names appended"
            )
    there = (*present[0], *(n for n in named if n not in present[0]))
    sources = (*events, *impressions)
    read = [(s, meanings) for s in sources if s.rows and (meanings := _unknown(s, given, len(there)))]
    if read:
        run_tasks("ingest: vocabularies", read, scan, beam_args, RunDirectory(scan.run_dir))
    found, largest = _found(sources, read, scan)
    actions = given[0] or (*there, *sorted(found["action"] - set(there)))
    # A number beyond the mask is a dead letter, not a name.
    actions = (*actions, *(str(a) for a in range(len(actions), largest + 1)))
    surfaces = given[1] or (*present[1], *sorted(found["surface"] - set(present[1])))
    for name, values, limit in (("action", actions, MAX_ACTION + 1), ("surface", surfaces, MAX_SURFACES)):
        if len(values) > limit:
            raise DataError(
                f"{name}: expected at most {limit} different values, found {len(values)}: "
                f"{', '.join(v[:40] for v in values[:40])}...; "
                f"is this the right column (vista ingest --column {name}=NAME)? Or name those to keep with "
                f"vista ingest --action A --action B (surfaces: --surface); the rest will be dead letters"
            )
    return tuple(actions), tuple(surfaces)


def _unknown(source: LogFile, given: tuple[Names | None, Names | None], actions: int) -> tuple[str, ...]:
    """Columns whose values have to be read: text, and numbers that may lie beyond the ``actions`` names there are."""
    found: list[str] = []
    for key in ("action", "actions") if given[0] is None else ():
        if key in source.names and source.kinds[key] != "null":
            bounds = _int_bounds(source, key) if source.kinds[key].endswith("int") else None
            if bounds is None or bounds[1] >= actions:
                found.append(key)
    if source.kinds.get("surface") == "string" and "surface" in source.names and given[1] is None:
        found.append("surface")
    return tuple(found)


def _found(
    sources: Sequence[LogFile], read: Sequence[tuple[LogFile, tuple[str, ...]]], scan: ScanColumns
) -> tuple[dict[str, set[str]], int]:
    """(names of actions and surfaces that the logs hold, the largest number of an action or -1)."""
    names: dict[str, set[str]] = {"action": set(), "surface": set()}
    largest = -1
    for source in sources:
        for meaning in names:
            constant = source.constants.get(meaning)
            if constant and source.kinds.get(meaning) == "string" and source.decides:
                names[meaning].add(constant)
    for source, meanings in read:
        for meaning in meanings:
            for value in scan.values(source, meaning):
                if isinstance(value, int):
                    largest = max(largest, value if value <= MAX_ACTION else -1)
                else:
                    names["surface" if meaning == "surface" else "action"].add(value)
    return names, largest


def _int_bounds(source: LogFile, meaning: str) -> tuple[int, int] | None:
    if not source.rows:
        return (0, -1)
    with open_source(source.data) as file:
        return column_bounds(file, source.names[meaning])
