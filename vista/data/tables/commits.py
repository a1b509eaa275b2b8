"""One commit over several tables, whole or not at all.

``sources``, ``items``, ``content`` and ``impressions`` go first, ``history`` last. History carries the number of the
last whole commit; a table that is ahead of it was left by a crash and is rolled back by :func:`recover`, which every
writer calls first. So what readers of history see is whole at any moment, and a rerun starts from there.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pyiceberg.exceptions import CommitFailedException
from pyiceberg.io.pyarrow import parquet_files_to_data_files
from pyiceberg.table import Table, Transaction

from vista.data import paths
from vista.data.tables import ledger
from vista.data.tables.ledger import LedgerRow
from vista.data.tables.manifests import PREFIX, TableChanged, entries, sound, summary_of
from vista.data.tables.schemas import check_vocabulary
from vista.data.tables.warehouse import Warehouse
from vista.errors import DataError


@dataclass(frozen=True)
class Addition:
    """What one commit adds: files already written, and vocabularies as they are after it.

    Attributes:
        run: name of the run, kept in the snapshots' summaries.
        history, impressions, items, content: URIs of files in the tables' data folders.
        sources: rows of the ledger.
        basis: ``Warehouse.basis`` of the tables that it was built for; None takes those of now.
    """

    run: str
    history: Sequence[str] = ()
    impressions: Sequence[str] = ()
    items: Sequence[str] = ()
    content: Sequence[str] = ()
    sources: Sequence[LedgerRow] = ()
    actions: tuple[str, ...] | None = None
    surfaces: tuple[str, ...] | None = None
    properties: Mapping[str, str] = field(default_factory=dict)
    basis: str | None = None


@contextlib.contextmanager
def alone(warehouse: Warehouse) -> Iterator[None]:
    """Keep other processes from committing and recovering meanwhile, where the warehouse is a local folder.

    In another catalog two writers at once end in :class:`TableChanged` for one of them, but a third that starts
    between their commits may take a commit under way for a crash: schedule one ingest at a time there.
    """
    if warehouse.path is None:
        yield
        return
    folder = Path(paths.local_path(warehouse.path))
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "write.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def recover(warehouse: Warehouse) -> list[str]:
    """Roll back tables that an interrupted commit left ahead of history; names of those.

    The files of the interrupted commit stay as orphans until ``forget`` or ``sweep`` deletes them.
    """
    with alone(warehouse):
        warehouse.refresh()
        with sound(warehouse.name):
            return _rolled_back(warehouse)


def _rolled_back(warehouse: Warehouse) -> list[str]:
    whole = warehouse.commit_number
    undone = []
    for name in ("sources", "items", "content", "impressions"):
        if not warehouse.has_table(name):
            continue
        table = warehouse.table(name)
        current = table.current_snapshot()
        target = current
        while target is not None and int(summary_of(target).get(PREFIX + "commit", 0)) > whole:
            before = target.parent_snapshot_id
            target = None if before is None else table.snapshot_by_id(before)
        if target is current:
            continue
        undone.append(name)
        if target is not None:
            table.manage_snapshots().rollback_to_snapshot(target.snapshot_id).commit()
        else:
            # The first commit: Iceberg cannot go back to "no snapshot", so take its files out.
            with table.transaction() as tx, tx.update_snapshot().overwrite() as update:
                for entry in entries(table, current.snapshot_id):
                    update.delete_data_file(entry.data_file)
    if undone:
        warehouse.refresh()
    return undone


def commit(warehouse: Warehouse, addition: Addition) -> int | None:
    """Make an addition visible: one snapshot per table that gains files, history last.

    Returns:
        The history snapshot after it.

    Raises:
        TableChanged: another writer committed, or users were forgotten, since the addition was built.
        DataError: vocabularies that do not extend the present ones, or a file that does not fit the table.
    """
    with alone(warehouse):
        if addition.basis is not None and warehouse.refresh().basis() != addition.basis:
            raise TableChanged(
                f"{warehouse.name}: another commit, or vista forget, came in between; nothing was added. Run the "
                f"same vista ingest with the same --run-dir again"
            )
        vocabularies = _vocabularies(warehouse, addition)
        try:
            with sound(warehouse.name):
                _add_all(warehouse, addition, vocabularies)
        except CommitFailedException as error:
            raise TableChanged(
                f"{warehouse.name}: another writer committed at the same time; nothing was added. Run vista ingest "
                f"again"
            ) from error
        return warehouse.refresh().snapshot()


def _vocabularies(warehouse: Warehouse, addition: Addition) -> dict[str, tuple[str, ...]]:
    """By name, as they are after an addition."""
    before = {"actions": warehouse.actions, "surfaces": warehouse.surfaces}
    given = {"actions": addition.actions, "surfaces": addition.surfaces}
    after = {name: before[name] if new is None else tuple(new) for name, new in given.items()}
    check_vocabulary(**after)
    for name, old in before.items():
        if after[name][: len(old)] != old:
            raise DataError(
                f"{warehouse.name}: {name} only grow at the end; expected a continuation of {list(old)}, found "
                f"{list(after[name])}; repeat vista ingest without naming them"
            )
    return after


def _add_all(warehouse: Warehouse, addition: Addition, vocabularies: Mapping[str, Sequence[str]]) -> None:
    """History last."""
    number = warehouse.commit_number + 1
    summary = {PREFIX + "commit": str(number), PREFIX + "run": addition.run}
    if addition.sources:
        ledger.settle(warehouse.sources)
        lines = [(addition.run, replace(row, commit=number)) for row in addition.sources]
        with warehouse.sources.transaction() as tx:
            tx.append(ledger.as_arrow(lines), snapshot_properties=summary)
    for name in ("items", "content", "impressions"):
        if files := getattr(addition, name):
            add_files(warehouse.table(name), files, summary)
    with warehouse.history.transaction() as tx:
        facts = {name: json.dumps(list(names)) for name, names in vocabularies.items()}
        facts |= addition.properties
        tx.set_properties({**summary, **{PREFIX + key: value for key, value in facts.items()}})
        if addition.history:
            _add(tx, addition.history, summary)


def add_files(table: Table, files: Sequence[str], summary: dict[str, str]) -> None:
    """Files (URIs, already written) into a table, in one snapshot."""
    with table.transaction() as tx:
        _add(tx, files, summary)


def replace_files(
    table: Table,
    removed: Collection[str],
    added: Sequence[str],
    summary: dict[str, str],
    properties: Mapping[str, str] | None = None,
) -> None:
    """One snapshot in which the files ``added`` (URIs, already written) stand for ``removed``: same rows, or fewer;
    ``properties`` of the table change with it.

    Raises:
        TableChanged: another writer committed in between; nothing was replaced.
    """
    current = table.current_snapshot()
    if (current is None or not removed) and not properties:
        return
    try:
        with sound(".".join(table.name())), table.transaction() as tx:
            if properties:
                tx.set_properties(dict(properties))
            if current is None or not removed:
                return
            new_files = list(parquet_files_to_data_files(table.io, tx.table_metadata, iter(added)))
            with tx.update_snapshot(snapshot_properties=summary).overwrite() as update:
                for entry in entries(table, current.snapshot_id):
                    if entry.data_file.file_path in removed:
                        update.delete_data_file(entry.data_file)
                for data_file in new_files:
                    update.append_data_file(data_file)
    except CommitFailedException as error:
        raise TableChanged(
            f"{'.'.join(table.name())}: another writer committed at the same time; nothing was replaced. Run the same "
            f"command again (vista status shows what is there)"
        ) from error
    table.refresh()


def _add(tx: Transaction, files: Sequence[str], summary: dict[str, str]) -> None:
    tx.add_files(list(files), snapshot_properties=summary, check_duplicate_files=False)
