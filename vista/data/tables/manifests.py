"""Which sorted files a snapshot of a table has, and which commit brought the rows of each."""

from __future__ import annotations

import contextlib
import json
import posixpath
import re
import threading
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
from pyiceberg.avro import file as avro_file
from pyiceberg.avro.decoder import StreamingBinaryDecoder
from pyiceberg.conversions import from_bytes
from pyiceberg.exceptions import ResolveError, ValidationError
from pyiceberg.io import FileIO
from pyiceberg.manifest import DataFileContent, ManifestFile
from pyiceberg.table import Table
from pyiceberg.types import LongType

from vista.data.tables.reading import DataFile
from vista.errors import DataError, VistaError

# The compiled decoder reads past the end of damaged bytes, which ends the process; this one takes twice its time, 75
# microseconds a file of the table.
avro_file.new_decoder = StreamingBinaryDecoder


class TableDamaged(DataError):
    """Metadata of a table cannot be read as what it should be."""


class TableChanged(DataError):
    """Another writer committed in between; nothing of this commit is visible."""

    exit_code = 4


PREFIX = "vista."
"""Of our keys in table properties and snapshot summaries."""

UNDONE = "undone"
"""Property of history: run to the first commit whose rows were taken back, and the commit that did (``undoing``)."""


def summary_of(snapshot: Any) -> dict[str, str]:
    """Our and other engines' free entries of a snapshot's summary."""
    return {} if snapshot.summary is None else dict(snapshot.summary.additional_properties)


KEPT_MANIFESTS, KEPT_ENTRIES = 512, 64
"""So many manifests, with so many files at most, stay in memory: nobody changes a manifest."""
_kept: dict[tuple[str, int], list[Any]] = {}
_kept_lock = threading.Lock()


@contextlib.contextmanager
def sound(name: str) -> Iterator[None]:
    """Turn what PyIceberg and PyArrow say of files that are gone or damaged into a typed error.

    Raises:
        TableChanged: a file is gone. TableDamaged: it holds something else.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise TableChanged(
            f"{name}: a file of it is gone ({error}): vista forget or vista prune ran meanwhile. Run the same command "
            f"again; where it stays so, restore the folder from a copy"
        ) from error
    except _UNSOUND as error:
        if isinstance(error, VistaError) or getattr(error, "errno", None) is not None:
            raise  # typed already, or the system's, of a file that may be sound
        raise TableDamaged(
            f"{name}: expected a table as it was written, found {type(error).__name__}: {str(error)[:200]}; restore "
            f"the folder from a copy, or ingest the logs into another (vista ingest --home)"
        ) from error


_UNSOUND = (
    OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError, OverflowError, RecursionError,
    MemoryError, NotImplementedError, pa.ArrowException, ResolveError, ValidationError, zlib.error,
)  # fmt: skip


def entries(table: Table, snapshot_id: int) -> Iterator[Any]:
    snapshot = table.snapshot_by_id(snapshot_id)
    if snapshot is None:
        raise DataError(
            f"{'.'.join(table.name())}: expected snapshot {snapshot_id}, found none (expired?); "
            f"start from a full run of vista summarize"
        )
    with sound(".".join(table.name())):
        found = [
            entry for manifest in snapshot.manifests(table.io) for entry in _entries_of(table.io, manifest)
        ]
    yield from found


def _entries_of(io: FileIO, manifest: ManifestFile) -> Iterable[Any]:
    """Whoever commits a small batch every second would read those of all batches before at each, so they are kept."""
    named = (manifest.added_files_count or 0) + (manifest.existing_files_count or 0)
    if not 0 < named <= KEPT_ENTRIES:
        return manifest.fetch_manifest_entry(io, discard_deleted=True)
    key = manifest.manifest_path, manifest.sequence_number
    with _kept_lock:
        found = _kept.pop(key, None) or manifest.fetch_manifest_entry(io, discard_deleted=True)
        _kept[key] = found  # used last
        if len(_kept) > KEPT_MANIFESTS:
            del _kept[next(iter(_kept))]
    return found


def files_of(table: Table, snapshot_id: int | None = None) -> list[DataFile]:
    """Of the current snapshot by default: none where there is none."""
    if snapshot_id is None:
        current = table.current_snapshot()
        if current is None:
            return []
        snapshot_id = current.snapshot_id
    name = ".".join(table.name())
    schema, spec = table.schema(), table.spec()
    partitioned = [f.name for f in spec.fields]
    by_bucket = "bucket" in schema.column_names
    place = partitioned.index("bucket") if "bucket" in partitioned else None
    if by_bucket and place is None:
        raise DataError(
            f"{name}: expected a partition by bucket (identity), found {partitioned}; bring its rows in with vista "
            f"ingest"
        )
    time_id = schema.find_field("time").field_id if "time" in schema.column_names else -1
    files = []
    for entry in entries(table, snapshot_id):
        f = entry.data_file
        if f.content != DataFileContent.DATA:
            raise DataError(
                f"{name}: expected data files alone, found the delete file {f.file_path}; compact the table with the "
                f"engine that wrote it, then run vista status again"
            )
        first, last = _commits_in_name(f.file_path)
        low, high = (f.lower_bounds or {}).get(time_id), (f.upper_bounds or {}).get(time_id)
        files.append(
            DataFile(
                path=f.file_path,
                bucket=0 if place is None else int(f.partition[place]),
                rows=int(f.record_count),
                bytes=int(f.file_size_in_bytes),
                min_time=None if low is None else from_bytes(LongType(), low),
                max_time=None if high is None else from_bytes(LongType(), high),
                commit=last,
                first_commit=first,
            )
        )
    return files


MERGED = "-from-"
"""In the name of a merged file, before the number of its first commit."""
_NAME = re.compile(rf"(\d{{8}})-.*?(?:-\d{{5}}{MERGED}(\d{{8}}))?(?:-without-[0-9a-f]+)?\.parquet")


def _commits_in_name(path: str) -> tuple[int, int]:
    """(first, last) commit of the rows of a file, by its name; zeros where it is not ours."""
    name = _NAME.fullmatch(posixpath.basename(path))
    return (0, 0) if name is None else (int(name[2] or name[1]), int(name[1]))


def commit_of(table: Table, snapshot_id: int) -> tuple[int, bool]:
    """(number of the last commit in a snapshot, 0 where another engine made it; whether the snapshot is still there).

    Raises:
        DataError: nothing is known of the snapshot.
    """
    snapshot = table.snapshot_by_id(snapshot_id)
    with sound(".".join(table.name())):
        if snapshot is not None:
            return int(summary_of(snapshot).get(PREFIX + "commit", 0)), True
        remembered = dict(json.loads(table.properties.get(PREFIX + "expired", "{}")))
        if str(snapshot_id) in remembered:
            return int(remembered[str(snapshot_id)]), False
    raise DataError(
        f"{'.'.join(table.name())}: expected snapshot {snapshot_id}, found none (expired?); "
        f"start from a full run of vista summarize"
    )
