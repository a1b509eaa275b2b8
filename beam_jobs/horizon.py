"""How far back the tables must stay as they are, because a kept generation was made from them."""

from __future__ import annotations

from collections.abc import Sequence

from cache_store import Store
from cache_store.format.layout import holds_store
from vista.data.tables.compaction import horizon
from vista.data.tables.warehouse import Warehouse


def horizon_of(warehouse: Warehouse, stores: Sequence[str]) -> int:
    """The last commit that every kept generation of the stores has seen; files up to it may be merged."""
    kept = [Store(path) for path in stores if holds_store(path)]
    return horizon(warehouse, [m.table_snapshot for store in kept for m in store.generations()])
