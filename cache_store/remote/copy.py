"""Copies of generations elsewhere: ``push`` to a URL, ``pull`` from it; verified by digest, resumable, whole chains.

What lies at the URL is in ``store``. A pulled generation becomes one of the local store by the ordinary
steps (staging, READY, rename, pointer), under a number of its own: its content digest is the same, names and parents
are local. Users whom the local store has forgotten since their summaries were made are left out of it.
"""

from __future__ import annotations

import dataclasses
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from cache_store.change import forgotten, publish
from cache_store.change.forget import without_forgotten
from cache_store.change.prune import size_of
from cache_store.errors import (
    Damaged,
    FingerprintMismatch,
    SchemaError,
    StorageFull,
    StoreError,
)
from cache_store.format import lines
from cache_store.format import manifest as manifests
from cache_store.format.keys import bucket_of, from_keys
from cache_store.format.layout import MAIN, Layout, check_name, digest_file, exclusive, fsync, storage_errors
from cache_store.format.manifest import Manifest
from cache_store.format.receipt import FileFact
from cache_store.read.generation import Generation
from cache_store.read.leases import Lease
from cache_store.read.options import wall_clock
from cache_store.remote.files import RemoteError, RemoteFiles
from cache_store.remote.store import FOLDER, NO_PARENT, RemoteGeneration, RemoteStore, identity
from cache_store.store import Store

_ATTEMPTS = 5


@dataclass
class CopyReport:
    """What a push or a pull did.

    Attributes:
        generation: local name of the newest generation of the chain.
        folder: its remote name.
        chain: remote folders, oldest first.
        copied, found: files copied, and files that were already there with the right digest.
        bytes: copied.
        left_out: records, tombstones and dead letters of forgotten users that a pull did not take over.
    """

    generation: str = ""
    folder: str = ""
    chain: list[str] = field(default_factory=list)
    copied: int = 0
    found: int = 0
    bytes: int = 0
    left_out: int = 0


def push(
    store: Store,
    generation: str | None,
    url: str,
    *,
    line: str | None = None,
    storage_options: dict[str, Any] | None = None,
    jobs: int = 4,
) -> CopyReport:
    """Copy a generation and every one below it to a URL, then point the remote line at it.

    Killed at any point, it leaves at most folders without READY; the same push goes on with the files that are
    missing. Users forgotten later leave the remote side with the next push and :func:`sweep`.

    Args:
        generation: name; None takes the live one of the store's line.
        line: remote line; None takes the store's.
        jobs: files copied at a time.

    Raises:
        RemoteError: the remote side fails. Damaged: a local file is not what its manifest states.
        FormatUnknown, SchemaError: the URL holds generations of a store with other facts.
        GenerationUnknown, NothingPublished
    """
    layout, remote = store.layout, RemoteStore(url, storage_options)
    remote.claim(layout)
    now = wall_clock()
    lease = Lease(layout, now)
    try:
        name = generation or lines.live(layout, store.line).live
        lease.hold([name], now)  # that keeps ``prune`` from all below it, too
        report, parent = CopyReport(generation=name), NO_PARENT
        for manifest in reversed(manifests.chain(layout, name)):
            lease.renew(wall_clock())
            parent = _push_one(layout, remote.files, manifest, parent, report, jobs)
            report.chain.append(parent)
        report.folder = parent
        remote.point(store.line if line is None else line, parent)
    finally:
        lease.drop()
    return report


def store_like(
    url: str, path: str | Path, storage_options: dict[str, Any] | None = None, **options: Any
) -> Store:
    """The local store at ``path``, made with the facts of the store that was pushed to ``url`` if it is not there.

    Args:
        options: as for ``Store.open``.

    Raises:
        RemoteError: nothing was pushed there. FormatUnknown, Damaged, StorageFull, ReadOnlyStorage
    """
    check_name(options.get("line", MAIN), "line")  # before anything is asked elsewhere
    facts = RemoteStore(url, storage_options).format()
    return Store.create(path, user_kind=facts.user_kind, num_shards=facts.num_shards, **options)


def pull(
    url: str,
    store: Store,
    line: str = MAIN,
    *,
    remote_line: str | None = None,
    generation: str | None = None,
    fingerprint: str | None = None,
    storage_options: dict[str, Any] | None = None,
    jobs: int = 4,
) -> CopyReport:
    """Copy a generation and every one below it from a URL and make it the live one of a local line.

    The line ends where the remote line is, also if that went back. Generations that are here already are not copied
    again. Killed at any point, the local line stays where it was, and the same pull goes on. Users whom this store
    has forgotten do not come back: what was summarised of them before that is left out here, though it stays at the
    URL until the next :func:`push` and :func:`sweep` from where it came.

    Args:
        line: local line.
        remote_line: the remote one, the same by default.
        generation: remote folder, or its generation number, instead of what the remote line points to.
        fingerprint: refuse generations of another model; the store's by default.

    Raises:
        RemoteError: the remote side fails, or the line has nothing. GenerationUnknown: no such remote generation.
        Damaged: what was copied is not what the manifest states; nothing went live.
        FingerprintMismatch, FormatUnknown, SchemaError, StorageFull, ReadOnlyStorage
    """
    layout, remote = store.layout, RemoteStore(url, storage_options)
    remote.match(layout)
    tip = remote.find(generation) if generation else remote.tip(line if remote_line is None else remote_line)
    chain = list(remote.chain(tip))[::-1]
    facts = (store.format.num_shards, store.format.user_kind)
    if any((g.manifest.num_shards, g.manifest.schema.user_kind) != facts for g in chain):
        raise SchemaError(
            f"{url}: a generation below {tip} has other shards or ids than the store {layout.root}"
        )
    wanted = store.fingerprint if fingerprint is None else fingerprint
    if wanted is not None and chain[-1].manifest.fingerprint != wanted:
        raise FingerprintMismatch(
            f"{remote.files.name(tip)}: made by model {chain[-1].manifest.fingerprint}, asked for {wanted}; pull "
            f"the line of that model, or run `vista promote` for the model itself first"
        )
    report = CopyReport(folder=tip, chain=[g.folder for g in chain])
    _room(layout, [g for g in chain if _local(layout, g) is None])
    with storage_errors(f"pulling {url}"):
        for _ in range(_ATTEMPTS):
            for g in chain:
                if _local(layout, g) is None:
                    _download(layout, remote.files, g, report, jobs)
                    _opens(layout.run(g.run_id), g)
            with exclusive(layout, f"pulling {url}"):
                name = _enter_chain(layout, chain, line, report)
                if name is None:
                    continue  # prune or forget was faster than we: copy again what it took
                pointer = lines.read_pointer(layout, line)
                if pointer is None or pointer.live != name:
                    lines.write_pointer(layout, line, pointer.then(name) if pointer else lines.Pointer(name))
                report.generation = name
                return report
    raise RemoteError(
        f"{layout.root}: generations were removed while pulling; run the same `vista pull` again"
    )


def sweep(url: str, storage_options: dict[str, Any] | None = None) -> list[str]:
    """Delete remote generations that no remote line needs, unfinished ones included; their folders.

    No push to the same URL may run meanwhile. This is what removes forgotten users from the remote side, after the
    line's new generations were pushed.

    Raises:
        RemoteError, Damaged: a pointer or chain that must be followed cannot be read; nothing is deleted then.
    """
    remote = RemoteStore(url, storage_options)
    keep: set[str] = set()
    for line in remote.lines():
        keep.update(g.folder for g in remote.chain(remote.tip(line)))
    there = remote.files.folders("generations")
    doomed = [name for name in there if name not in keep and FOLDER.fullmatch(name)]
    for name in doomed:
        # READY first, so that half a folder is never taken for a whole one.
        remote.files.remove(f"generations/{name}/READY")
        remote.files.remove(f"generations/{name}")
    return doomed


def _push_one(
    layout: Layout, remote: RemoteFiles, manifest: Manifest, parent: str, report: CopyReport, jobs: int
) -> str:
    """Copy one generation; its remote folder."""
    text = manifest.text()
    folder = identity(manifest.generation, text, parent)
    base, ready = f"generations/{folder}", manifests.seal(text)
    if remote.read(f"{base}/READY", 1 << 10) == ready:
        report.found += len(manifest.files)
        return folder
    source = layout.generation(manifest.generation)

    def copy(file: str, fact: FileFact) -> bool:
        path = f"{base}/{file}"
        if remote.size(path) == fact.bytes and remote.digest(path) == fact.digest:
            return False
        try:
            remote.upload(source / file, path, fact)
        except FileNotFoundError as error:
            raise Damaged(
                f"{source / file}: gone while it was pushed (forget gives shards new names); run `vista push` again"
            ) from error
        return True

    _copy_all(manifest.files, copy, jobs, report)
    remote.write(f"{base}/manifest.json", text.encode())
    remote.write(f"{base}/PARENT", f"{parent}\n".encode())
    remote.write(f"{base}/READY", ready)
    return folder


def _download(
    layout: Layout, remote: RemoteFiles, g: RemoteGeneration, report: CopyReport, jobs: int
) -> None:
    """Copy one generation's files into its staging folder; those that are there and right are kept."""
    staging = layout.run(g.run_id)
    staging.mkdir(parents=True, exist_ok=True)

    def copy(file: str, fact: FileFact) -> bool:
        target = staging / file
        if _is(target, fact):
            return False
        with _part(target) as part:
            if part is None or _is(target, fact):  # another pull was faster
                return False
            remote.download(f"generations/{g.folder}/{file}", part, fact)
            with suppress(
                FileNotFoundError
            ):  # taken away by forget: the chain, now incomplete, is copied again
                os.replace(_part_path(target), target)
        return True

    _copy_all(g.manifest.files, copy, jobs, report)
    if staging.is_dir():
        fsync(staging)


def _room(layout: Layout, chain: Sequence[RemoteGeneration]) -> None:
    """Ask whether what is to be copied fits, before anything is."""
    needed = 0
    for g in chain:
        staged = layout.run(g.run_id)
        needed += g.manifest.bytes - (size_of(staged) if staged.is_dir() else 0)
    free = shutil.disk_usage(layout.root).free
    if needed > free:
        raise StorageFull(
            f"{layout.root}: expected room for {needed} bytes, found {free} free; nothing was copied and the "
            f"live generation is untouched; free space (`vista prune` removes what no reader needs) and run the same "
            f"command again"
        )


def _opens(staging: Path, g: RemoteGeneration) -> None:
    """Open what was copied as a reader would, before it goes live."""
    if not staging.is_dir():
        return  # another pull has entered it
    try:
        generation = Generation(staging, g.manifest, verify=True)
        if generation.states is not None:
            for k in range(g.manifest.num_shards):
                generation.keys(k, states=True)
        for k in range(g.manifest.num_shards):
            users = from_keys(generation.keys(k).keys, g.manifest.schema.user_kind)
            if (bucket_of(users, g.manifest.num_shards) != k).any():
                raise Damaged(
                    f"{generation.folder / generation.table.names[k]}: holds users of another bucket"
                )
    except Damaged as error:
        if all((staging / file).is_file() for file in g.manifest.files):
            raise Damaged(
                f"{g.folder}: {error}; nothing went live; run `vista push` again where it came from"
            ) from error


def _enter_chain(
    layout: Layout, chain: Sequence[RemoteGeneration], line: str, report: CopyReport
) -> str | None:
    """Make every generation of a chain a local one, oldest first; the newest's name. The lock is held.

    None if a generation is neither here nor staged.
    """
    gone = forgotten.read(layout)
    parent: str | None = None
    for g in chain:
        name = _local(layout, g)
        if name is None:
            staging = layout.run(g.run_id)
            if not all(_is(staging / file, fact) for file, fact in g.manifest.files.items()):
                return None
            kept, left_out = without_forgotten(staging, g.manifest, gone)
            report.left_out += left_out
            name = publish.next_number(layout)
            mine = dataclasses.replace(kept, generation=name, parent=parent, run_id=g.run_id, line=line)
            publish.enter(layout, staging, mine)
        parent = name
    return parent


def _local(layout: Layout, g: RemoteGeneration) -> str | None:
    """Local name of a remote generation: pulled before, or pushed from here; None where it is not here."""
    pulled = publish.find_run(layout, g.run_id)
    if pulled is not None:
        return pulled.generation
    name = g.manifest.generation
    if name in layout.generation_names():
        try:
            if _identity_here(layout, name) == g.folder:
                return name
        except StoreError:
            return None
    return None


def _identity_here(layout: Layout, name: str) -> str:
    manifest = manifests.read(layout.generation(name))
    parent = NO_PARENT if manifest.parent is None else _identity_here(layout, manifest.parent)
    return identity(name, manifest.text(), parent)


def _is(path: Path, fact: FileFact) -> bool:
    try:
        return path.stat().st_size == fact.bytes and digest_file(path) == fact.digest
    except (FileNotFoundError, NotADirectoryError):
        return False


def _part_path(target: Path) -> Path:
    return target.with_name(f".{target.name}.part")


@contextmanager
def _part(target: Path) -> Iterator[IO[bytes] | None]:
    """The unfinished copy of a file, open and locked; None if the staging folder has meanwhile been published."""
    path = _part_path(target)
    while True:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:
            yield None
            return
        with os.fdopen(fd, "r+b", closefd=True) as part:
            fcntl.flock(fd, fcntl.LOCK_EX)
            try:
                same = os.path.samestat(os.fstat(fd), os.stat(path))
            except FileNotFoundError:
                same = False
            if not same:  # renamed by another pull while we waited for its lock
                if target.exists() or not target.parent.is_dir():
                    yield None
                    return
                continue
            yield part
            return


def _copy_all(
    files: dict[str, FileFact], copy: Callable[[str, FileFact], bool], jobs: int, report: CopyReport
) -> None:
    """Copy files, ``jobs`` at a time; ``copy`` says whether there was anything to do."""
    if jobs <= 1:
        copied = list(map(copy, files, files.values()))
    else:
        with ThreadPoolExecutor(jobs, thread_name_prefix="remote") as pool:
            copied = list(pool.map(copy, files, files.values()))
    report.copied += sum(copied)
    report.found += len(copied) - sum(copied)
    report.bytes += sum(fact.bytes for fact, new in zip(files.values(), copied, strict=True) if new)
