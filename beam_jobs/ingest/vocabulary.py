"""Names of actions and surfaces: given, or found in the logs; they only ever grow at the end.

Numbered actions need no look at the rows: the footer has the largest number. Strings are found by reading their
columns alone, one task per file, before the rows are read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from beam_jobs.run.engines import run_tasks
from beam_jobs.run.record import write_atomically
from vista.data.logs.importer import MAX_ACTION
from vista.data.logs.schema import Source, UnreadableFile, column_bounds, open_source
from vista.errors import DataError

MAX_SURFACES = 1_000_000
Names = tuple[str, ...]


@dataclass(frozen=True)
class ScanColumns:
    """Finds the distinct values of columns of one file; the answer lies under ``RUN/vocabulary/``."""

    run_dir: str
    skip_bad_files: bool

    def __call__(self, task: tuple[Source, Names]) -> dict[str, int]:
        self.scan(*task)
        return {}

    def path(self, source: Source) -> Path:
        name = xxhash.xxh3_64_hexdigest(f"{source.path}|{source.bytes}|{source.digest}".encode())
        return Path(self.run_dir, "vocabulary", f"{name}.json")

    def scan(self, source: Source, meanings: Sequence[str]) -> None:
        """Raises UnreadableFile."""
        if self.path(source).exists():
            return
        found: dict[str, set[str | int]] = {m: set() for m in meanings}
        try:
            with open_source(source.data) as file:
                for batch in file.iter_batches(1 << 20, columns=[source.names[m] for m in meanings]):
                    for m in meanings:
                        column = batch.column(source.names[m])
                        if pa.types.is_dictionary(column.type):
                            column = column.cast(column.type.value_type)
                        if source.kinds[m].startswith("list"):
                            column = column.flatten()
                        found[m].update(pc.unique(column).drop_null().to_pylist())
        except (OSError, ValueError, pa.ArrowException) as error:
            if not self.skip_bad_files:
                raise UnreadableFile(
                    f"{source.path}: expected readable columns {', '.join(meanings)}, found: {error}; replace the "
                    f"file, or run vista ingest --skip-bad-files"
                ) from error
        values = {m: sorted(v) for m, v in found.items()}
        write_atomically(self.path(source), json.dumps(values).encode())

    def values(self, source: Source, meaning: str) -> list[str | int]:
        return json.loads(self.path(source).read_text()).get(meaning, [])


def vocabularies(
    events: Sequence[Source],
    impressions: Sequence[Source],
    present: tuple[Names, Names],
    given: tuple[Names | None, Names | None],
    scan: ScanColumns,
    beam_args: Sequence[str],
) -> tuple[Names, Names]:
    """(actions, surfaces) after this run: those present, then new ones in order.

    Args:
        present: of the tables.
        given: by option; a given vocabulary is the whole.

    Raises:
        DataError: too many, or a given one that does not continue the present one.
    """
    for name, old, new in zip(("actions", "surfaces"), present, given, strict=True):
        if new is not None and new[: len(old)] != old:
            raise DataError(
                f"{name}: expected a continuation of {', '.join(old)} (names only grow at the end), found "
                f"{', '.join(new)}; run vista ingest without naming them (--action), or with new names appended"
            )
    largest = -1
    wanted: list[tuple[Source, tuple[str, ...]]] = []
    for source in (*events, *impressions):
        meanings = []
        for key in ("action", "actions"):
            if key in source.kinds and given[0] is None:
                bounds = _int_bounds(source, key) if source.kinds[key].endswith("int") else None
                if bounds is None:
                    meanings.append(key)
                else:
                    largest = max(largest, bounds[1])
        if source.kinds.get("surface") == "string" and given[1] is None:
            meanings.append("surface")
        if meanings and source.rows:
            wanted.append((source, tuple(meanings)))
    if wanted:
        run_tasks("ingest: vocabularies", wanted, scan, beam_args)
    strings: dict[str, set[str]] = {"action": set(), "surface": set()}
    for source, meanings in wanted:
        for m in meanings:
            for value in scan.values(source, m):
                if isinstance(value, int):
                    largest = max(largest, value)
                else:
                    strings["surface" if m == "surface" else "action"].add(value)
    actions = given[0] or (*present[0], *sorted(strings["action"] - set(present[0])))
    # A number beyond the mask is a dead letter, not a name.
    actions = (*actions, *(str(a) for a in range(len(actions), min(largest, MAX_ACTION) + 1)))
    surfaces = given[1] or (*present[1], *sorted(strings["surface"] - set(present[1])))
    for name, values, limit in (("action", actions, MAX_ACTION + 1), ("surface", surfaces, MAX_SURFACES)):
        if len(values) > limit:
            raise DataError(
                f"{name}: expected at most {limit} different values, found {len(values)}: {', '.join(values[:40])}...; "
                f"is this the right column (vista ingest --column {name}=NAME)? Or name those to keep with "
                f"vista ingest --action A --action B (surfaces: --surface); the rest will be dead letters"
            )
    return tuple(actions), tuple(surfaces)


def _int_bounds(source: Source, meaning: str) -> tuple[int, int] | None:
    if not source.rows:
        return (0, -1)
    with open_source(source.data) as file:
        return column_bounds(file.metadata, source.names[meaning])
