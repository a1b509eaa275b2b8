"""A local folder with an SQLite catalog: its addresses, and whether it is still where its metadata says.

Iceberg metadata holds absolute paths. A folder that was copied would delete and rewrite the files of the original, one
that was moved finds nothing; both are recognised when the catalog is opened, before anything is read or written.
"""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote

from vista.data import paths
from vista.errors import DataError

if TYPE_CHECKING:
    from pyiceberg.table import Table


class WarehouseMoved(DataError):
    """The folder was copied or moved: its metadata names the files of another place."""


def folder_properties(root: str) -> dict[str, str]:
    """Properties of the SQLite catalog of an absolute local folder, whatever characters its name has.

    Raises:
        DataError: a name that is no Unicode text.
    """
    try:
        root.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{root!r}: expected a folder with a name in UTF-8; choose another --home") from error
    if not re.search(r"[?#%\x00-\x1f\x7f]", root):
        return {"uri": f"sqlite:///{root}/catalog.db", "warehouse": f"file://{root}"}
    # What would end a URL's path: SQLite takes it quoted (SQLAlchemy unquotes once), Iceberg as a path.
    return {"uri": f"sqlite:///file:{quote(quote(root))}/catalog.db?uri=true", "warehouse": root}


def metadata_locations(root: str | Path) -> dict[str, str]:
    """Name of each table (``namespace.table``) to where the catalog of a local folder says its metadata lies.

    Raises:
        DataError: ``catalog.db`` is no catalog.
    """
    database = Path(root, "catalog.db")
    if not database.exists():
        return {}
    if not database.is_file():
        raise DataError(
            f"{database}: expected an SQLite catalog, found no regular file; restore it from a copy, or choose another "
            f"--home"
        )
    try:
        # A writer that was killed leaves a journal, which only a connection that may write rolls back.
        mode = "rw" if Path(f"{database}-journal").exists() and os.access(database, os.W_OK) else "ro"
        with contextlib.closing(sqlite3.connect(f"file:{quote(str(database))}?mode={mode}", uri=True)) as db:
            known = db.execute("select name from sqlite_master where name = 'iceberg_tables'").fetchone()
            query = "select table_namespace || '.' || table_name, metadata_location from iceberg_tables"
            return dict(db.execute(query)) if known else {}
    except sqlite3.Error as error:
        raise DataError(
            f"{database}: expected an SQLite catalog, found {error}; restore it from a copy, or choose another --home"
        ) from error


def check_not_lost(root: Path, namespace: str) -> Literal[False]:
    """False for a folder without tables.

    Raises:
        DataError: history lies in it, and its catalog has been lost: new tables would hide it, and ``forget`` miss it.
    """
    if any(Path(root, namespace, "history", "data").rglob("*.parquet")):
        raise DataError(
            f"{root}/catalog.db: expected it to know the tables that lie below, found "
            f"{'none' if (root / 'catalog.db').exists() else 'no such file'}; restore it from a copy, or choose "
            f"another --home"
        )
    return False


def placed(table: Table) -> Table:
    """The table, unless it would write below whatever folder a process works in.

    Raises:
        ValueError: one of its places is no URI and no absolute path.
    """
    told = [table.properties.get(key) for key in ("write.data.path", "write.metadata.path")]
    for place in (table.location(), *filter(None, told)):
        if "://" not in place and not place.startswith("/"):
            raise ValueError(f"location {place!r}: expected an absolute path")
    return table


def check_at_home(root: str | Path) -> None:
    """Raises WarehouseMoved where the tables of a folder lie elsewhere: nothing outside the folder may be touched."""
    home = os.path.realpath(root)
    for name, location in metadata_locations(root).items():
        place = Path(paths.local_path(location))
        if paths.is_local(location):
            if Path(os.path.realpath(place)).is_relative_to(home):
                continue
            if len(place.parents) > 3 and place.parents[3].exists() and place.parents[3].samefile(home):
                continue
        raise WarehouseMoved(
            f"{root}: expected its tables below it, found {name} at {location}: the folder was copied or moved. "
            f"Nothing was touched there. Make this one stand on its own with `vista relocate --home HOME` (HOME is the "
            f"folder above), or use the old place"
        )
