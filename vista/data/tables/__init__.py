"""History, impressions and items as Iceberg tables, sorted files by bucket.

Read in this order: ``rows`` and ``sorting`` (a sorted file and its order), ``merge`` and ``reading`` (many files as
one stream; paths alone, no catalogue), ``schemas`` and ``manifests`` (what Iceberg keeps), ``warehouse`` (open,
facts, files) over ``folder``, ``items`` and their ``content``, ``ledger`` (which logs are in), ``forgotten`` and
``remembering`` (who may not come back). Then the verbs, functions of a warehouse: ``commits``, ``appending``,
``adopting``, ``undoing``, ``pruning``, ``forgetting``, ``compaction``, ``relocating``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from vista.errors import needs

if TYPE_CHECKING:
    from vista.data.tables.reading import DataFile, UserBatch, read_bucket, read_impressions
    from vista.data.tables.warehouse import Warehouse

needs("model", "pyarrow", "pyiceberg")

__all__ = ["DataFile", "UserBatch", "Warehouse", "read_bucket", "read_impressions"]


def __getattr__(name: str) -> object:
    # On demand: workers read files without importing PyIceberg.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(
        importlib.import_module(f"{__name__}.{'warehouse' if name == 'Warehouse' else 'reading'}"), name
    )
