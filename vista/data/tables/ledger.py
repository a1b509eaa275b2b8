"""The ledger: which files were ingested, as what, and what became of their rows.

    path | bytes | digest (XXH3-128 of size and content) | rows | run | kind | reading | set_aside | in_table | commit

A file is known when the same bytes were ingested before as the same *kind* (``events``, ``impressions``, ``items``)
under the same *reading* (columns, units, bounds and vocabularies asked for), and a row of it was taken (docs/data.md).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields

import pyarrow as pa
from pyiceberg.io.pyarrow import schema_to_pyarrow
from pyiceberg.table import Table

from vista.data.tables.manifests import sound
from vista.data.tables.schemas import SOURCES
from vista.data.tables.warehouse import Warehouse


@dataclass(frozen=True)
class LedgerRow:
    """One file of one ingest.

    Attributes:
        path: URI or path as it was given.
        bytes, digest: its identity.
        rows: in the file.
        kind, reading: see the module; empty in tables of version 0.1, which matches nothing.
        set_aside: rows that became dead letters.
        in_table: rows of the whole run that the tables had already, from whatever file.
        commit: number of the commit that brought it.
    """

    path: str
    bytes: int
    digest: str
    rows: int
    kind: str = ""
    reading: str = ""
    set_aside: int = 0
    in_table: int = 0
    commit: int = 0

    @property
    def key(self) -> tuple[int, str, str, str]:
        """What makes a file known."""
        return self.bytes, self.digest, self.kind, self.reading

    @property
    def taken(self) -> bool:
        """Whether any of its rows was."""
        return not self.rows or self.set_aside < self.rows


def known(lines: Iterable[tuple[str, LedgerRow]], kind: str, reading: str) -> set[tuple[int, str]]:
    """(bytes, digest) of files that need not be read as this kind under this reading."""
    return {row.key[:2] for _, row in lines if row.taken and row.key[2:] == (kind, reading)}


def entries(warehouse: Warehouse) -> list[tuple[str, LedgerRow]]:
    """(run, row) of every file in order of commit; tables of version 0.1 too."""
    table = warehouse.read_sources()
    names = [f.name for f in fields(LedgerRow) if f.name in table.column_names]
    with sound(f"{warehouse.name}, table sources"):
        found = [
            (row["run"], LedgerRow(**{n: row[n] for n in names if row[n] is not None}))
            for row in table.to_pylist()
        ]
    return sorted(found, key=lambda line: line[1].commit)


def as_arrow(rows: list[tuple[str, LedgerRow]]) -> pa.Table:
    """Rows of the sources table."""
    schema = schema_to_pyarrow(SOURCES, include_field_ids=False)
    values = [{**asdict(row), "run": run} for run, row in rows]
    return pa.Table.from_pylist(values, schema=schema)


def settle(table: Table) -> None:
    """Give a ledger of version 0.1 the columns that it lacks."""
    lacking = [f for f in SOURCES.fields if f.name not in table.schema().column_names]
    if lacking:
        with table.update_schema() as update:
            for field in lacking:
                update.add_column(field.name, field.field_type)
