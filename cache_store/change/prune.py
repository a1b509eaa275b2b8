"""Deleting what nothing needs: generations outside every line's kept history, dead staging, remains of crashes.

A generation stays if

- it is live or among the newest ``keep`` earlier ones of a line;
- a rollback took it back, nothing newer has gone live since, and it is among the newest ``keep`` of those, so that one
  can go forward again (``vista promote``);
- a reader holds a lease on it;
- one that stays lies on it.

Pointers are shortened first, then a folder is renamed out of sight, then emptied; a crash in between is finished by
the next call.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from cache_store.errors import Damaged, FormatUnknown, StoreError
from cache_store.format import lines
from cache_store.format import manifest as manifests
from cache_store.format.layout import (
    DELETING,
    Layout,
    abandoned,
    exclusive,
    fsync,
    storage_errors,
    write_file,
)
from cache_store.read import leases

STAGING_MS = 7 * 86_400_000
"""Staging folders in which nothing has changed for so long belong to no job any more."""


@dataclass
class PruneReport:
    """What was removed, or would be.

    Attributes:
        generations, staging, remains: names; remains are temporary files and half-deleted folders.
        bytes: freed.
        kept: every generation that stays, with the reason.
        leases: files that are no leases, with what is wrong; they were renamed out of the way.
    """

    generations: list[str] = field(default_factory=list)
    staging: list[str] = field(default_factory=list)
    remains: list[str] = field(default_factory=list)
    bytes: int = 0
    kept: dict[str, str] = field(default_factory=dict)
    leases: dict[str, str] = field(default_factory=dict)


def prune(
    layout: Layout, keep: int, clock: Callable[[], int], staging_ms: int = STAGING_MS, dry_run: bool = False
) -> PruneReport:
    """Remove what nothing needs.

    Args:
        keep: earlier generations kept per line beside the live one, at least 1 so that ``rollback`` has a target.

    Raises:
        StoreError: ``keep`` is below 1. Damaged: a pointer or a manifest that must be followed cannot be read.
        ReadOnlyStorage
    """
    if not isinstance(keep, int) or keep < 1:
        raise StoreError(f"keep: expected at least 1, for `vista rollback` needs a target; found {keep}")
    report = PruneReport()
    with exclusive(layout, "pruning"), storage_errors("pruning"):
        pointers = {line: lines.live(layout, line) for line in layout.line_names()}
        now = clock()
        held = leases.held(layout, now, sweep=not dry_run)
        report.leases = held.aside
        _keep(layout, pointers, keep, held.names, report)
        report.generations = [n for n in layout.generation_names() if n not in report.kept]
        report.bytes = sum(size_of(layout.generation(name)) for name in report.generations)
        if not dry_run:
            _let_go(layout, pointers, report.generations)
        # also what an earlier prune has renamed out of ``leases/``, once it is old
        remains = [*_remains(layout), *_old(layout.leases.glob(f"{leases.ASIDE}*"), now - staging_ms)]
        staging = _old(layout.staging.glob("*"), now - staging_ms)
        report.remains = [str(path.relative_to(layout.root)) for path in remains]
        report.staging = [folder.name for folder in staging]
        for path in (*remains, *staging):
            report.bytes += size_of(path)
            if not dry_run:
                remove(path)
    return report


def _let_go(layout: Layout, pointers: dict[str, lines.Pointer], doomed: list[str]) -> None:
    """Take generations out of every line, then out of the store, and finish what is left of the others."""
    for line, pointer in pointers.items():
        left = pointer.without(doomed)
        if left != pointer:
            lines.write_pointer(layout, line, left)
    for name in doomed:
        discard(layout, layout.generation(name))
    for name in layout.generation_names():
        settle(layout.generation(name))


def discard(layout: Layout, folder: Path) -> None:
    """Rename a generation out of sight, durably, then empty it. The lock is held and no pointer names it."""
    out = layout.generations / f"{DELETING}{folder.name}"
    if out.exists():
        remove(out)
    folder.rename(out)
    fsync(layout.generations)
    remove(out)


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def size_of(path: Path) -> int:
    """Bytes of a file or of all files below a folder."""
    if not path.is_dir():
        return path.stat().st_size if path.exists() else 0
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


def _keep(
    layout: Layout,
    pointers: dict[str, lines.Pointer],
    keep: int,
    held: dict[str, set[str]],
    report: PruneReport,
) -> None:
    present = set(layout.generation_names())
    roots: dict[str, str] = {}
    for lease, names in held.items():
        roots |= {n: f"lease {lease}" for n in names}
    for line, pointer in pointers.items():
        # One that cannot be read is no target for a rollback.
        readable = (n for n in pointer.earlier if n in present and _readable(layout, n))
        roots |= {n: f"line {line}, to go back to" for n in itertools.islice(readable, keep)}
        forward = sorted((n for n in pointer.taken_back if int(n) > int(pointer.live)), key=int, reverse=True)
        roots |= {
            n: f"line {line}, to go forward to"
            for n in forward[:keep]
            if n in present and _readable(layout, n)
        }
    for line, pointer in pointers.items():
        roots[pointer.live] = f"line {line}, live"
    for root, reason in roots.items():
        name: str | None = root
        while name is not None and name in present and name not in report.kept:
            report.kept[name] = reason
            name, reason = manifests.read(layout.generation(name)).parent, f"{root} lies on it"
    for root, reason in roots.items():
        if root in report.kept:
            report.kept[root] = reason


def _readable(layout: Layout, name: str) -> bool:
    try:
        manifests.read(layout.generation(name))
    except StoreError:
        return False
    return True


def _remains(layout: Layout) -> list[Path]:
    """Half-deleted folders, and what killed writers were about to put in the place of a file of the store."""
    found = list(layout.generations.glob(f"{DELETING}*"))
    ours = ("FORMAT", "CURRENT", "SEQUENCE", "FORGOTTEN")
    found += (path for path in layout.root.glob(".*.tmp") if abandoned(path) in ours)
    found += (path for path in layout.lines.glob(".*.tmp") if abandoned(path))
    for name in layout.generation_names():
        found += foreign_files(layout.generation(name))
    return sorted(found)


def foreign_files(folder: Path) -> list[Path]:
    """Files of a generation's folder that its manifest does not know; none where it cannot be read."""
    try:
        known = {*manifests.read(folder).files, "manifest.json", "READY"}
    except StoreError:
        return []
    return sorted(p for p in folder.iterdir() if p.name not in known)


def settle(folder: Path) -> None:
    """Let READY state the present manifest alone where ``forget`` was cut short, before files of the other one go.

    Readers take an unchanged READY to mean that what they have opened is still the generation.
    """
    with suppress(Damaged, FormatUnknown):
        manifests.read(folder)
        alone = manifests.seal((folder / "manifest.json").read_text())
        if manifests.read_seal(folder) != alone:
            write_file(folder / "READY", alone)


def _old(paths: Iterable[Path], before_ms: int) -> list[Path]:
    """Those in which nothing has changed since, in order of name."""

    def changed_ns(path: Path) -> int:
        below = path.rglob("*") if path.is_dir() else ()
        return max([path.stat().st_mtime_ns, *(p.stat().st_mtime_ns for p in below if p.exists())])

    return sorted(p for p in paths if changed_ns(p) // 1_000_000 < before_ms)
