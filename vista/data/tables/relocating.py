"""A copied or moved folder of tables made to stand on its own: absolute paths in its metadata rewritten.

    data files stay ─▶ manifests ─▶ manifest lists (with the manifests' new sizes) ─▶ metadata.json ─▶ catalog.db

Every file is replaced by rename, ``catalog.db`` last, so what was interrupted is done again by the same call, and no
file is written that a hard link of another folder shares. Nothing outside the folder is opened, not even to read.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fastavro

from vista.data import paths
from vista.data.tables.commits import alone
from vista.data.tables.folder import folder_properties, metadata_locations
from vista.data.tables.warehouse import Warehouse
from vista.errors import DataError
from vista.small_text import replacing


@dataclass(frozen=True)
class Relocated:
    """What :func:`relocate` did.

    Attributes:
        old, new: what paths began with, before and after.
        files: of metadata that were rewritten; 0 where the folder was at home.
    """

    old: str
    new: str
    files: int


def relocate(folder: str | Path, dry_run: bool = False) -> Relocated:
    """Rewrite the metadata of the tables in a local folder, so that it names the files in that folder.

    Args:
        dry_run: only say from where to where.

    Raises:
        DataError: no tables there, files missing, or tables with files that were outside the folder.
    """
    root = Path(os.path.abspath(folder))
    locations = metadata_locations(root)
    if not locations:
        raise DataError(f"{root}: expected tables, found none; name the copied or moved home with --home")
    places = {name: _place(root, name, location) for name, location in locations.items()}
    olds = {location.removesuffix(f"/{places[name]}") for name, location in locations.items()}
    if len(olds) > 1:
        raise DataError(
            f"{root}: expected tables of one folder, found them below {', '.join(sorted(olds))}; copy the home again"
        )
    old, new = olds.pop(), folder_properties(str(root))["warehouse"]
    if dry_run:
        return Relocated(old, new, 0)
    with alone(Warehouse(root)):
        files = _rewrite(root, {root / place for place in places.values()}, old, new) if old != new else 0
    found = Warehouse(root).open()
    named = [f.path for some in found.bucket_files().values() for f in some]
    if lost := [path for path in named if not os.path.exists(paths.local_path(path))]:
        raise DataError(
            f"{root}: expected the files that its tables name, found {len(lost)} missing, such as {lost[0]}; copy the "
            f"home again, whole, and run vista relocate"
        )
    return Relocated(old, new, files)


def _place(root: Path, name: str, location: str) -> str:
    """Where the metadata file of a table lies below the folder."""
    parts = paths.local_path(location).strip("/").split("/")
    for i in range(1, len(parts)):
        place = "/".join(parts[i:])  # never absolute: what lies outside the folder is not looked at
        if (root / place).is_file():
            return place
    raise DataError(
        f"{root}: expected the metadata of {name} ({location}) somewhere below, found none; copy the home again, "
        f"whole, and run vista relocate"
    )


def _rewrite(root: Path, current: set[Path], old: str, new: str) -> int:
    def moved(value: str) -> str:
        return new + value[len(old) :] if value == old or value.startswith(f"{old}/") else value

    def deep(value: Any) -> Any:
        if isinstance(value, str):
            return moved(value)
        if isinstance(value, dict):
            return {k: deep(v) for k, v in value.items()}
        return [deep(v) for v in value] if isinstance(value, list) else value

    folders = {path.parent for path in current}
    avro = sorted(path for folder in folders for path in folder.glob("*.avro"))
    lists = [path for path in avro if path.name.startswith("snap-")]
    manifests = [path for path in avro if not path.name.startswith("snap-")]
    for path in manifests:
        for entry in _records(path):
            named = moved(entry["data_file"]["file_path"])
            if not named.startswith(f"{new}/"):
                raise DataError(
                    f"{root}: expected its tables' files below it, found {named}, which is another's; bring its "
                    f"rows in with vista ingest"
                )
    for path in manifests:
        _rewrite_avro(path, deep)
    sizes = {f"{new}/{path.relative_to(root)}": path.stat().st_size for path in manifests}

    def listed(record: dict[str, Any]) -> dict[str, Any]:
        record = deep(record)
        return {**record, "manifest_length": sizes.get(record["manifest_path"], record["manifest_length"])}

    for path in lists:
        _rewrite_avro(path, listed)
    texts = sorted(path for folder in folders for path in folder.glob("*.metadata.json"))
    for path in texts:
        values = json.loads(path.read_text())
        with replacing(path) as file:
            file.write(json.dumps(deep(values)).encode())
    _rewrite_catalog(root / "catalog.db", moved)
    return len(avro) + len(texts)


def _records(path: Path) -> list[Any]:
    with open(path, "rb") as file:
        return list(fastavro.reader(file))


def _rewrite_avro(path: Path, change: Callable[[Any], dict[str, Any]]) -> None:
    with open(path, "rb") as file:
        reader = fastavro.reader(file)
        records, metadata = list(reader), dict(reader.metadata)
    schema, codec = json.loads(metadata.pop("avro.schema")), metadata.pop("avro.codec", "null")
    with replacing(path) as file:
        fastavro.writer(file, schema, map(change, records), codec=codec, metadata=metadata)


def _rewrite_catalog(path: Path, moved: Callable[[str], str]) -> None:
    with (
        replacing(path) as file,
        contextlib.closing(sqlite3.connect(path)) as old,
        contextlib.closing(sqlite3.connect(file.name)) as db,
    ):
        old.backup(db)
        db.create_function("moved", 1, lambda value: None if value is None else moved(value))
        for column in ("metadata_location", "previous_metadata_location"):
            db.execute(f"update iceberg_tables set {column} = moved({column})")  # noqa: S608
        db.commit()
