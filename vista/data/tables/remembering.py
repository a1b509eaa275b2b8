"""The table of who was forgotten (``forgotten``): read by every commit, written by ``forgetting`` before all else."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from vista.data.tables.forgotten import NEVER, ForgottenUsers, hashed
from vista.data.tables.manifests import PREFIX
from vista.data.tables.schemas import TABLE_PROPERTIES
from vista.data.tables.warehouse import Warehouse

NAME = "forgotten"
ARROW_SCHEMA = pa.schema([pa.field("user_hash", pa.string(), False), pa.field("time", pa.int64(), False)])


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
        ARROW_SCHEMA,
        properties={**TABLE_PROPERTIES, PREFIX + "salt": secrets.token_hex(16)},
    )
    warehouse.refresh()
    known = forgotten_users(warehouse)
    salt = known.salt or table.properties[PREFIX + "salt"]
    new = sorted(h for h in {hashed(u, salt) for u in users} if known.times.get(h, NEVER) < time_ms)
    if new:
        warehouse.table(NAME).append(pa.table([new, [time_ms] * len(new)], schema=ARROW_SCHEMA))
        warehouse.refresh()
