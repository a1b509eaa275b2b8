"""The table of who was forgotten (``forgotten``): read by every commit, written by ``forgetting`` before all else."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from pyiceberg.io.pyarrow import schema_to_pyarrow

from vista.data.tables.forgotten import NEVER, ForgottenUsers, hashed
from vista.data.tables.manifests import PREFIX
from vista.data.tables.schemas import FORGOTTEN, TABLE_PROPERTIES
from vista.data.tables.warehouse import Warehouse

NAME = "forgotten"


def forgotten_users(warehouse: Warehouse) -> ForgottenUsers:
    """All that were forgotten in these tables."""
    if not warehouse.has_table(NAME):
        return ForgottenUsers()
    table = warehouse.table(NAME)
    times: dict[str, int] = {}
    for batch in warehouse.read_rows(NAME).to_batches():
        for user, time in zip(*(c.to_pylist() for c in batch.columns), strict=True):
            times[user] = max(time, times.get(user, NEVER))
    return ForgottenUsers(table.properties[PREFIX + "salt"], times)


def remember(warehouse: Warehouse, users: Sequence[Any] | np.ndarray, time_ms: int) -> None:
    """Note users as forgotten at a time; those that are noted for it, or later, are left. Hold ``commits.alone``."""
    table = warehouse.catalog.create_table_if_not_exists(
        (warehouse.namespace, NAME),
        FORGOTTEN,
        properties={**TABLE_PROPERTIES, PREFIX + "salt": secrets.token_hex(16)},
    )
    warehouse.refresh()
    known = forgotten_users(warehouse)
    salt = known.salt or table.properties[PREFIX + "salt"]
    new = sorted(h for h in {hashed(u, salt) for u in users} if known.times.get(h, NEVER) < time_ms)
    if new:
        schema = schema_to_pyarrow(FORGOTTEN, include_field_ids=False)
        warehouse.table(NAME).append(
            pa.table([pa.array(new), pa.array([time_ms] * len(new), pa.int64())], schema=schema)
        )
        warehouse.refresh()
