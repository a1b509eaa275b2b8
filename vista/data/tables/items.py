"""The items table: one row per (item, surface) and commit, added up on reading.

    item_id long | name string or null | surface int | events long

Names are there where the logs name items by strings, or where an item file gave them: the newest file's, before what is
only the id again.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from vista.data.arrow import read_tables, write_table
from vista.data.paths import open_input
from vista.data.tables.rows import HISTORY, batches_of, member
from vista.jagged import lengths_between, owners_of, starts_of

ARROW_SCHEMA = pa.schema(
    [
        pa.field("item_id", pa.int64(), False),
        pa.field("name", pa.string(), True),
        pa.field("surface", pa.int32(), False),
        pa.field("events", pa.int64(), False),
    ]
)
FEW_SURFACES = 256


def added_up(
    item: np.ndarray, surface: np.ndarray, events: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Events per (item, surface): item int64, surface int32, events int64; each pair once, in no stated order.

    Args:
        item, surface: [N], any order.
        events: int64 [N]; one each by default.
    """
    seen = np.flatnonzero(np.bincount(surface)) if len(surface) and int(surface.max()) < 65_536 else None
    if seen is None or len(seen) > FEW_SURFACES:
        table = pa.table({"item": item, "surface": surface, "events": np.ones(len(item), np.int64)})
        if events is not None:
            table = table.set_column(2, "events", pa.array(events))
        total = table.group_by(["item", "surface"], use_threads=False).aggregate([("events", "sum")])
        return tuple(total[n].to_numpy() for n in ("item", "surface", "events_sum"))
    # Sorting values alone is several times faster than hashing or sorting with an index.
    parts = []
    for s in seen:
        mine = surface == s if len(seen) > 1 else slice(None)
        if events is None:
            ordered = np.sort(item[mine])
            starts = starts_of(ordered)
            total = lengths_between(starts, len(ordered))
        else:
            index = np.argsort(item[mine])
            ordered = item[mine][index]
            starts = starts_of(ordered)
            total = np.add.reduceat(events[mine][index], starts)
        parts.append((ordered[starts], np.full(len(starts), s, np.int32), total))
    return tuple(np.concatenate(c) for c in zip(*parts, strict=True))  # type: ignore[return-value]


@dataclass(frozen=True)
class ItemCounts:
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
    def count(item: np.ndarray, surface: np.ndarray) -> ItemCounts:
        """From one (item, surface) per event."""
        return ItemCounts.of(item, surface, np.ones(len(item), np.int64))

    @staticmethod
    def of(
        item: np.ndarray,
        surface: np.ndarray,
        events: np.ndarray,
        named: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> ItemCounts:
        """Add up rows (item, surface, events), any order, repeats allowed.

        Args:
            named: (item int64 [M], name object [M]); the first name of an item wins. Named items without
                events are kept, with none on surface 0.
        """
        row_item, row_surface, total = added_up(item, surface, events)
        if named is not None and len(named[0]):
            known, at = np.unique(named[0], return_index=True)
            named = (known, named[1][at])
            without = known[~member(known, np.sort(row_item))]
            row_item = np.concatenate([row_item, without])
            row_surface = np.concatenate([row_surface, np.zeros(len(without), np.int32)])
            total = np.concatenate([total, np.zeros(len(without), np.int64)])
        order = np.argsort(row_item)
        same = row_item[order[1:]] == row_item[order[:-1]]
        if same.any():
            order = np.lexsort((row_surface, row_item))
        row_item, row_surface, total = row_item[order], row_surface[order], total[order]
        starts = starts_of(row_item)
        items = row_item[starts]
        sums = np.add.reduceat(total, starts) if len(starts) else total
        # The surface with most events; rows ascend by surface, so the first of equals is the lowest.
        most = np.maximum.reduceat(total, starts) if len(starts) else total
        number = owners_of(lengths_between(starts, len(row_item)))
        best = np.flatnonzero(total == most[number])
        first = best[np.searchsorted(number[best], np.arange(len(items)))]
        names = np.full(len(items), None, object)
        if named is not None and len(named[0]):
            names[np.searchsorted(items, named[0])] = named[1]
        return ItemCounts(items, names, row_surface[first], sums, (row_item, row_surface, total))

    @staticmethod
    def read(uris: Sequence[str]) -> ItemCounts:
        """Add up the files of the table."""
        newest_first = sorted(uris, key=posixpath.basename, reverse=True)
        table = read_tables(newest_first, ARROW_SCHEMA)
        named = table.filter(table["name"].is_valid())
        return ItemCounts.of(
            table["item_id"].to_numpy(),
            table["surface"].to_numpy(),
            table["events"].to_numpy(),
            chosen(named["item_id"].to_numpy(), named["name"]),
        )

    def to_arrow(self) -> pa.Table:
        """Rows of the table: one per (item, surface), the name on each."""
        item, surface, events = self.rows
        names = self.name[np.searchsorted(self.item, item)]
        arrays = [pa.array(item), pa.array(names, pa.string()), pa.array(surface), pa.array(events)]
        return pa.table(arrays, schema=ARROW_SCHEMA)

    def write(self, uri: str) -> str:
        """Write as one file of the table; returns ``uri``."""
        return write_table(self.to_arrow(), uri)


def count_items(uris: Sequence[str]) -> int:
    """How many items the files of the table have, by their ids alone."""
    parts = []
    for uri in uris:
        with open_input(uri) as file:
            parts += pq.read_table(file, columns=["item_id"])["item_id"].chunks
    return int(pc.count_distinct(pa.chunked_array(parts, pa.int64())).as_py())


def chosen(item: np.ndarray, names: pa.Array | pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """(item int64 [M] distinct, name object [M]): of each item the first name that is not its id again, else the id.

    Args:
        item, names: [N], none null.
    """
    order = np.argsort(item, kind="stable")
    item, names = item[order], np.array(names.take(pa.array(order)).to_pylist(), dtype=object)
    starts = starts_of(item)
    first = starts.copy()
    ends = np.append(starts[1:], len(item))
    for i in np.flatnonzero(ends - starts > 1).tolist():
        if len(set(names[starts[i] : ends[i]])) > 1:
            rows = range(starts[i], ends[i])
            first[i] = next((r for r in rows if not _is_id(names[r], int(item[r]))), starts[i])
    return item[starts], names[first]


def _is_id(name: str, item: int) -> bool:
    return name == str(item) or xxhash.xxh64_intdigest(name.encode()) == item % 2**64


class ItemTally:
    """Events per (item, surface), added up now and then so that memory follows the items, not the events."""

    LIMIT = 4_000_000

    def __init__(self) -> None:
        self._parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self.rows = 0
        """Of the parts held: 0 where nothing was added."""

    @staticmethod
    def of(history: Iterable[str]) -> ItemTally:
        """Of the rows of some history files."""
        tally = ItemTally()
        for uri in history:
            for rows in batches_of(uri, HISTORY, 1 << 20, columns=("item", "surface")):
                tally.add(rows.columns["item"], rows.columns["surface"])
        return tally

    def add(self, item: np.ndarray, surface: np.ndarray) -> None:
        """Count one event per row, [N] each."""
        self._parts.append(added_up(item, surface))
        self.rows += len(self._parts[-1][0])
        if self.rows > self.LIMIT:
            self._parts = [self.total()]
            self.rows = len(self._parts[0][0])

    def total(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(item, surface, events), each pair once."""
        if len(self._parts) == 1:
            return self._parts[0]
        kinds = (np.int64, np.int32, np.int64)
        columns = zip(*self._parts, strict=True) if self._parts else ((), (), ())
        return added_up(*(np.concatenate([np.zeros(0, k), *c]) for k, c in zip(kinds, columns, strict=True)))

    def table(self) -> ItemCounts:
        """The same as an :class:`ItemCounts` without names."""
        return ItemCounts.of(*self.total())
