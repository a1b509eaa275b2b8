"""Iceberg schemas, partitions and properties of the tables, and what a vocabulary may be.

The tables of items, of content and of who was forgotten are made of the Arrow schema that stands beside their rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyiceberg.partitioning import PartitionField, PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.table.sorting import SortDirection, SortField, SortOrder
from pyiceberg.transforms import IdentityTransform
from pyiceberg.types import IntegerType, LongType, NestedField, StringType

from vista.data.tables.rows import Kind
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


def table_schema(kind: Kind, user_kind: str) -> Schema:
    types: dict[str, Any] = dict.fromkeys(("bucket", "action", "surface", "position"), IntegerType())
    types["user_id"] = LongType() if user_kind == "int64" else StringType()
    names = enumerate(("bucket", "user_id", *kind.columns), 1)
    return Schema(*(NestedField(i, n, types.get(n, LongType()), required=True) for i, n in names))


def bucket_spec(schema: Schema) -> PartitionSpec:
    bucket = schema.find_field("bucket").field_id
    return PartitionSpec(PartitionField(bucket, 1000, IdentityTransform(), "bucket"))


def layout_of(kind: Kind, user_kind: str) -> dict[str, Any]:
    """Schema, partitions and order of a table with buckets; the order is what its files promise, said in the table
    too, so that other engines write alike."""
    schema = table_schema(kind, user_kind)
    ids = [schema.find_field(name).field_id for name in ("user_id", *kind.order)]
    order = SortOrder(*(SortField(i, IdentityTransform(), SortDirection.ASC) for i in ids))
    return {"schema": schema, "partition_spec": bucket_spec(schema), "sort_order": order}


def check_vocabulary(actions: Sequence[str], surfaces: Sequence[str]) -> None:
    if len(actions) > MAX_ACTIONS:
        raise DataError(
            f"actions: expected at most {MAX_ACTIONS} (an event's actions are a 31-bit mask), found {len(actions)}: "
            f"{list(actions)}; map rare actions to one before vista ingest"
        )
    for name, values in (("actions", actions), ("surfaces", surfaces)):
        if len(set(values)) != len(values):
            raise DataError(f"{name}: expected distinct names, found {list(values)}; see vista ingest --help")
