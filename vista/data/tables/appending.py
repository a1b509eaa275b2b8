"""Histories held in memory into the tables, as one commit; ``beam_jobs.ingest`` is for logs."""

from __future__ import annotations

import numpy as np

from vista.data.events import Events
from vista.data.tables.commits import Addition, commit, recover
from vista.data.tables.items import ItemTally
from vista.data.tables.merge import joined
from vista.data.tables.remembering import forgotten_users
from vista.data.tables.rows import HISTORY, Rows, SortedWriter
from vista.data.tables.warehouse import Warehouse


def append(
    warehouse: Warehouse,
    users: np.ndarray,
    events: Events,
    buckets: np.ndarray,
    run: str = "append",
    actions: tuple[str, ...] | None = None,
) -> int | None:
    """Write histories and commit them; for small data and tests.

    Args:
        users: int64 [U] or object [U] of str, distinct, any order.
        events: U histories, any order; duplicates within the call are dropped, those of earlier calls are not. What
            is dated up to the moment at which its user was forgotten is left out.
        buckets: int [U], ``cache_store.format.keys.bucket_of(users, num_buckets)``.

    Returns:
        The history snapshot after it.

    Raises:
        as :func:`vista.data.tables.commits.commit`.
    """
    recover(warehouse)
    number, basis = warehouse.commit_number + 1, warehouse.basis()
    forgotten = forgotten_users(warehouse)
    written, tally = [], ItemTally()
    for bucket in np.unique(buckets):
        mine = np.flatnonzero(np.asarray(buckets) == bucket)
        mine = mine[np.argsort(users[mine])]
        mine = mine[events.lengths[mine] > 0]
        if not len(mine):
            continue
        chosen = events.select(mine).sorted()
        rows, _ = joined([Rows(users[mine], chosen.lengths, chosen.columns)], HISTORY)
        rows, _ = forgotten.leave_out(rows)
        if not len(rows):
            continue
        uri = warehouse.data_uri(HISTORY, number, run, int(bucket))
        with SortedWriter(uri, HISTORY, warehouse.user_kind, int(bucket)) as writer:
            writer.write(rows)
        written.append(uri)
        tally.add(rows.columns["item"], rows.columns["surface"])
    items = [tally.table().write(warehouse.item_uri(number, run, 0))] if tally.rows else []
    return commit(warehouse, Addition(run, written, items=items, actions=actions, basis=basis))
