"""The content table: what items are about. A row per item and ingest; the newest word on each field holds.

    item_id long | category string or null | text string or null | vector list of float or null

All vectors of a warehouse have one width, a property of history (``vector-width``). The table is made by the first
item file that has something to put in.
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from vista.data.arrow import lists, read_tables

ARROW_SCHEMA = pa.schema(
    [
        pa.field("item_id", pa.int64(), False),
        pa.field("category", pa.string()),
        pa.field("text", pa.string()),
        pa.field("vector", pa.list_(pa.field("element", pa.float32()))),
    ]
)
FIELDS = ("category", "text", "vector")
WIDTH = "vector-width"
"""Property of history: floats of a vector."""


@dataclass(frozen=True)
class ItemContent:
    """Items in ascending order of id, those of which something is told.

    Attributes:
        item: int64 [I], distinct.
        category, text: object [I] of str or None.
        vector: float32 [V, W], of the items ``vector_of``.
        vector_of: int64 [V], ascending places in ``item``.
    """

    item: np.ndarray
    category: np.ndarray
    text: np.ndarray
    vector: np.ndarray
    vector_of: np.ndarray

    def __len__(self) -> int:
        return len(self.item)

    @property
    def width(self) -> int:
        """W, floats of a vector; 0 where no item has one."""
        return self.vector.shape[1]

    @property
    def has_text(self) -> bool:
        """Whether an item has words: a text or a category."""
        return any(v is not None for column in (self.category, self.text) for v in column)

    @staticmethod
    def of(table: pa.Table) -> ItemContent:
        """From rows of :data:`ARROW_SCHEMA`, later ones having their say over earlier ones.

        All vectors must have one width; whoever wrote them has seen to it.
        """
        ids = table["item_id"].to_numpy()
        item = np.unique(ids)
        columns = {}
        for name in ("category", "text"):
            column = np.full(len(item), None, object)
            rows = _newest(ids, table[name].is_valid().to_numpy())
            found = table[name].take(pa.array(rows)).to_pylist()
            column[np.searchsorted(item, ids[rows])] = np.array(found, object)
            columns[name] = column
        rows = _newest(ids, table["vector"].is_valid().to_numpy())
        picked = table["vector"].take(pa.array(rows)).combine_chunks()
        flat = picked.flatten().to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
        width = len(flat) // len(rows) if len(rows) else 0
        place = np.searchsorted(item, ids[rows])
        return ItemContent(item, columns["category"], columns["text"], flat.reshape(len(rows), width), place)

    @staticmethod
    def read(uris: Sequence[str]) -> ItemContent:
        """From the files of the table, in order of their commits."""
        return ItemContent.of(rows_of(uris))


def rows_of(uris: Sequence[str]) -> pa.Table:
    """Rows of files of the table, in order of their commits."""
    return read_tables(sorted(uris, key=posixpath.basename), ARROW_SCHEMA)


def _newest(ids: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """int64, by ascending id: the last valid row of each."""
    rows = np.flatnonzero(valid)[::-1]
    return rows[np.unique(ids[rows], return_index=True)[1]]


def merged(table: pa.Table) -> pa.Table:
    """Rows of one ingest with one row per item: of each field the last that is there."""
    found = ItemContent.of(table)
    lengths = np.zeros(len(found), np.int64)
    lengths[found.vector_of] = found.width
    columns = {"item_id": pa.array(found.item), "category": pa.array(found.category, pa.string())}
    columns["text"] = pa.array(found.text, pa.string())
    columns["vector"] = lists(lengths, found.vector.ravel(), lengths == 0)
    return pa.table(columns).cast(ARROW_SCHEMA)
