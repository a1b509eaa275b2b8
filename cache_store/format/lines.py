"""Pointers: which generation of a line is live, and which were before.

A pointer file:

    00000007                live
    00000006                live before it and still kept, newest first
    -00000008               taken back by ``rollback``; the run that made it does not bring it to life again
    check 3f2a…             XXH3-64 (16 hex digits) of the lines above and the line's name

It is replaced as a whole, so going live and going back are one atomic step each. What it names is what ``rollback``
may go back to and what as-of reads choose from; ``prune`` shortens it before it deletes.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import xxhash

from cache_store.errors import Damaged, GenerationUnknown, NothingPublished, StoreError
from cache_store.format import manifest as manifests
from cache_store.format.checked import MIB, NotSound, read_bounded
from cache_store.format.layout import GENERATION, Layout, exclusive, storage_errors, write_file


@dataclass(frozen=True)
class Pointer:
    """Live generation of a line, those it can go back to, newest first, and those taken back."""

    live: str
    earlier: tuple[str, ...] = ()
    taken_back: tuple[str, ...] = ()

    def then(self, generation: str) -> Pointer:
        """The pointer after ``generation`` goes live."""
        return Pointer(
            generation,
            tuple(g for g in (self.live, *self.earlier) if g != generation),
            tuple(g for g in self.taken_back if g != generation),
        )

    def without(self, gone: Collection[str]) -> Pointer:
        """The pointer when some earlier generations are deleted."""
        return Pointer(
            self.live,
            tuple(g for g in self.earlier if g not in gone),
            tuple(g for g in self.taken_back if g not in gone),
        )

    def text(self, line: str) -> str:
        body = "".join(f"{g}\n" for g in (self.live, *self.earlier, *(f"-{g}" for g in self.taken_back)))
        return f"{body}check {_check(body, line)}\n"


def _check(body: str, line: str) -> str:
    return xxhash.xxh3_64_hexdigest(f"{line}\n{body}".encode())


def read_pointer(layout: Layout, line: str) -> Pointer | None:
    """Pointer of a line, or None where the line has none.

    Raises:
        Damaged: not a pointer of this line.
    """
    path = layout.pointer(line)
    remedy = f"write it anew with `vista promote --line {line} GENERATION`"
    try:
        text = read_bounded(path, MIB).decode("ascii", "replace")
    except FileNotFoundError:
        return None
    except NotSound as error:
        raise Damaged(f"{path}: {error}; {remedy}") from error
    body, separator, check = text.rpartition("check ")
    names = body.split()
    if not separator or check != _check(body, line) + "\n" or not names:
        raise Damaged(f"{path}: check fails; {remedy}")
    if not all(GENERATION.fullmatch(n.removeprefix("-")) for n in names) or names[0][0] == "-":
        raise Damaged(f"{path}: names no generation; {remedy}")
    if len({n.removeprefix("-") for n in names}) != len(names):
        raise Damaged(f"{path}: names a generation twice; {remedy}")
    kept = tuple(n for n in names if n[0] != "-")
    return Pointer(kept[0], kept[1:], tuple(n[1:] for n in names if n[0] == "-"))


def live(layout: Layout, line: str) -> Pointer:
    """Pointer of a line that must have one.

    Raises:
        NothingPublished, Damaged
    """
    pointer = read_pointer(layout, line)
    if pointer is None:
        known = layout.line_names()
        raise NothingPublished(
            f"{layout.root}: line {line!r} has no live generation (lines: {known or 'none'}); run `vista summarize`"
        )
    return pointer


def write_pointer(layout: Layout, line: str, pointer: Pointer) -> None:
    """Replace a pointer atomically and durably.

    Raises:
        StorageFull, ReadOnlyStorage
    """
    path = layout.pointer(line)
    with storage_errors(str(path)):
        path.parent.mkdir(exist_ok=True)
        write_file(path, pointer.text(line).encode())


def rollback(layout: Layout, line: str, to: str | None = None) -> str:
    """Make an earlier generation of a line live again; those above it leave the line. Its name.

    Raises:
        NothingPublished: there is none to go back to, or none that can be read.
        GenerationUnknown: ``to`` is none of them.
        Damaged: it cannot be read. ReadOnlyStorage, StorageFull
    """
    with exclusive(layout, f"rolling back line {line!r}"):
        pointer = live(layout, line)
        target = rollback_target(layout, line, pointer, to)
        if target == pointer.live:
            return target
        at = pointer.earlier.index(target)
        back = (pointer.live, *pointer.earlier[:at], *pointer.taken_back)
        write_pointer(layout, line, Pointer(target, pointer.earlier[at + 1 :], back))
    return target


def rollback_target(layout: Layout, line: str, pointer: Pointer, to: str | None) -> str:
    """Where a rollback would go: ``to``, or the newest earlier generation that can be read. Changes nothing.

    Where ``to`` is live, nothing is left to do: who asks again was cut off after the step.

    Raises:
        NothingPublished, GenerationUnknown, Damaged: as :func:`rollback`.
    """
    if to == pointer.live:
        return to
    if not pointer.earlier:
        raise NothingPublished(f"{layout.root}: line {line!r} has no generation before {pointer.live}")
    target = to or next((n for n in pointer.earlier if _stands(layout, n)), None)
    if target is None:
        raise NothingPublished(
            f"{layout.root}: none of the earlier generations {list(pointer.earlier)} of line {line!r} can be read; "
            f"make a new one with `vista summarize`"
        )
    if target not in pointer.earlier:
        raise GenerationUnknown(
            f"{layout.root}: line {line!r} cannot go back to {target}; it can to {list(pointer.earlier)}"
        )
    manifests.chain(layout, target)
    return target


def _stands(layout: Layout, name: str) -> bool:
    """Whether a generation and all below it can be read."""
    try:
        manifests.chain(layout, name)
    except StoreError:
        return False
    return True


def promote(layout: Layout, line: str, onto: str, generation: str | None = None) -> str:
    """Make the live generation of ``line``, or a named one, the live one of ``onto``. Its name.

    Also repairs a damaged pointer, whose earlier generations are then forgotten by the line.

    Raises:
        NothingPublished, GenerationUnknown, Damaged, ReadOnlyStorage, StorageFull
    """
    with exclusive(layout, f"promoting to line {onto!r}"):
        name = promotable(layout, line, generation)
        try:
            before = read_pointer(layout, onto)
        except Damaged:
            before = None
        write_pointer(layout, onto, before.then(name) if before else Pointer(name))
    return name


def promotable(layout: Layout, line: str, generation: str | None = None) -> str:
    """The generation that a promotion would take live: the one named, or the live one of ``line``. Changes nothing.

    Raises:
        NothingPublished, GenerationUnknown, Damaged: as :func:`promote`.
    """
    name = generation or live(layout, line).live
    if name not in layout.generation_names():
        raise GenerationUnknown(
            f"{layout.root}: no generation {name}; kept: {layout.generation_names()}; run `vista status`"
        )
    manifests.chain(layout, name)
    return name
