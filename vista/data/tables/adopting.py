"""Taking over a history table that another engine keeps: bucketed by our function, sorted by (user, time).

Its files are used where they are, as they are; the engine may go on adding to it. What is made beside it are the other
tables (impressions, items, the ledger) and the properties that ``vista ingest`` keeps in its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import numpy as np
from pyiceberg.types import LongType, StringType

from vista.data.tables.commits import Addition, commit
from vista.data.tables.items import ItemTally
from vista.data.tables.manifests import PREFIX
from vista.data.tables.rows import HISTORY, batches_of
from vista.data.tables.schemas import check_vocabulary
from vista.data.tables.warehouse import Warehouse
from vista.errors import DataError

COLUMNS = ("bucket", "user_id", *HISTORY.columns)


def adopt(
    warehouse: Warehouse,
    *,
    num_buckets: int,
    bucket_of: Callable[[np.ndarray, int], np.ndarray],
    actions: Sequence[str],
    surfaces: Sequence[str] = (),
) -> Warehouse:
    """Take over a history table that another engine keeps.

    Args:
        bucket_of: ``cache_store.format.keys.bucket_of``.

    Raises:
        DataError: columns, partition, buckets or order are not as docs/data.md says.
    """
    facts = _checked(warehouse, num_buckets, bucket_of, actions, surfaces)
    warehouse.create_others(facts["user-kind"])
    with warehouse.history.transaction() as tx:
        tx.set_properties({PREFIX + k: v for k, v in facts.items()})
    # training and retrieval take their items from the items table
    files = warehouse.refresh().open().bucket_files().values()
    tally = ItemTally.of(f.path for some in files for f in some)
    if tally.rows:
        uri = tally.table().write(warehouse.item_uri(1, "adopt", 0))
        commit(warehouse, Addition("adopt", items=[uri]))
    return warehouse


def _checked(
    warehouse: Warehouse,
    num_buckets: int,
    bucket_of: Callable[[np.ndarray, int], np.ndarray],
    actions: Sequence[str],
    surfaces: Sequence[str],
) -> dict[str, str]:
    """The properties of a table that can be taken over; the first users of every file are looked at."""
    columns = {f.name: f.field_type for f in warehouse.history.schema().fields}
    missing = [name for name in COLUMNS if name not in columns]
    user_kind = {LongType(): "int64", StringType(): "string"}.get(columns.get("user_id"))
    if missing or user_kind is None:
        raise DataError(
            f"{warehouse.name}: expected columns {', '.join(COLUMNS)} with user_id long or string, found "
            f"{ {n: str(t) for n, t in columns.items()} }; bring its rows in with vista ingest"
        )
    check_vocabulary(actions, surfaces)
    for bucket, files in warehouse.bucket_files().items():
        for f in files:
            first = next(batches_of(f.path, HISTORY, 4_096), None)
            if first is not None and (bucket_of(first.users, num_buckets) != bucket).any():
                raise DataError(
                    f"{f.path}: expected users of bucket {bucket} of {num_buckets} by XXH64, found others; "
                    f"bring its rows in with vista ingest"
                )
    return {
        "user-kind": user_kind,
        "buckets": str(num_buckets),
        "actions": json.dumps(list(actions)),
        "surfaces": json.dumps(list(surfaces)),
        "commit": "0",
    }
