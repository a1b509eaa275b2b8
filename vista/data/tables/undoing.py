"""An ingest taken back: its files out of history, impressions and items, its lines out of the ledger, in one commit.

Rows that later ingests dropped because this one had brought them are not in their files: those ingests leave the
ledger too. Summaries are not changed: ``bucket_files(since=...)`` refuses to go on from before. See docs/data.md.
"""

from __future__ import annotations

import json
import posixpath
from dataclasses import dataclass

from vista.data.tables import ledger
from vista.data.tables.commits import add_files, alone, recover, replace_files
from vista.data.tables.items import ItemCounts, ItemTally
from vista.data.tables.manifests import PREFIX, UNDONE, files_of
from vista.data.tables.warehouse import Warehouse
from vista.errors import DataError

KINDS = ("items", "content", "impressions", "history")


@dataclass(frozen=True)
class Undone:
    """What :func:`undo` did.

    Attributes:
        rows: taken out of history and impressions.
        files: of the tables that went.
        logs: inputs of the run.
        again: inputs of later runs that must be ingested again, for they shared rows with it.
    """

    run: str
    rows: int
    files: int
    logs: tuple[str, ...]
    again: tuple[str, ...]


def undo(warehouse: Warehouse, run: str) -> Undone:
    """Take back what one run brought; doing it twice does nothing more.

    Args:
        run: as the ledger and ``vista ingest --json`` name it, or the name of its run directory.

    Raises:
        DataError: no such run, or ``vista compact`` has merged its rows with others'.
        TableChanged: another writer without the lock committed in between.
    """
    recover(warehouse)
    with alone(warehouse):
        lines = ledger.entries(warehouse.refresh())
        runs = list(dict.fromkeys(name for name, _ in lines))
        number, undone = warehouse.commit_number + 1, warehouse.undone
        # a run that shared rows with one taken back has left the ledger; its files still name it
        named = dict.fromkeys([*runs, *undone, *_runs_of_files(warehouse)])
        mine = [n for n in named if n == run or n.rsplit("-", 1)[0] == run]
        if len(mine) != 1:
            known = ", ".join(runs[-5:]) or "none"
            raise DataError(
                f"{warehouse.name}: expected one ingest called {run!r}, found {len(mine)}; the last of {len(runs)} are "
                f"{known}. `vista status` lists them"
            )
        name = mine[0]
        if name in undone:
            return Undone(name, 0, 0, (), ())
        commits = {line.commit for r, line in lines if r == name and line.commit}
        told = {line.commit for r, line in lines if r == name and line.commit and line.kind in ("items", "")}
        since = {kind: told if kind == "content" else commits for kind in KINDS}
        found = {kind: _files(warehouse, kind, name, since[kind]) for kind in KINDS}
        commits |= {int(posixpath.basename(uri).split("-", 1)[0]) for some in found.values() for uri in some}
        last = max(commits, default=number)
        sharing = {r for r, line in lines if line.commit > last and line.in_table}
        first = min(commits, default=number)
        summary = {PREFIX + "commit": str(number), PREFIX + "run": f"undo-{name}"}
        left = [(r, line) for r, line in lines if r != name and r not in sharing]
        if len(left) < len(lines):
            ledger.settle(warehouse.sources)
            with warehouse.sources.transaction() as tx:
                tx.overwrite(ledger.as_arrow(left), snapshot_properties=summary)
        if found["history"] and not found["items"]:  # added up with others: what it counted is taken off
            item, surface, events = ItemTally.of(found["history"]).total()
            less = ItemCounts.of(item, surface, -events).write(warehouse.item_uri(number, "undo", 0))
            add_files(warehouse.items, [less], summary)
        for kind in KINDS[:-1]:  # history last
            if found[kind]:
                replace_files(warehouse.table(kind), set(found[kind]), [], summary)
        facts = {"commit": str(number), UNDONE: json.dumps({**undone, name: [first, number]})}
        properties = {PREFIX + key: value for key, value in facts.items()}
        replace_files(warehouse.history, set(found["history"]), [], summary, properties)
        warehouse.refresh()
    rows = sum(found["history"].values()) + sum(found["impressions"].values())
    logs = tuple(line.path for r, line in lines if r == name)
    again = dict.fromkeys(line.path for r, line in lines if r in sharing)
    return Undone(name, rows, sum(map(len, found.values())), logs, tuple(again))


def _files(warehouse: Warehouse, kind: str, run: str, commits: set[int]) -> dict[str, int]:
    """Files of a run in one table with their rows.

    Raises:
        DataError: its rows were merged with others'.
    """
    if not warehouse.has_table(kind):
        return {}
    files = files_of(warehouse.table(kind))
    mine = {f.path: f.rows for f in files if f.first_commit == f.commit and run_of(f.path) == run}
    merged = [f for f in files if f.first_commit < f.commit]
    mixed = [f.path for f in merged if any(f.first_commit <= c <= f.commit for c in commits)]
    if mixed:
        raise DataError(
            f"{warehouse.name}: expected the rows of {run} in files of their own, found them merged with others' by "
            f"vista compact ({mixed[0]}); rebuild the tables with vista ingest, without its logs, in another --home"
        )
    return mine


def _runs_of_files(warehouse: Warehouse) -> list[str]:
    """Runs that have files of their own, in order."""
    files = [*files_of(warehouse.history), *files_of(warehouse.impressions)]
    found = sorted((f.commit, run_of(f.path)) for f in files if 0 < f.first_commit == f.commit)
    return list(dict.fromkeys(name for _, name in found))


def run_of(path: str) -> str:
    """The run in the name of a file of one commit: ``COMMIT-RUN-NUMBER[-without-HEX].parquet``."""
    stem = posixpath.basename(path).removesuffix(".parquet").split("-without-")[0]
    return stem.split("-", 1)[-1].rsplit("-", 1)[0]
