"""Histories of a few users out of the tables, for looking and for serving by hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from vista.data.events import Events, UserBatch
    from vista.data.tables.warehouse import Warehouse

MAX_ROWS = 262_144


def newest(
    warehouse: Warehouse, users: Sequence[int | str] | np.ndarray, limit: int, until: int | None = None
) -> Events:
    """The newest ``limit`` events of each user, U histories in the order asked; empty where unknown.

    With ``until`` (ms), of those that are not after it.
    Reads only the buckets of these users, and of those only the row groups that hold them.
    """
    from cache_store.format.keys import as_users
    from vista.data.events import Events

    asked = as_users(users, warehouse.user_kind)
    tails: dict[object, Events] = {}
    for batch in _batches(warehouse, asked):
        for u, user in enumerate(batch.users.tolist()):
            part = batch.events.user(u)
            if until is not None:
                part = part.rows(0, int(np.searchsorted(part.time, until, side="right")))
            if user in tails:
                part = Events.append(tails[user], part)
            tails[user] = part.rows(max(len(part) - limit, 0), len(part))
    return Events.concat(tails.get(user, Events.empty(1)) for user in asked.tolist())


def count(warehouse: Warehouse, users: Sequence[int | str] | np.ndarray) -> int:
    """Events of the users, all together."""
    from cache_store.format.keys import as_users

    return sum(len(batch.events) for batch in _batches(warehouse, as_users(users, warehouse.user_kind)))


def _batches(warehouse: Warehouse, asked: np.ndarray) -> Iterator[UserBatch]:
    """Their histories, bucket by bucket; a long one in several pieces."""
    import numpy as np

    from cache_store.format.keys import bucket_of
    from vista.data.tables.reading import read_bucket

    files = warehouse.bucket_files()
    buckets = bucket_of(asked, warehouse.num_buckets)
    for bucket in np.unique(buckets).tolist():
        yield from read_bucket(files.get(bucket, []), max_rows=MAX_ROWS, users=asked[buckets == bucket])
