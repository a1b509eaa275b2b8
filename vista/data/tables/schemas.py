"""Iceberg schemas, partitions and properties of the tables, and what a vocabulary may be."""

from __future__ import annotations

from collections.abc import Sequence

from pyiceberg.partitioning import PartitionField, PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.table.sorting import SortDirection, SortField, SortOrder
from pyiceberg.transforms import IdentityTransform
from pyiceberg.types import FloatType, IntegerType, ListType, LongType, NestedField, StringType

from vista.data.tables.rows import IMPRESSIONS, Kind
from vista.errors import DataError

MAX_ACTIONS = 31
TABLE_PROPERTIES = {
    "format-version": "2",
    "write.parquet.compression-codec": "zstd",
    "write.metadata.delete-after-commit.enabled": "true",
    "write.metadata.previous-versions-max": "16",
    "commit.manifest-merge.enabled": "true",
    "write.metadata.metrics.column.user_id": "none",
    # A conflict is ours to judge: what was built for other tables must not be committed to these (``commits``).
    "commit.retry.num-retries": "0",
}


SOURCES = Schema(
    NestedField(1, "path", StringType(), required=True),
    NestedField(2, "bytes", LongType(), required=True),
    NestedField(3, "digest", StringType(), required=True),
    NestedField(4, "rows", LongType(), required=True),
    NestedField(5, "run", StringType(), required=True),
    NestedField(6, "kind", StringType(), required=False),
    NestedField(7, "reading", StringType(), required=False),
    NestedField(8, "set_aside", LongType(), required=False),
    NestedField(9, "in_table", LongType(), required=False),
    NestedField(10, "commit", LongType(), required=False),
)
"""The ledger (``ledger``); what is not required is missing in tables of version 0.1."""

FORGOTTEN = Schema(
    NestedField(1, "user_hash", StringType(), required=True),
    NestedField(2, "time", LongType(), required=True),
)
"""Who was forgotten when (``forgotten``)."""

CONTENT = Schema(
    NestedField(1, "item_id", LongType(), required=True),
    NestedField(2, "category", StringType(), required=False),
    NestedField(3, "text", StringType(), required=False),
    NestedField(4, "vector", ListType(5, FloatType(), element_required=False), required=False),
)
"""What items are about (``content``)."""


def item_schema() -> Schema:
    """Of the items table."""
    return Schema(
        NestedField(1, "item_id", LongType(), required=True),
        NestedField(2, "name", StringType(), required=False),
        NestedField(3, "surface", IntegerType(), required=True),
        NestedField(4, "events", LongType(), required=True),
    )


def table_schema(kind: Kind, user_kind: str) -> Schema:
    user = LongType() if user_kind == "int64" else StringType()
    types = {"action": IntegerType(), "surface": IntegerType(), "position": IntegerType()}
    names = ["time", "request", "item", "action", "surface"]
    if kind is IMPRESSIONS:
        names = ["time", "request", "item", "position", "action"]
    columns = [("bucket", IntegerType()), ("user_id", user), *((n, types.get(n, LongType())) for n in names)]
    return Schema(*(NestedField(i + 1, n, t, required=True) for i, (n, t) in enumerate(columns)))


def bucket_spec(schema: Schema) -> PartitionSpec:
    if "bucket" not in schema.column_names:
        return PartitionSpec()
    return PartitionSpec(
        PartitionField(schema.find_field("bucket").field_id, 1000, IdentityTransform(), "bucket")
    )


def sort_order(kind: Kind, schema: Schema) -> SortOrder:
    """What the files promise, said in the table too, so that other engines write alike."""
    names = ("user_id", *kind.order)
    return SortOrder(
        *(SortField(schema.find_field(n).field_id, IdentityTransform(), SortDirection.ASC) for n in names)
    )


def check_vocabulary(actions: Sequence[str], surfaces: Sequence[str]) -> None:
    if len(actions) > MAX_ACTIONS:
        raise DataError(
            f"actions: expected at most {MAX_ACTIONS} (an event's actions are a 31-bit mask), found {len(actions)}: "
            f"{list(actions)}; map rare actions to one before vista ingest"
        )
    for name, values in (("actions", actions), ("surfaces", surfaces)):
        if len(set(values)) != len(values):
            raise DataError(f"{name}: expected distinct names, found {list(values)}; see vista ingest --help")
