"""``forget``: users out of everything that is kept: tables, generations, states, dead letters (law 11).

    history and impressions ──▶ stores (records, states, staging) ──▶ runs (dead letters, working files, records)

The tables come first, and there the note that these users are not to come back, so that no job that starts meanwhile
can bring them. An ingest that is under way when a user is forgotten is refused at its commit and builds again without
him; another job finds its files or its staged shards gone and fails; run again, it works on what is left. Doing it
twice does nothing more, so a run that was killed is begun again. Logs that ``ingest`` read are the caller's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from beam_jobs.errors import OptionsError
from beam_jobs.run import job as jobs
from beam_jobs.run.job import Job, Run, totals
from beam_jobs.run.leftovers import Cleaned, without_users
from beam_jobs.run.pieces import dealt
from beam_jobs.run.record import RunRecord
from cache_store import Store, as_users, bucket_of
from cache_store.change.forget import ForgetReport
from cache_store.format.layout import replacing
from vista.data.tables.forgetting import RowsForgotten, Spread, forget_users, in_turn
from vista.data.tables.warehouse import Warehouse


@dataclass(frozen=True)
class ForgetOptions:
    """Whom to forget, and where.

    Attributes:
        users: ids of the tables' kind.
        warehouse: folder of the tables or catalog properties; None leaves tables alone.
        stores: folders of cache stores; all lines and kept generations of each.
        runs: folders with run directories; their dead letters may name users.
        now_ms: rows of the tables' logs dated up to it do not come back; now by default.
        run_dir: folder of this run, where an engine does the work on files and shards; workers must see it, the tables
            and the stores.
    """

    users: Sequence[int | str]
    warehouse: str | Mapping[str, str] | None = None
    stores: Sequence[str] = ()
    runs: Sequence[str] = ()
    now_ms: int | None = None
    run_dir: str | None = None


@dataclass
class ForgetRecord:
    """What was removed.

    Attributes:
        tables: by table, rows and files.
        stores: by folder.
        letters: rows removed from dead letters, by file.
    """

    tables: dict[str, RowsForgotten] = field(default_factory=dict)
    stores: dict[str, ForgetReport] = field(default_factory=dict)
    letters: dict[str, int] = field(default_factory=dict)
    runs: dict[str, Cleaned] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return {
            "tables": {name: vars(done) for name, done in self.tables.items()},
            "stores": {name: vars(done) for name, done in self.stores.items()},
            "dead_letters": self.letters,
            "runs": {name: vars(done) for name, done in self.runs.items()},
        }


def run(options: ForgetOptions, args: Sequence[str] = ()) -> ForgetRecord:
    """Remove the users everywhere that the options name.

    Args:
        args: how files and shards are dealt out, as in every job; in this process where there are none.

    Raises:
        OptionsError: no user, or nothing to remove them from.
        VistaError, StoreError: something could not be rewritten; run it again once the cause is gone.
    """
    for name, listed in (("stores", options.stores), ("runs", options.runs)):
        if isinstance(listed, (str, Path)):
            raise OptionsError(
                f"forget, {name}: expected a list of folders, found one text; put it into a list"
            )
    users = np.unique(as_users(options.users))
    if not len(users) or not (options.warehouse or options.stores or options.runs):
        raise OptionsError("forget: expected users and a warehouse, a store or runs; see vista forget --help")
    record = ForgetRecord()
    if args:
        if options.run_dir is None:
            raise OptionsError("run_dir: expected a folder that the workers see, found none")
        identity, unharmed = {"users": len(users)}, "what was done stays done"

        def work(run: Run) -> RunRecord:
            _forget(options, users, record, dealt(run))
            receipts = run.directory.receipts()
            return run.finish(receipts, counts=totals(receipts))

        jobs.run(Job("forget", options.run_dir, identity, args, unharmed=unharmed), work)
    else:
        _forget(options, users, record, in_turn)
    names = pa.array([str(user) for user in users], pa.string())
    for folder in options.runs:
        record.runs[str(folder)] = without_users(folder, users.tolist())
        for file in sorted(Path(folder).rglob("*.parquet")):
            if (file.parent.name == "dead" or file.name == "dead-letters.parquet") and file.is_file():
                removed = _without(file, names)
                if removed:
                    record.letters[str(file)] = removed
    return record


def _forget(options: ForgetOptions, users: Any, record: ForgetRecord, spread: Spread) -> None:
    if options.warehouse:
        tables = Warehouse(options.warehouse).open()
        buckets = bucket_of(users, tables.num_buckets)
        record.tables = forget_users(tables, users, buckets, now_ms=options.now_ms, spread=spread)
    for path in options.stores:
        record.stores[str(path)] = Store(path).forget(users, spread)


def _without(path: Path, users: pa.Array) -> int:
    """Rewrite a file of dead letters without these users, in one step; rows removed."""
    table = pq.read_table(path)
    kept = table.filter(pc.invert(pc.is_in(table["user"], value_set=users)))
    removed = table.num_rows - kept.num_rows
    if removed:
        with replacing(path) as temporary:
            pq.write_table(kept, temporary)
    return removed
