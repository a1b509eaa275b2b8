"""Reading everything once and comparing it with what it should be; a problem names file, user and remedy.

Pointers, seals, manifests, sizes, digests, every record and state, law 8, the note of forgotten users, files nobody
knows. Nothing is changed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import xxhash

from cache_store.change import forgotten
from cache_store.change.fold import blocks
from cache_store.change.prune import foreign_files
from cache_store.change.publish import of_the_run
from cache_store.errors import GenerationUnknown, StoreError
from cache_store.format import lines
from cache_store.format import manifest as manifests
from cache_store.format.keys import from_keys, hash_of, second_hash_of
from cache_store.format.layout import DELETING, Layout, digest_file
from cache_store.format.pages import LeafEntries
from cache_store.format.record import HEADER, HEADER_BYTES, TOMBSTONE, sound
from cache_store.read.generation import Generation, ShardFiles


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        file: path within the store.
        user: the user concerned, or None.
        what: expected and found.
        remedy: the next command.
    """

    file: str
    what: str
    remedy: str
    generation: str | None = None
    shard: int | None = None
    user: int | str | None = None

    def __str__(self) -> str:
        who = f" user {self.user!r}:" if self.user is not None else ""
        return f"{self.file}:{who} {self.what}; {self.remedy}"


@dataclass
class VerifyReport:
    """What was looked at, and every problem found."""

    generations: list[str] = field(default_factory=list)
    records: int = 0
    states: int = 0
    bytes: int = 0
    problems: list[Problem] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems


_REBUILD = "run `vista rollback` if an earlier generation is good, then `vista summarize` for a new full one"


def verify(layout: Layout, generation: str | None = None) -> VerifyReport:
    """Check the whole store, or one generation with the pointers.

    Raises:
        FormatUnknown: this version cannot judge the store. GenerationUnknown: there is none of this name.
    """
    layout.read_format()
    if generation is not None and not layout.generation(generation).is_dir():
        raise GenerationUnknown(f"{layout.root}: no generation {generation}; run `vista status`")
    report = VerifyReport()
    _pointers(layout, report)
    try:
        forgotten.read(layout)
    except StoreError as error:
        report.problems.append(
            Problem(layout.forgotten.name, str(error), "restore it, or run `vista forget` again")
        )
    for name in [generation] if generation is not None else layout.generation_names():
        found = _while_it_stands(layout, name)
        if generation is None and not layout.generation(name).is_dir():
            continue  # pruned meanwhile
        report.generations.append(name)
        report.problems += found.problems
        report.records, report.states = report.records + found.records, report.states + found.states
        report.bytes += found.bytes
    if generation is None:
        for path in sorted(layout.generations.glob(f"{DELETING}*")):
            what, remedy = "a half-deleted generation", "run `vista prune`"
            report.problems.append(Problem(_name(layout, path), what, remedy))
    return report


def _while_it_stands(layout: Layout, name: str) -> VerifyReport:
    """Of one generation; looked at again where ``forget`` has meanwhile sealed it anew and taken files away."""
    while True:
        report, seal = VerifyReport(), _seal(layout.generation(name))
        report.problems += _generation(layout, name, report)
        if not report.problems or _seal(layout.generation(name)) == seal:
            return report


def _seal(folder: Path) -> bytes:
    try:
        return manifests.read_seal(folder)
    except StoreError:
        return b""


def _name(layout: Layout, path: Path) -> str:
    return str(path.relative_to(layout.root))


def _pointers(layout: Layout, report: VerifyReport) -> None:
    for line in layout.line_names():
        path = _name(layout, layout.pointer(line))
        try:
            pointer, gone = _names_nowhere(layout, line)
        except StoreError as error:
            report.problems.append(Problem(path, str(error), f"run `vista promote --line {line} GENERATION`"))
            continue
        for name in gone:
            what = f"names generation {name}, which is not there"
            remedy = "run `vista rollback`" if name == pointer.live else "run `vista prune`"
            report.problems.append(Problem(path, what, remedy, name))
    published = {manifest.line for manifest in manifests.readable(layout)}
    for line in sorted(published - set(layout.line_names())):
        path = _name(layout, layout.pointer(line))
        what = f"missing, though generations of line {line!r} are there"
        report.problems.append(Problem(path, what, f"run `vista promote --line {line} GENERATION`"))


def _names_nowhere(layout: Layout, line: str) -> tuple[lines.Pointer, list[str]]:
    """A pointer, and what it names that is not there; read again where it was pruned meanwhile."""
    while True:
        pointer = lines.live(layout, line)
        gone = [n for n in (pointer.live, *pointer.earlier) if not layout.generation(n).is_dir()]
        if not gone or lines.live(layout, line) == pointer:
            return pointer, gone


def _generation(layout: Layout, name: str, report: VerifyReport) -> Iterator[Problem]:
    folder = layout.generation(name)
    try:
        manifest = manifests.read(folder)
    except StoreError as error:
        yield Problem(_name(layout, folder), str(error), _REBUILD, name)
        return
    yield from _manifest(layout, folder, manifest)
    whole = True
    for problem in _files(layout, folder, manifest, report):
        whole = False
        yield problem
    try:
        generation = Generation(folder, manifest, verify=False)
    except StoreError as error:
        if whole:
            yield Problem(_name(layout, folder), str(error), _REBUILD, name)
        return
    for k, receipt in enumerate(manifest.shards):
        yield from _contents(layout, generation, k, generation.table, receipt.record_stem, report)
        if receipt.with_states:
            try:
                states = generation.states
            except StoreError as error:
                if whole:
                    yield Problem(_name(layout, folder), str(error), _REBUILD, name, k)
                break
            if states is not None:
                yield from _contents(layout, generation, k, states, receipt.state_stem, report)


def _manifest(layout: Layout, folder: Path, manifest: manifests.Manifest) -> Iterator[Problem]:
    """What lies beside it; what it says of itself was asked as it was read."""
    name = manifest.generation
    if manifest.parent is not None and not layout.generation(manifest.parent).is_dir():
        yield Problem(_name(layout, folder), f"its parent {manifest.parent} is not there", _REBUILD, name)
    for path in itertools.filterfalse(of_the_run, foreign_files(folder)):
        yield Problem(_name(layout, path), "not a file of this generation", "run `vista prune`", name)


def _files(
    layout: Layout, folder: Path, manifest: manifests.Manifest, report: VerifyReport
) -> Iterator[Problem]:
    """Every file against its size and digest in the manifest."""
    for file, fact in sorted(manifest.files.items()):
        problem = _file(folder / file, fact.bytes, fact.digest)
        report.bytes += fact.bytes
        if problem:
            shard = int(file[6:11]) if file[:6] in ("shard-", "state-") else None
            yield Problem(_name(layout, folder / file), problem, _REBUILD, manifest.generation, shard)


def _file(path: Path, size: int, digest: str) -> str:
    if not path.is_file():
        return "missing"
    found = path.stat().st_size
    if found != size:
        return f"expected {size} bytes, found {found}"
    now = digest_file(path)
    return f"expected digest {digest}, found {now}" if now != digest else ""


def _contents(
    layout: Layout, generation: Generation, k: int, table: ShardFiles, stem: str, report: VerifyReport
) -> Iterator[Problem]:
    """Every record or state of one shard against its index, its own check and its payload hash."""
    manifest = generation.manifest
    file = _name(layout, generation.folder / f"{stem}.mdb")
    states = table is not generation.table
    try:
        entries = generation.keys(k, states=states)
        users = from_keys(entries.keys, manifest.schema.user_kind)
    except (StoreError, UnicodeDecodeError, ValueError) as error:
        yield Problem(file, str(error), _REBUILD, manifest.generation, k)
        return
    hashes, names = hash_of(users), users.tolist()
    for i in np.flatnonzero(hashes % np.uint64(manifest.num_shards) != k).tolist():
        what = f"belongs to bucket {int(hashes[i] % np.uint64(manifest.num_shards))}, lies in {k}"
        yield Problem(file, what, _REBUILD, manifest.generation, k, names[i])
    second = second_hash_of(users) if users.dtype == object else None
    shard = np.full(len(users), k)
    remedy = "run `vista refresh --user` for this user, or `vista rollback`"
    try:
        entry, check, _ = table.index.find(shard, hashes, second)
    except (StoreError, IndexError) as error:
        name = _name(layout, generation.folder / f"{stem}.idx")
        yield Problem(name, f"points outside itself ({error})", _REBUILD, manifest.generation, k)
        return
    for i in np.flatnonzero(entry < 0).tolist():
        yield Problem(file, "not in the index", remedy, manifest.generation, k, names[i])
    judge = _judge_states if states else _judge_records
    wrong = judge(generation, k, table, hashes, entries, check)
    for i in np.flatnonzero(wrong & (entry >= 0)).tolist():
        what = f"{'state' if states else 'record'} fails its check"
        yield Problem(file, what, remedy, manifest.generation, k, names[i])
    receipt = manifest.shards[k]
    if states:
        report.states += len(users)
        counts = [("states", len(users), receipt.states)]
    else:
        gone = int((entries.length == HEADER_BYTES).sum())
        report.records += len(users) - gone
        counts = [("records", len(users) - gone, receipt.records), ("tombstones", gone, receipt.tombstones)]
    for what, found, expected in counts:
        if found != expected:
            text = f"expected {expected} {what}, found {found}"
            yield Problem(file, text, _REBUILD, manifest.generation, k)


def _judge_records(
    generation: Generation, k: int, table: ShardFiles, hashes: np.ndarray, entries: LeafEntries, check: np.ndarray
) -> np.ndarray:  # fmt: skip
    """bool [n]: records that are not what the index and their own header say."""
    offset, length = entries.offset, entries.length
    data, size = table.shard_data(k), generation.schema.record_bytes
    wrong = np.zeros(len(hashes), bool)
    gone = length == HEADER_BYTES
    wrong[~gone & (length != size)] = True
    for rows in np.array_split(np.flatnonzero(gone), max(1, int(gone.sum()) // 4096)):
        if len(rows):
            head = data[offset[rows][:, None] + np.arange(HEADER_BYTES)].view(HEADER)[:, 0]
            ok = sound(head, hashes[rows], generation.model, TOMBSTONE)
            wrong[rows] = ~ok | (head["check"] != check[rows])
    full = np.flatnonzero(~gone & ~wrong)
    for part in blocks(len(full), size):
        rows = full[part]
        gathered = np.empty((len(rows), generation.row_bytes), np.uint8)
        head = np.empty(len(rows), HEADER)
        good = generation.gather(table.files.starts[k] + offset[rows], gathered, hashes[rows], True, head)
        wrong[rows] = ~good | (head["check"] != check[rows])
    return wrong


def _judge_states(
    generation: Generation, k: int, table: ShardFiles, hashes: np.ndarray, entries: LeafEntries, check: np.ndarray
) -> np.ndarray:  # fmt: skip
    """bool [n]: states that are not what the index says."""
    data = table.shard_data(k)
    digest = xxhash.xxh3_64_intdigest
    wrong = np.zeros(len(hashes), bool)
    columns = (column.tolist() for column in (entries.offset, entries.length, check, hashes))
    for i, (at, size, word, h) in enumerate(zip(*columns, strict=True)):
        value = data[at : at + size]
        stated = int.from_bytes(value[:8].tobytes(), "little")
        wrong[i] = size < 8 or stated != word or digest(value[8:], seed=h) != word
    return wrong
