"""``compact store``: the deltas of a line folded into one full generation, its shards dealt out to an engine.

What is built lies in the store's staging folder: a run that was killed finds there the shards that are whole. Where the
store is folded in one process, ``Store.compact`` does it without a run.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from beam_jobs.run import job as jobs
from beam_jobs.run.job import Job, Run, totals
from beam_jobs.run.pieces import dealt
from beam_jobs.run.record import RunRecord
from cache_store import Store

JOB = "compact"


@dataclass(frozen=True)
class FoldOptions:
    """What to fold.

    Attributes:
        store: folder of the store; workers must see it.
        line: of its generations.
        run_dir: folder of this run, likewise.
        progress: show a bar where standard error is a terminal.
    """

    store: str
    run_dir: str
    line: str = "main"
    progress: bool = True

    def identity(self) -> dict[str, Any]:
        """What decides the result; a run can be continued only with the same."""
        return {"store": self.store, "line": self.line}


def run(options: FoldOptions, args: Sequence[str] = ()) -> RunRecord:
    """Fold and publish; a line that is one generation already stays as it is.

    Returns:
        The record: ``counts`` has users, deltas folded (``deltas``) and bytes of what is live.

    Raises:
        StoreError, JobError: with the exit code in the class; the old chain is live.
    """
    job = Job(JOB, options.run_dir, options.identity(), args, progress=options.progress)
    return jobs.run(job, functools.partial(_work, options=options))


def _work(run: Run, options: FoldOptions) -> RunRecord:
    with Store.open(options.store, line=options.line) as store:
        before = store.manifest
        store.compact(spread=dealt(run))
        after = store.manifest
    receipts = run.directory.receipts()
    counts = {**totals(receipts), "users": after.records, "deltas": before.depth, "bytes": after.bytes}
    return run.finish(
        receipts, generation=after.generation, fingerprint=after.fingerprint, counts=counts,
        digests={"content": after.digest},
    )  # fmt: skip
