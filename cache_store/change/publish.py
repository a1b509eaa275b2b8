"""Publication: from finished shards in staging to a live generation, in an order that a crash cannot spoil.

    1  every receipt is compared with the files, and law 8 is checked; users forgotten since the run began are left out
    2  manifest.json, then READY, are written in the staging folder, which is fsynced
    3  the folder is renamed to generations/NUMBER; both parents are fsynced
    4  the line's pointer is replaced; its folder is fsynced

Killed before 3: the run is repeated from its receipts. Killed between 3 and 4: the same run finds its generation
by run id and only does 4. Killed after 4: the same run finds itself live and does nothing.

What replaces a part of the live chain (a fold) takes the deltas that were published on that part meanwhile along:
before 4 each is entered once more over it, with the same files (links).
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache_store.change import forgotten
from cache_store.change.forget import without_forgotten
from cache_store.errors import (
    ChainTooDeep,
    Damaged,
    FingerprintMismatch,
    GenerationUnknown,
    Incomplete,
    PublishConflict,
    SchemaError,
    StoreError,
)
from cache_store.format import lines
from cache_store.format import manifest as manifests
from cache_store.format.checked import KIB, NotSound, json_object, read_bounded
from cache_store.format.layout import (
    DEAD_LETTERS,
    MAIN,
    Layout,
    digest_file,
    exclusive,
    fsync,
    storage_errors,
    write_file,
)
from cache_store.format.manifest import DELTA, FULL, Manifest
from cache_store.format.packed import PACKED_FROM, PackedShards
from cache_store.format.receipt import RECEIPT, FileFact, ShardReceipt
from cache_store.format.record import RecordSchema

MAX_DEPTH = 8
"""Deltas that may lie above a full generation, unless told otherwise; every one costs a miss a search."""

_BEGAN = "BEGAN"
_NUMBER = re.compile(rb"[0-9]{1,17}\n?")


def beginning(layout: Layout) -> int:
    """What BEGAN holds for a run that begins now, and has read nothing yet.

    Raises:
        Damaged: FORGOTTEN cannot be read.
    """
    return forgotten.read(layout).last


def stage(layout: Layout, run_id: str, began: int) -> Path:
    """Staging folder of a run; of a run that goes on, as it began first.

    Args:
        began: from :func:`beginning`.

    Raises:
        StorageFull, ReadOnlyStorage
    """
    path = layout.run(run_id)
    with storage_errors(f"staging run {run_id}"):
        path.mkdir(parents=True, exist_ok=True)
        if not (path / _BEGAN).exists():
            write_file(path / _BEGAN, f"{began}\n".encode())
    return path


@dataclass(frozen=True, kw_only=True)
class Publication:
    """What a run's shards become.

    Attributes:
        fingerprint: of the model that made them.
        watermark_ms: no summary has seen a later event.
        expected: users the run had to write: records + tombstones + dead letters (law 8).
        dead_letters: users that it could not.
        line: on which the generation goes live.
        kind: ``full``, or ``delta`` over ``parent``.
        parent: the generation that was live when the run began; refused if it no longer is. Needed for a delta.
        replaces: the newest generation of what this is the folded form of; it is live, or what is live lies on it.
        table_snapshot: of the history table that was read; opaque here.
        published_ms: None for now.
        max_depth: deltas that may lie over a full generation.
        force: go live even if another publisher was faster.
        expired_before_ms: users without an event from then on were left out, of it or of those below; None for nobody.
        hold: enter the generation and leave the line where it is; the same publication without ``hold`` takes it live.
    """

    fingerprint: str
    watermark_ms: int
    expected: int
    dead_letters: int = 0
    line: str = MAIN
    kind: str = FULL
    parent: str | None = None
    replaces: str | None = None
    table_snapshot: int | str | None = None
    published_ms: int | None = None
    max_depth: int = MAX_DEPTH
    expired_before_ms: int | None = None
    force: bool = False
    hold: bool = False


def publish(
    layout: Layout, staging: Path, receipts: Sequence[ShardReceipt | Mapping[str, Any]], wanted: Publication
) -> Manifest:
    """Make the shards of one run the live generation of a line; its manifest. See ``Store.publish``."""
    run_id, line = staging.name, wanted.line
    if staging.resolve() != layout.run(run_id).resolve():
        raise StoreError(
            f"staging: expected a folder that Store.stage gave, {layout.run(run_id)}, found {staging}"
        )
    with exclusive(layout, f"publishing run {run_id}"), storage_errors(f"publishing run {run_id}"):
        done = find_run(layout, run_id)
        if done is None:
            letters = staging / DEAD_LETTERS
            there = letters.is_file()
            extra = {DEAD_LETTERS: FileFact(letters.stat().st_size, digest_file(letters))} if there else {}
            shards = _checked_receipts(layout, staging, receipts, wanted.fingerprint)
            _law_8(run_id, shards, wanted)
            depth = _place(layout, shards[0], wanted)
            done = Manifest(
                generation=next_number(layout),
                run_id=run_id,
                line=line,
                kind=wanted.kind,
                parent=wanted.parent if wanted.kind == DELTA else None,
                depth=depth,
                fingerprint=wanted.fingerprint,
                schema=RecordSchema.from_dict(shards[0].schema),
                num_shards=len(shards),
                table_snapshot=wanted.table_snapshot,
                watermark_ms=int(wanted.watermark_ms),
                published_ms=int(wanted.published_ms or 0),
                expected=int(wanted.expected),
                dead_letters=int(wanted.dead_letters),
                shards=PackedShards.of(shards) if len(shards) >= PACKED_FROM else shards,
                extra_files=extra,
                expired_before_ms=wanted.expired_before_ms,
            )
            done = _without_forgotten(layout, staging, done)
            enter(layout, staging, done)
        pointer = lines.read_pointer(layout, line)
        known = (pointer.live, *pointer.earlier, *pointer.taken_back) if pointer else ()
        if wanted.replaces and pointer:  # it may be live under the deltas that it took along
            known += tuple(below.generation for below in manifests.chain(layout, pointer.live))
        if done.generation not in known and not wanted.hold:
            above = _refuse_other_winner(layout, wanted)
            live = _laid_on(layout, done, above).generation
            lines.write_pointer(layout, line, pointer.then(live) if pointer else lines.Pointer(live))
    return done


def enter(layout: Layout, staging: Path, manifest: Manifest) -> None:
    """Steps 2 and 3: seal a staging folder and rename it among the generations. The lock is held."""
    keep = {*manifest.files, "manifest.json", "READY"}
    (staging / "READY").unlink(missing_ok=True)
    for path in staging.iterdir():
        if path.name not in keep and not of_the_run(path):
            path.unlink()
    text = manifest.text()
    write_file(staging / "manifest.json", text.encode())
    write_file(staging / "READY", manifests.seal(text))
    layout.generations.mkdir(exist_ok=True)
    os.rename(staging, layout.generation(manifest.generation))
    fsync(layout.generations)
    fsync(staging.parent)
    for path in filter(of_the_run, layout.generation(manifest.generation).iterdir()):
        path.unlink()  # only now: until the rename a repeated run needs them


def of_the_run(path: Path) -> bool:
    """What a run needs until its generation has its name; one that is stopped right then leaves it, to no harm."""
    return path.name == _BEGAN or path.name.endswith(RECEIPT)


def next_number(layout: Layout) -> str:
    """A generation number that was never given away. The lock is held."""
    last = max([0, *(int(n) for n in layout.generation_names())])
    try:
        text = read_bounded(layout.sequence, KIB)
        if not _NUMBER.fullmatch(text):
            raise NotSound(f"expected a number of at most 17 digits, found {text[:40]!r}")
        last = max(last, int(text))
    except FileNotFoundError:
        pass
    except NotSound as error:
        raise Damaged(f"{layout.sequence}: {error}; write the last number given away into it") from error
    write_file(layout.sequence, f"{last + 1}\n".encode())
    return f"{last + 1:08d}"


def find_run(layout: Layout, run_id: str) -> Manifest | None:
    """Manifest of the generation that a run has already entered, or None."""
    for name in reversed(layout.generation_names()):
        folder = layout.generation(name)
        try:
            text = read_bounded(folder / "manifest.json", manifests.MOST_TEXT)
            if json_object(text).get("run_id") == run_id:
                return manifests.read(folder)
        except (OSError, NotSound):
            continue
    return None


def _checked_receipts(
    layout: Layout, staging: Path, receipts: Sequence[ShardReceipt | Mapping[str, Any]], fingerprint: str
) -> tuple[ShardReceipt, ...]:
    shards = sorted(
        (r if isinstance(r, ShardReceipt) else ShardReceipt.from_dict(r) for r in receipts),
        key=lambda r: r.shard,
    )
    store = layout.read_format()
    if [s.shard for s in shards] != list(range(store.num_shards)):
        missing = sorted(set(range(store.num_shards)) - {s.shard for s in shards})
        raise Incomplete(
            f"run {staging.name}: expected one receipt for each of {store.num_shards} shards, found {len(shards)}, "
            f"without {missing[:8]}; run the job again, it builds what is missing"
        )
    for s in shards:
        if s.num_shards != store.num_shards or s.schema != shards[0].schema:
            raise SchemaError(f"run {staging.name}: shard {s.shard} has another schema or number of shards")
        if s.fingerprint != fingerprint:
            raise FingerprintMismatch(
                f"run {staging.name}: shard {s.shard} was made by model {s.fingerprint}, the run states {fingerprint}"
            )
        for name, fact in s.files.items():
            path = staging / name
            if not path.is_file() or path.stat().st_size != fact.bytes:
                raise Incomplete(
                    f"{path}: expected {fact.bytes} bytes; run the job again, it builds what is missing"
                )
    if shards[0].schema["user_kind"] != store.user_kind:
        raise SchemaError(f"run {staging.name}: expected {store.user_kind} ids, as the store holds")
    return tuple(shards)


def _law_8(run_id: str, shards: Sequence[ShardReceipt], wanted: Publication) -> None:
    written = sum(s.records + s.tombstones for s in shards)
    lost = wanted.expected - written - wanted.dead_letters
    if lost:
        raise Incomplete(
            f"run {run_id}: expected {wanted.expected} users, wrote {written}, dead-lettered {wanted.dead_letters}; "
            f"{lost} are unaccounted for, nothing was published; run the job again"
        )


def _place(layout: Layout, shard: ShardReceipt, wanted: Publication) -> int:
    """Depth of the new generation; refuses what cannot lie on its parent."""
    kind, parent = wanted.kind, wanted.parent
    if kind not in (FULL, DELTA):
        raise StoreError(f"kind: expected 'full' or 'delta', found {kind!r}")
    _refuse_other_winner(layout, wanted)
    if kind == FULL:
        return 0
    if parent is None:
        raise StoreError("a delta generation needs its parent; publish kind='full' instead")
    if parent not in layout.generation_names():
        raise GenerationUnknown(f"{layout.root}: no generation {parent}; publish kind='full' instead")
    below = manifests.read(layout.generation(parent))
    if below.fingerprint != wanted.fingerprint:
        raise FingerprintMismatch(
            f"a delta of model {wanted.fingerprint} cannot lie on generation {parent} of model {below.fingerprint}; "
            f"run `vista summarize` for a full generation"
        )
    if below.schema.as_dict() != shard.schema:
        raise SchemaError(f"a delta must have the schema of its parent {parent}; run `vista summarize`")
    if below.depth + 1 > wanted.max_depth:
        raise ChainTooDeep(
            f"{layout.root}: generation {parent} already lies on {below.depth} others (bound {wanted.max_depth}); "
            f"run `vista compact`, then refresh again"
        )
    return below.depth + 1


def _refuse_other_winner(layout: Layout, wanted: Publication) -> list[Manifest]:
    """Deltas that lie on what a fold replaces, newest first; PublishConflict where something else is live."""
    pointer = lines.read_pointer(layout, wanted.line)
    now = pointer.live if pointer else None
    before = wanted.replaces or wanted.parent
    if before in (None, now) or wanted.force:
        return []
    above: list[Manifest] = []
    if wanted.replaces and now:
        for manifest in manifests.chain(layout, now):
            if manifest.generation == wanted.replaces:
                return above
            above.append(manifest)
    raise PublishConflict(
        f"{layout.root}: line {wanted.line!r} is at generation {now}, this run was made on {before}; "
        f"another publisher was faster: run `vista refresh` again on what is live"
    )


def _laid_on(layout: Layout, below: Manifest, above: Sequence[Manifest]) -> Manifest:
    """Enter deltas once more, over another generation than the one they were published on; the newest. The lock is
    held. Their files are links: nothing of a published file is ever changed."""
    for delta in reversed(above):
        staging = layout.run(f"{delta.generation}-over-{below.generation}")
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        for name in delta.files:
            source = layout.generation(delta.generation) / name
            try:
                os.link(source, staging / name)
            except OSError:  # the filesystem has no links, or no more of this file
                shutil.copyfile(source, staging / name)
                fsync(staging / name)
        below = dataclasses.replace(
            delta, generation=next_number(layout), run_id=staging.name, parent=below.generation,
            depth=below.depth + 1,
        )  # fmt: skip
        enter(layout, staging, below)
    return below


def _without_forgotten(layout: Layout, staging: Path, manifest: Manifest) -> Manifest:
    """The run without users who were forgotten while it was under way. The lock is held."""
    try:
        began = int(read_bounded(staging / _BEGAN, KIB))
    except (FileNotFoundError, ValueError):  # not from ``stage``: it may have begun at any time
        began = 0
    return without_forgotten(staging, manifest, forgotten.read(layout).since(began))[0]
