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
from typing import Any

from beam_jobs.errors import ExitCode, IncompleteRun, InputFailed, OptionsError
from beam_jobs.generation import gate
from beam_jobs.generation.bucket_task import BucketTask, SummarySettings, do_bucket
from beam_jobs.generation.gate import Bounds
from beam_jobs.run.job import Receipts, Run, totals
from beam_jobs.run.record import RunRecord
from cache_store import DEAD_LETTERS, Manifest, Publication, Store
from cache_store.format import lines
from cache_store.format.shown import when
from cache_store.read.leases import Lease
from cache_store.read.options import wall_clock
from vista.data import paths
from vista.data.tables.manifests import TableChanged
from vista.data.tables.warehouse import Warehouse


def to_generation(
    run: Run,
    store: Store,
    tasks: Sequence[BucketTask],
    settings: SummarySettings,
    target: Publication,
    warehouse: Warehouse,
    limits: Bounds | None = None,
) -> RunRecord:
    """Do the tasks, check law 8, publish, and finish the record.

    Args:
        warehouse: whose files the tasks read.
        target: ``watermark_ms`` of the parent (the generation's is this or its latest event), and nothing expected yet.
        limits: of the gate; a generation outside is kept and does not go live, and the record has exit code 4.

    Raises:
        TableChanged: files of the run's snapshot were taken away meanwhile.
        BucketFailed, IncompleteRun, StoreError: nothing was published.
    """
    staging = Path(settings.staging)
    if store.published(run.record.run_id) is None:
        store.stage(run.record.run_id)
        try:
            receipts = run.do(settings.job, tasks, functools.partial(do_bucket, settings=settings))
        except InputFailed as error:
            check_files_stayed(warehouse, tasks, run.job.name, error)
            raise
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
    expected = counts["users"] - counts.get("expired", 0) + counts.get("tombstones", 0)
    wanted = dataclasses.replace(target, watermark_ms=watermark_ms, expected=expected, dead_letters=letters)
    facts: dict[str, Any] = {"counts": counts}
    if settings.expired_before_ms is not None:
        check_somebody_stays(target, counts)
        note = (
            f"left out {counts['expired']} users without events since {when(settings.expired_before_ms)}"
            f"{' (their records are tombstones now)' if counts['tombstones'] else ''}"
        )
        run.record = dataclasses.replace(run.record, notes=[*run.record.notes, note])
    if limits is not None:
        held = store.publish(staging, shards, dataclasses.replace(wanted, hold=True))
        facts |= {"generation": held.generation, "digests": {"content": held.digest}}
        checks = _judged(store, held, wanted, limits, Path(settings.bundle))
        kept = {**run.record.facts, "gate": [dataclasses.asdict(check) for check in checks]}
        refused = [str(check) for check in checks if not check.ok]
        if refused:
            return run.finish(
                receipts, **facts, facts=kept, notes=[*run.record.notes, _why(held, wanted.line, refused)],
                exit_code=int(ExitCode.NOT_PUBLISHED),
            )  # fmt: skip
        facts["facts"] = kept
    manifest = store.publish(staging, shards, wanted)
    facts |= {"generation": manifest.generation, "digests": {"content": manifest.digest}}
    return run.finish(receipts, **facts)


def check_files_stayed(
    warehouse: Warehouse, tasks: Sequence[BucketTask], job: str, error: InputFailed
) -> None:
    """Tell a file that another took out of the tables while the run read it from one that is damaged.

    Raises:
        TableChanged
    """
    now = {f.path for files in warehouse.refresh().bucket_files().values() for f in files}
    wanted = {f.path for task in tasks for f in (*task.files, *(task.added or ()))}
    gone = sorted(path for path in wanted - now if not paths.exists(path))
    if gone:
        raise TableChanged(
            f"{warehouse.name}: expected the {len(wanted)} files of this run's snapshot, found {len(gone)} taken out "
            f"of the tables meanwhile, as vista forget and vista prune do ({gone[0]}); nothing was published. Run "
            f"vista {job} again with another --run-dir, for the tables of now"
        ) from error


def _judged(
    store: Store, held: Manifest, wanted: Publication, limits: Bounds, bundle: Path
) -> list[gate.Check]:
    """The gate's checks, while no prune may take the generation; one that is refused gets a line of its own."""
    pointer = lines.read_pointer(store.layout, wanted.line)
    if pointer is not None and held.generation in (pointer.live, *pointer.earlier, *pointer.taken_back):
        return []  # killed after it went live
    lease = Lease(store.layout, wall_clock())
    try:
        lease.hold([held.generation], wall_clock())
        checks = gate.judge(
            store, held.generation, wanted.line, limits, bundle, wanted.expected, wanted.dead_letters
        )
        if not all(check.ok for check in checks):
            lines.promote(store.layout, wanted.line, wanted.line + gate.REFUSED, held.generation)
    finally:
        lease.drop()
    return checks


def _why(held: Manifest, line: str, refused: Sequence[str]) -> str:
    name = held.generation
    return (
        f"the gate refused generation {name}, and what was live stays live: {'; '.join(refused)}. It is kept on line "
        f"{line}{gate.REFUSED}: `vista diff` compares it, `vista promote {name} --line {line}` takes it live by hand"
    )


def nothing_to_do(run: Run, parent: str, receipts: Receipts, counts: dict[str, int]) -> RunRecord:
    """The finished record of a refresh that found nothing new; ``parent`` stays live."""
    note = f"nothing to do: nothing is new since generation {parent}, which stays live"
    return run.finish(receipts, generation=parent, notes=[*run.record.notes, note], counts=counts)


def check_somebody_stays(target: Publication, counts: dict[str, int]) -> None:
    """Raises OptionsError: a full generation in which everybody is expired would be an empty one."""
    if target.parent is None and counts["expired"] and not counts["written"]:
        raise OptionsError(
            f"--expire-after: all {counts['expired']} users would be left out; nothing was published. Take more days, "
            f"or bring newer events in (vista ingest; vista status tells the newest)"
        )


def check_complete(run: Run, receipts: Receipts) -> None:
    """Law 8, per bucket: users read = written + expired + dead-lettered, records in the shard = written.

    Raises:
        IncompleteRun: with the buckets where it does not hold.
    """
    wrong = []
    for name, receipt in receipts.items():
        counts = receipt["counts"]
        expired = counts.get("expired", 0)  # a receipt of 0.2.0 has none
        if counts["users"] != counts["written"] + expired + counts["dead_letters"]:
            wrong.append(
                f"{name}: {counts['users']} users, {counts['written']} written, {expired} expired, "
                f"{counts['dead_letters']} dead-lettered"
            )
        elif counts["records"] != counts["written"]:
            wrong.append(f"{name}: {counts['written']} written, {counts['records']} in the shard")
    if wrong:
        raise IncompleteRun(
            f"{run.directory.path}: expected users = written + expired + dead-lettered in every bucket, found "
            f"{'; '.join(wrong[:5])}; {run.job.unharmed}. Keep the run directory and report this"
        )
