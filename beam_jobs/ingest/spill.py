"""Chunks on their way from the readers of logs to the buckets: one file per chunk, one record batch per bucket.

What goes from step to step is a :class:`Spilled`: the file's path, the number of the record batch, how many rows it
has. The rows lie under the run's directory, which all workers see, and are memory-mapped from there. So the shuffle of
a hundred million events moves a few thousand small values, whatever a runner can hold in memory or in one message.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from cache_store.format.layout import replacing


@dataclass(frozen=True)
class Spilled:
    """Rows of one part (bucket or item shard) in one chunk file.

    Attributes:
        path: the chunk file.
        index: record batch in it.
        rows: how many.
        tag: what the rows are.
    """

    tag: str
    path: str
    index: int
    rows: int


def write_chunk(
    path: Path, tag: str, part: np.ndarray, columns: Mapping[str, np.ndarray | pa.Array]
) -> dict[int, Spilled]:
    """Write rows grouped by ``part`` (int32 [N], 0 or more); the file appears whole under ``path``.

    Returns:
        One piece per part that has rows.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if not len(part):
        return {}
    largest = int(part.max())
    # numpy sorts 16-bit keys by radix: linear in the rows.
    order = np.argsort(part.astype(np.uint16) if largest < 65_536 else part, kind="stable")
    counts = np.bincount(part)
    take = pa.array(order)
    arrays = {}
    for name, column in columns.items():
        arrays[name] = pa.array(column[order]) if isinstance(column, np.ndarray) else column.take(take)
    batch = pa.record_batch(arrays)
    pieces: dict[int, Spilled] = {}
    start = 0
    with replacing(path) as temporary:
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
            for number in np.flatnonzero(counts).tolist():
                rows = int(counts[number])
                writer.write_batch(batch.slice(start, rows))
                pieces[number] = Spilled(tag, str(path), len(pieces), rows)
                start += rows
    return pieces


def read_pieces(pieces: Sequence[Spilled]) -> Iterator[pa.RecordBatch]:
    """The rows of each piece, memory-mapped."""
    for piece in pieces:
        with pa.memory_map(piece.path) as source:
            yield pa.ipc.open_file(source).get_batch(piece.index)


def groups_of(pieces: Iterable[Spilled], max_rows: int) -> list[list[Spilled]]:
    """Pieces in groups of at most ``max_rows`` rows (a piece that is larger stands alone), in order of path."""
    groups: list[list[Spilled]] = []
    rows = 0
    for piece in sorted(pieces, key=lambda p: (p.path, p.index)):
        if not groups or rows + piece.rows > max_rows:
            groups.append([])
            rows = 0
        groups[-1].append(piece)
        rows += piece.rows
    return groups
