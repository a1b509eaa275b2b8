"""Histories of a few users out of the tables, for looking and for serving by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from vista.data.events import Events
    from vista.data.tables.warehouse import Warehouse

MAX_ROWS = 262_144


def newest(warehouse: Warehouse, users: Sequence[int] | Sequence[str] | np.ndarray, limit: int) -> Events:
    """The newest ``limit`` events of each user, U histories in the order asked; empty where unknown.

    Reads only the buckets of these users, and of those only the row groups that hold them.
    """
    from cache_store.format.keys import as_users, bucket_of
    from vista.data.events import Events
    from vista.data.tables.reading import read_bucket

    asked = as_users(users, warehouse.user_kind)
    files = warehouse.bucket_files()
    tails: dict[object, Events] = {}
    buckets = bucket_of(asked, warehouse.num_buckets)
    for bucket in np.unique(buckets).tolist():
        for batch in read_bucket(files.get(bucket, []), max_rows=MAX_ROWS, users=asked[buckets == bucket]):
            for u, user in enumerate(batch.users.tolist()):
                part = batch.events.user(u)
                if user in tails:
                    part = Events.append(tails[user], part)
                tails[user] = part.rows(max(len(part) - limit, 0), len(part))
    return Events.concat(tails.get(user, Events.empty(1)) for user in asked.tolist())
