"""From bucket tasks to one published generation: what summarize and refresh have in common.

    tasks without a trusted receipt ──engine──▶ receipts ──complete?──▶ publish ──▶ run.json

Publication is the last step and happens once: a run that was killed after it finds its own generation and
only finishes its record.
"""

from __future__ import annotations

import dataclasses
import functools
import shutil
from collections.abc import Sequence
from pathlib import Path

from beam_jobs.errors import IncompleteRun
from beam_jobs.generation.bucket_task import BucketTask, Settings, do_bucket
from beam_jobs.run.job import Receipts, Run, totals
from beam_jobs.run.record import RunRecord
from cache_store import DEAD_LETTERS, Publication, Store


def to_generation(
    run: Run, store: Store, tasks: Sequence[BucketTask], settings: Settings, target: Publication
) -> RunRecord:
    """Do the tasks, check law 8, publish, and finish the record.

    Args:
        target: ``watermark_ms`` of the parent (the generation's is this or its latest event), and nothing expected yet.

    Raises:
        BucketFailed, IncompleteRun, StoreError: nothing was published.
    """
    staging = Path(settings.staging)
    if store.published(run.record.run_id) is None:
        store.stage(run.record.run_id)
        receipts = run.do(settings.job, tasks, functools.partial(do_bucket, settings=settings))
        check_complete(run, receipts)
        letters = run.directory.gather_dead_letters()
        shutil.copyfile(run.directory.path / DEAD_LETTERS, staging / DEAD_LETTERS)
    else:  # killed after publication: what is left is to say so
        receipts = run.directory.receipts()
        letters = run.directory.gather_dead_letters()
    counts = {"buckets": len(receipts), **totals(receipts), "dead_letters": letters}
    if target.parent is not None and not counts["users"]:
        shutil.rmtree(staging, ignore_errors=True)
        return nothing_to_do(run, target.parent, receipts, counts)
    shards = [receipt["shard"] for receipt in receipts.values()]
    watermark_ms = max([target.watermark_ms, *(r["watermark_ms"] for r in receipts.values())])
    wanted = dataclasses.replace(
        target, watermark_ms=watermark_ms, expected=counts["users"], dead_letters=letters
    )
    manifest = store.publish(staging, shards, wanted)
    return run.finish(
        receipts, generation=manifest.generation, counts=counts, digests={"content": manifest.digest}
    )


def nothing_to_do(run: Run, parent: str, receipts: Receipts, counts: dict[str, int]) -> RunRecord:
    """The finished record of a refresh that found nothing new; ``parent`` stays live."""
    note = f"nothing to do: nothing is new since generation {parent}, which stays live"
    return run.finish(receipts, generation=parent, notes=[*run.record.notes, note], counts=counts)


def check_complete(run: Run, receipts: Receipts) -> None:
    """Law 8, per bucket: users read = written + dead-lettered, records in the shard = written.

    Raises:
        IncompleteRun: with the buckets where it does not hold.
    """
    wrong = []
    for name, receipt in receipts.items():
        counts = receipt["counts"]
        if counts["users"] != counts["written"] + counts["dead_letters"]:
            wrong.append(
                f"{name}: {counts['users']} users, {counts['written']} written, "
                f"{counts['dead_letters']} dead-lettered"
            )
        elif counts["records"] != counts["written"]:
            wrong.append(f"{name}: {counts['written']} written, {counts['records']} in the shard")
    if wrong:
        raise IncompleteRun(
            f"{run.directory.path}: expected users = written + dead-lettered in every bucket, found "
            f"{'; '.join(wrong[:5])}; {run.job.unharmed}. Keep the run directory and report this"
        )
