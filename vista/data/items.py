"""The items table: one row per (item, surface) and commit, added up on reading.

    item_id long | name string or null | surface int | events long

Names are there where the logs name items by strings, or where an item file gave them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.schema import Schema
from pyiceberg.types import IntegerType, LongType, NestedField, StringType

from vista.data import paths

ARROW_SCHEMA = pa.schema(
    [
        pa.field("item_id", pa.int64(), False),
        pa.field("name", pa.string(), True),
        pa.field("surface", pa.int32(), False),
        pa.field("events", pa.int64(), False),
    ]
)


def item_schema() -> Schema:
    """Iceberg schema of the items table."""
    return Schema(
        NestedField(1, "item_id", LongType(), required=True),
        NestedField(2, "name", StringType(), required=False),
        NestedField(3, "surface", IntegerType(), required=True),
        NestedField(4, "events", LongType(), required=True),
    )


@dataclass(frozen=True)
class ItemTable:
    """Items in ascending order of id.

    Attributes:
        item: int64 [I], distinct.
        name: object [I] of str or None.
        surface: int32 [I], where most of its events happened; the lowest of equals.
        events: int64 [I].
        rows: the (item, surface, events) arrays that they were added up from.
    """

    item: np.ndarray
    name: np.ndarray
    surface: np.ndarray
    events: np.ndarray
    rows: tuple[np.ndarray, np.ndarray, np.ndarray]

    def __len__(self) -> int:
        return len(self.item)

    @staticmethod
    def empty() -> ItemTable:
        return ItemTable.of(np.zeros(0, np.int64), np.zeros(0, np.int32), np.zeros(0, np.int64))

    @staticmethod
    def count(item: np.ndarray, surface: np.ndarray) -> ItemTable:
        """From one (item, surface) per event."""
        return ItemTable.of(item, surface, np.ones(len(item), np.int64))

    @staticmethod
    def of(
        item: np.ndarray,
        surface: np.ndarray,
        events: np.ndarray,
        named: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> ItemTable:
        """Add up rows (item, surface, events), any order, repeats allowed.

        Args:
            named: (item int64 [M], name object [M]); the first name of an item wins. Named items without
                events are kept, with none on surface 0.
        """
        if named is not None and len(named[0]):
            without = np.setdiff1d(named[0], item)
            item = np.concatenate([item, without])
            surface = np.concatenate([surface, np.zeros(len(without), np.int32)])
            events = np.concatenate([events, np.zeros(len(without), np.int64)])
        items, inverse = np.unique(item, return_inverse=True)
        if len(item):
            width = int(surface.max()) + 1
            pair, where = np.unique(inverse.astype(np.int64) * width + surface, return_inverse=True)
            total = np.bincount(where, weights=events, minlength=len(pair)).astype(np.int64)
            row_item, row_surface = pair // width, (pair % width).astype(np.int32)
        else:
            row_item, row_surface, total = np.zeros(0, np.int64), np.zeros(0, np.int32), np.zeros(0, np.int64)
        best = np.lexsort((row_surface, -total, row_item))
        first = best[np.searchsorted(row_item[best], np.arange(len(items)))]
        names = np.full(len(items), None, object)
        if named is not None and len(named[0]):
            known, at = np.unique(named[0], return_index=True)
            place = np.searchsorted(items, known)
            inside = place < len(items)
            inside[inside] = items[place[inside]] == known[inside]
            names[place[inside]] = named[1][at[inside]]
        sums = np.bincount(row_item, weights=total, minlength=len(items)).astype(np.int64)
        rows = (items[row_item], row_surface, total)
        return ItemTable(items, names, row_surface[first], sums, rows)

    @staticmethod
    def read(uris: Sequence[str]) -> ItemTable:
        """Add up the files of the table."""
        tables = []
        for uri in uris:
            with paths.open_input(uri) as file:
                tables.append(pq.read_table(file).select(ARROW_SCHEMA.names).cast(ARROW_SCHEMA))
        table = pa.concat_tables(tables) if tables else ARROW_SCHEMA.empty_table()
        named = table.filter(table["name"].is_valid())
        return ItemTable.of(
            table["item_id"].to_numpy(),
            table["surface"].to_numpy(),
            table["events"].to_numpy(),
            (named["item_id"].to_numpy(), np.array(named["name"].to_pylist(), dtype=object)),
        )

    def to_arrow(self) -> pa.Table:
        """Rows of the table: one per (item, surface), the name on each."""
        item, surface, events = self.rows
        names = self.name[np.searchsorted(self.item, item)]
        arrays = [pa.array(item), pa.array(names, pa.string()), pa.array(surface), pa.array(events)]
        return pa.table(arrays, schema=ARROW_SCHEMA)

    def write(self, uri: str) -> str:
        """Write as one file of the table; returns ``uri``."""
        with paths.open_output(uri) as file:
            pq.write_table(self.to_arrow(), file, compression="zstd", store_schema=False)
        return uri
