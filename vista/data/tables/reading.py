"""Histories and impressions of one bucket as a stream of batches; needs paths alone, no catalog.

Workers import this and not ``vista.data.tables.warehouse``: PyIceberg is a good part of a second of a process's start.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vista.data.events import Events, UserBatch
from vista.data.tables.merge import read_sorted
from vista.data.tables.rows import HISTORY, IMPRESSIONS, Kind, Rows, open_sorted, read_users, read_whole


@dataclass(frozen=True)
class DataFile:
    """One sorted file of one bucket; plain values, so it can be sent to a worker.

    Attributes:
        commit: number of the last commit that added rows of it; 0 where another engine wrote the file.
        first_commit: number of the first one; less than ``commit`` where files were merged (``compaction``).
        min_time, max_time: bounds in milliseconds, None where the table has none.
    """

    path: str
    bucket: int
    rows: int
    bytes: int
    min_time: int | None = None
    max_time: int | None = None
    commit: int = 0
    first_commit: int = 0


@dataclass(frozen=True)
class ImpressionBatch:
    """Consecutive users in key order with what they were shown, ordered by (time, request, position, item).

    Attributes:
        users: int64 [U], or object [U] of str.
        offsets: int64 [U + 1].
        time, request, item: int64 [N].
        position: int32 [N], 0 is the top.
        action: int32 [N], bit mask; 0 where not engaged.
        continues: the last user goes on as the first of the next batch.
    """

    users: np.ndarray
    offsets: np.ndarray
    time: np.ndarray
    request: np.ndarray
    item: np.ndarray
    position: np.ndarray
    action: np.ndarray
    continues: bool = False


def read_bucket(
    files: Sequence[DataFile | str], *, max_rows: int, users: np.ndarray | Sequence[str] | None = None
) -> Iterator[UserBatch]:
    """Histories of one bucket out of its sorted files: merged, duplicates dropped, in key order.

    Workers call this with paths alone; no catalog is needed. A table sorted by (user, time) by any engine will do.

    Args:
        files: of one bucket.
        max_rows: most events per batch; a user with more spans several. Memory is a small multiple of it
            (vista/data/tables/merge.py), whatever the size of the bucket or of a user.
        users: only these, any order; row groups without them are not read.

    Raises:
        DataError: a file that is missing, lacks a column, or is not sorted.
    """
    for rows, continues in _read(files, HISTORY, max_rows, users):
        yield UserBatch(rows.users, Events(rows.offsets, **rows.columns), continues)


def read_impressions(
    files: Sequence[DataFile | str], *, max_rows: int, users: np.ndarray | Sequence[str] | None = None
) -> Iterator[ImpressionBatch]:
    """As :func:`read_bucket`, for files of the impressions table (``bucket_files(kind=IMPRESSIONS)``)."""
    for rows, continues in _read(files, IMPRESSIONS, max_rows, users):
        yield ImpressionBatch(rows.users, rows.offsets, **rows.columns, continues=continues)


def count_users(
    files: Mapping[int, Sequence[DataFile]], max_rows: int, before_ms: int | None = None
) -> tuple[int, int, int]:
    """(distinct users, in how many buckets they were counted, how many of them have no event from ``before_ms`` on), by
    reading the columns of users and, where it is given, times alone.

    Buckets are taken in a fixed random order until ``max_rows`` rows were read, one at least. A bucket holds its users
    by hash, so where not all are counted the others have as many on average, however unequal the users are.

    Raises:
        DataError: a file that is missing.
    """
    buckets = [bucket for bucket, found in files.items() if found]
    users = rows = counted = silent = 0
    columns = ["user_id"] if before_ms is None else ["user_id", "time"]
    for at in np.random.default_rng(0).permutation(len(buckets)):
        if rows >= max_rows:
            break
        parts, heard = [], []
        for f in files[buckets[at]]:
            with open_sorted(f.path) as file:
                for batch in read_whole(f.path, file.iter_batches(1 << 20, columns=columns)):
                    here, rows_of = read_users(batch.column("user_id"))
                    parts.append(here)
                    if before_ms is not None:
                        late = batch.column("time").to_numpy() >= before_ms
                        heard.append(here[np.add.reduceat(late, np.cumsum(rows_of) - rows_of) > 0])
            rows += f.rows
        found = len(np.unique(np.concatenate(parts))) if parts else 0
        users += found
        if heard:
            silent += found - len(np.unique(np.concatenate(heard)))
        counted += 1
    return users, counted, silent


def _read(
    files: Sequence[DataFile | str], kind: Kind, max_rows: int, users: np.ndarray | Sequence[str] | None
) -> Iterator[tuple[Rows, bool]]:
    uris = [f.path if isinstance(f, DataFile) else f for f in files]
    wanted = None if users is None else sorted_users(users)
    return read_sorted(uris, kind, max_rows=max_rows, users=wanted)


def sorted_users(users: np.ndarray | Sequence[Any]) -> np.ndarray:
    """Distinct ids in key order: int64 [U], or object [U] of str."""
    array = np.asarray(users, dtype=None if isinstance(users, np.ndarray) else object)
    if array.dtype != object and array.dtype.kind in "US":
        array = array.astype(object)
    elif array.dtype == object and len(array) and not isinstance(array[0], str):
        array = array.astype(np.int64)
    return np.unique(array)
