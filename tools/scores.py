"""Batch scoring: users of a file in, their ranked items as one Parquet file out, written in one step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools.outputs import replacing

if TYPE_CHECKING:
    from vista.serving.recommender import Recommendations

BATCH = 256
"""Users scored at a time."""


def users_of(file: Path | None) -> list[str]:
    """Users of a Parquet file's column ``user_id``, or of a text file's lines, as words.

    Raises:
        DataError: neither.
    """
    if file is None:
        return []
    from vista.errors import DataError

    if file.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            column = pq.read_table(file, columns=["user_id"], partitioning=None)["user_id"]
        except (OSError, KeyError, IndexError, pa.ArrowInvalid) as error:
            raise DataError(f"{file}: expected Parquet with a column user_id, found {error}") from error
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        if not (pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise DataError(f"{file}: expected a column user_id of whole numbers or texts, found {kind}")
        if column.null_count:
            raise DataError(f"{file}: expected a user in every row, found {column.null_count} nulls")
        return [str(user) for user in column.to_pylist()]
    try:  # universal newlines, and nothing else ends a line
        return [line for line in file.read_text(encoding="utf-8-sig").split("\n") if line]
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: expected a user on each line, found {error}") from error


def write(
    out: Path,
    users: Sequence[Any],
    answer: Callable[[Sequence[Any]], Recommendations],
    names: Callable[[Any], list[str | None]],
) -> dict[str, Any]:
    """Score users in batches and write ``user_id, status, rank, item_id, name, score, p(ACTION)...``; what was done.

    Raises:
        typer.BadParameter: ``out`` is there and holds something else.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from cache_store import Status

    rows, counted, writer = 0, Counter(dict.fromkeys((s.name for s in Status), 0)), None
    with replacing(out, "--out", _ours) as file:
        for at in range(0, len(users), BATCH):
            part = list(users[at : at + BATCH])
            found = answer(part)
            sizes = np.diff(found.offsets)
            owner = np.repeat(np.arange(len(part)), sizes)
            status = [Status(int(s)).name for s in found.status]
            counted.update(status)
            columns: dict[str, Any] = {
                "user_id": [part[u] for u in owner],
                "status": [status[u] for u in owner],
                "rank": np.arange(len(owner)) - found.offsets[owner] + 1,
                "item_id": found.item,
                "name": pa.array(names(found.item), pa.string()),
                "score": found.score,
            }
            columns |= {f"p({a})": found.probability[:, n] for n, a in enumerate(found.actions)}
            table = pa.table(columns)
            writer = writer or pq.ParquetWriter(file.name, table.schema, compression="zstd")
            writer.write_table(table.cast(writer.schema))
            rows += len(owner)
        if writer is not None:
            writer.close()
    return {"users": len(users), "rows": rows, **{k.lower(): n for k, n in counted.items()}}


def _ours(path: Path) -> bool:
    """Whether a file is one of :func:`write`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_schema(path).names[:4] == ["user_id", "status", "rank", "item_id"]
    except (OSError, pa.ArrowInvalid):
        return False
