"""Removing users from everything the store keeps: records, tombstones, states, dead letters, shards under construction.

Every generation that holds one of them is rewritten in place, shard by shard, under a new file name (revision), then
sealed anew and the old files are deleted. Generations are done oldest first, so that no older record comes back into
view in between. Readers move on at their next ``refresh``; until then they read what they have mapped.

    1  the affected shards are written as the next revision beside the present one
    2  READY states both manifests' digests; manifest.json is replaced; READY states the new one alone
    3  files that the manifest no longer names are deleted

A crash leaves a generation whole, before or after. Doing it again finishes the rest, remains included.

Last, and still under the lock, the users are noted down, hashed (``forgotten.py``): a generation that is pulled from an
older copy, or whose run was under way, is rewritten in the same way before it is entered. Not before: a delta that
leaves a user out must lie on generations that no longer have him.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cache_store.change import forgotten
from cache_store.change.forgotten import Forgotten
from cache_store.change.prune import foreign_files, remove, settle
from cache_store.errors import Damaged, KeyKind, ReadOnlyStorage, StorageFull, StoreError, needs
from cache_store.format import manifest as manifests
from cache_store.format.keys import Users, as_users, from_keys, hash_of, key_bytes, keys_of, second_hash_of
from cache_store.format.layout import (
    DEAD_LETTERS,
    Layout,
    digest_file,
    exclusive,
    fsync,
    replacing,
    storage_errors,
    write_file,
)
from cache_store.format.manifest import Manifest
from cache_store.format.receipt import FileFact, ShardReceipt
from cache_store.format.record import HEADER, HEADER_BYTES
from cache_store.read.generation import Generation, ShardFiles
from cache_store.write.writer import ShardWriter

assert HEADER.fields is not None  # it is structured
_SUMMARIZED = HEADER.fields["summarized_ms"][1] + np.arange(8)
"""Where in a record that time is."""


@dataclass
class ForgetReport:
    """What was rewritten.

    Attributes:
        generations: name to users removed from its records and tombstones.
        states: states removed.
        dead_letters: rows removed.
        staging: files of unfinished runs that were deleted; those jobs build them again.
    """

    generations: dict[str, int] = field(default_factory=dict)
    states: int = 0
    dead_letters: int = 0
    staging: list[str] = field(default_factory=list)


Spread = Callable[[str, Sequence[Any], Callable[[Any], Any]], Sequence[Any]]
"""Does a function with each of some plain values, here or on other machines, and hands the answers (JSON) back in
order; the first argument names the step."""


def in_turn(step: str, tasks: Sequence[Any], do: Callable[[Any], Any]) -> list[Any]:
    return [do(task) for task in tasks]


def forget(layout: Layout, users: Users, now_ms: int, spread: Spread = in_turn) -> ForgetReport:
    """Remove users from every generation of every line, and from staging. Doing it twice does nothing more.

    Args:
        now_ms: what was summarised of them until now shall not come back by a pull.
        spread: does the work on the shards.

    Raises:
        Damaged: a generation cannot be read, so it may still hold them; all others are done.
        KeyKind, StorageFull, ReadOnlyStorage
    """
    store = layout.read_format()
    ids = np.unique(as_users(users, store.user_kind))  # law 8 counts each user once
    report, unreadable = ForgetReport(), []
    with exclusive(layout, "forgetting"), storage_errors("forgetting users"):
        record = forgotten.read(layout)
        for path in layout.generations.glob(".*"):
            remove(path)
        for name in layout.generation_names():
            folder = layout.generation(name)
            try:
                _forget_in_generation(folder, ids, report, spread)
            except (StorageFull, ReadOnlyStorage):
                raise  # says nothing about the generation; the same command goes on from here
            except StoreError as error:
                unreadable.append(f"{name}: {error}")
        _forget_in_staging(layout, ids, store.num_shards, report)
        forgotten.write(layout, record.with_users(keys_of(ids), now_ms))
    if unreadable:
        raise Damaged(
            f"{layout.root}: these generations may still hold the users, all others are done; delete them with "
            f"`vista prune` and run `vista forget` again: {'; '.join(unreadable)}"
        )
    return report


def held(layout: Layout, users: Users) -> dict[str, int]:
    """Generation to how many of the users it holds, records, tombstones or states; changes nothing.

    Generations that cannot be read are left out.

    Raises:
        KeyKind
    """
    ids = np.unique(as_users(users, layout.read_format().user_kind))
    found = {}
    for name in layout.generation_names():
        try:
            manifest = manifests.read(layout.generation(name))
            generation = Generation(layout.generation(name), manifest, verify=False)
            shard = (hash_of(ids) % np.uint64(manifest.num_shards)).astype(np.int64)
            here = _present(generation.table, shard, ids) | _present(generation.states, shard, ids)
        except StoreError:
            continue
        if here.any():
            found[name] = int(here.sum())
    return found


def _forget_in_generation(folder: Path, ids: np.ndarray, report: ForgetReport, spread: Spread) -> None:
    manifest = manifests.read(folder)
    settle(folder)
    for path in foreign_files(folder):  # remains of an earlier attempt hold what is to be forgotten
        remove(path)
    generation = Generation(folder, manifest, verify=True)
    shard = (hash_of(ids) % np.uint64(manifest.num_shards)).astype(np.int64)
    if DEAD_LETTERS in manifest.extra_files:
        read_dead_letters(folder)  # told before anything is written
    in_records = _present(generation.table, shard, ids)
    in_states = _present(generation.states, shard, ids)
    shards, extra = list(manifest.shards), dict(manifest.extra_files)
    some = np.unique(shard[in_records | in_states]).tolist()
    gone = {k: set(keys_of(ids[shard == k])) for k in some}
    done = spread(f"shards-{folder.name}", some, partial(_shard_without, folder=str(folder), gone=gone))
    for k, receipt in zip(some, done, strict=True):
        shards[k] = ShardReceipt.from_dict(receipt)
    if DEAD_LETTERS in extra:
        names = {str(user) for user in ids.tolist()}
        removed, fact = _dead_letters_without(folder, names.__contains__)
        report.dead_letters += removed
        extra[DEAD_LETTERS] = fact  # also after a crash between rewriting this file and sealing
    if not (in_records | in_states).any() and extra == manifest.extra_files:
        return
    removed = int(in_records.sum())
    after = manifest.with_shards(shards, extra_files=extra, forgotten=manifest.forgotten + removed)
    reseal(folder, manifest, after)
    report.generations[manifest.generation] = removed
    report.states += int(in_states.sum())


def without_forgotten(folder: Path, manifest: Manifest, record: Forgotten) -> tuple[Manifest, int]:
    """Take users out of a generation that is not entered yet: all that is older than their forgetting.

    The time of a record is that of its summary, the time of anything else that of the generation's publication.

    Returns:
        The manifest of what is left, and how many records, tombstones and dead letters are not. Files that it no
        longer names stay in the folder.

    Raises:
        Damaged, StorageFull, ReadOnlyStorage
    """
    if not record.times:
        return manifest, 0
    generation, published = Generation(folder, manifest, verify=True), manifest.published_ms
    shards, extra, removed = list(manifest.shards), dict(manifest.extra_files), 0
    for k in range(manifest.num_shards):
        entries, states = generation.keys(k), generation.keys(k, states=True)
        made = np.full(len(entries.keys), published)
        full = np.flatnonzero(entries.length != HEADER_BYTES)
        data = generation.table.shard_data(k)
        made[full] = data[entries.offset[full][:, None] + _SUMMARIZED].view("<i8")[:, 0]
        known = dict(zip(entries.keys, (record.when(entries.keys) >= made).tolist(), strict=True))
        orphans = [key for key in states.keys if key not in known]
        gone = {key for key, is_gone in known.items() if is_gone}
        removed += len(gone)
        gone |= {key for key, at in zip(orphans, record.when(orphans), strict=True) if at >= published}
        if gone:
            shards[k] = _rewrite(generation, k, gone)
    written = removed
    if DEAD_LETTERS in extra:

        def is_gone(name: str) -> bool:
            try:
                key = key_bytes(int(name) if manifest.schema.user_kind == "int64" else name)
            except (ValueError, KeyKind):
                return False
            return bool(record.when([key])[0] >= published)

        letters, extra[DEAD_LETTERS] = _dead_letters_without(folder, is_gone)
        removed += letters
    after = manifest.with_shards(shards, extra_files=extra, forgotten=manifest.forgotten + written)
    return after, removed


def reseal(folder: Path, before: Manifest, after: Manifest) -> None:
    """Replace a generation's manifest in steps that are each whole, then delete what it no longer names."""
    old, new = before.text(), after.text()
    write_file(folder / "READY", manifests.seal(old, new))
    write_file(folder / "manifest.json", new.encode())
    write_file(folder / "READY", manifests.seal(new))
    for path in foreign_files(folder):
        remove(path)
    fsync(folder)


def _present(table: ShardFiles | None, shard: np.ndarray, ids: np.ndarray) -> np.ndarray:
    if table is None:
        return np.zeros(len(ids), bool)
    second = second_hash_of(ids) if ids.dtype == object else None
    return table.index.find(shard, hash_of(ids), second)[0] >= 0


def _shard_without(k: int, folder: str, gone: Mapping[int, set[bytes]]) -> dict[str, Any]:
    path = Path(folder)
    return _rewrite(Generation(path, manifests.read(path), verify=True), k, gone[k]).as_dict()


def _rewrite(generation: Generation, k: int, gone: set[bytes]) -> ShardReceipt:
    """The next revision of one shard, without these keys. Values are copied; each record carries its own check."""
    manifest, receipt = generation.manifest, generation.manifest.shards[k]
    with ShardWriter(
        generation.folder,
        k,
        manifest.num_shards,
        manifest.schema,
        generation.states is not None,
        fingerprint=manifest.fingerprint,
        revision=receipt.revision + 1,
    ) as writer:
        for users, values in _kept(generation, k, generation.table, gone):
            writer.add_sealed(users, values)
        if generation.states is not None:
            for users, values in _kept(generation, k, generation.states, gone):
                writer.add_states(
                    users, [bytes(v[8:]) for v in values], [int.from_bytes(v[:8], "little") for v in values]
                )
        return writer.finish()


def _kept(
    generation: Generation, k: int, table: ShardFiles, gone: set[bytes], step: int = 256
) -> Iterator[tuple[np.ndarray, list[bytearray]]]:
    """Blocks of users and values of one shard without some keys, in key order.

    A value whose first word is not the one in the index gets the word of the index: what was recognised as damaged
    or foreign before stays recognisable after.
    """
    entries = generation.keys(k, states=table is not generation.table)
    data = table.shard_data(k)
    stay = [i for i, key in enumerate(entries.keys) if key not in gone]
    for start in range(0, len(stay), step):
        part = stay[start : start + step]
        users = from_keys([entries.keys[i] for i in part], generation.schema.user_kind)
        second = second_hash_of(users) if users.dtype == object else None
        shard = np.full(len(users), k)
        words = table.index.find(shard, hash_of(users), second)[1].tolist()
        values = []
        for i, word in zip(part, words, strict=True):
            at = int(entries.offset[i])
            value = bytearray(data[at : at + int(entries.length[i])])
            value[:8] = word.to_bytes(8, "little")
            values.append(value)
        yield users, values


def read_dead_letters(folder: Path) -> Any:
    """Arrow table of the users that a generation could not write, and why.

    Raises:
        Damaged: the file is gone or is no such table.
    """
    needs("model", "pyarrow")
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / DEAD_LETTERS
    try:
        return pq.read_table(path)
    except (FileNotFoundError, pa.ArrowException) as error:
        raise Damaged(
            f"{path}: expected the dead letters that the generation had, found {error}; restore the file, or run "
            f"`vista summarize`"
        ) from error


def _dead_letters_without(folder: Path, gone: Callable[[str], bool]) -> tuple[int, FileFact]:
    """Rewrite the dead-letter file without some users, given by their names; rows removed, and what it now is."""
    import pyarrow.parquet as pq

    path, table = folder / DEAD_LETTERS, read_dead_letters(folder)
    names = table["user"].to_pylist() if "user" in table.column_names else []
    keep = [not gone(str(name)) for name in names]
    if not all(keep):
        with replacing(path) as temp:
            pq.write_table(table.filter(keep), temp)
            fsync(temp)
    return keep.count(False), FileFact(path.stat().st_size, digest_file(path))


def _forget_in_staging(layout: Layout, ids: np.ndarray, num_shards: int, report: ForgetReport) -> None:
    """Delete shards of the users' buckets, finished or not: their jobs build them again, or fail and are retried."""
    if not layout.staging.is_dir():
        return
    marks = {f"-{k:05d}-of-" for k in np.unique(hash_of(ids) % np.uint64(num_shards)).tolist()}
    for run in sorted(p for p in layout.staging.iterdir() if p.is_dir()):
        for path in sorted(run.iterdir()):
            if any(mark in path.name for mark in marks) or path.name == DEAD_LETTERS:
                remove(path)
                report.staging.append(str(path.relative_to(layout.root)))
        fsync(run)
