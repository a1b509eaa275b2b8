"""Pointers: which generation of a line is live, and which were before.

A pointer file:

    00000007                live
    00000006                before it, newest first, at most HISTORY
    check 3f2a…             XXH3-64 (16 hex digits) of the lines above and the line's name

It is replaced as a whole, so going live and going back are one atomic step each.
"""

from __future__ import annotations

from dataclasses import dataclass

import xxhash

from cache_store.errors import Damaged, NothingPublished
from cache_store.layout import _GENERATION, Layout, storage_errors, write_file

HISTORY = 16
"""Earlier live generations that a pointer remembers."""


@dataclass(frozen=True)
class Pointer:
    """Live generation of a line, and those it can go back to, newest first."""

    live: str
    earlier: tuple[str, ...] = ()

    def then(self, generation: str) -> Pointer:
        """The pointer after ``generation`` goes live."""
        rest = [g for g in (self.live, *self.earlier) if g != generation]
        return Pointer(generation, tuple(rest[:HISTORY]))

    def text(self, line: str) -> str:
        body = "".join(f"{g}\n" for g in (self.live, *self.earlier))
        return f"{body}check {_check(body, line)}\n"


def _check(body: str, line: str) -> str:
    return xxhash.xxh3_64_hexdigest(f"{line}\n{body}".encode())


def read_pointer(layout: Layout, line: str) -> Pointer | None:
    """Pointer of a line, or None where the line has none.

    Raises:
        Damaged: not a pointer of this line.
    """
    path = layout.pointer(line)
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return None
    remedy = f"write it anew with `vista promote --line {line} GENERATION`"
    try:
        text = raw.decode("ascii")
    except UnicodeDecodeError as error:
        raise Damaged(f"{path}: not a pointer; {remedy}") from error
    body, separator, check = text.rpartition("check ")
    names = body.split()
    if not separator or check != _check(body, line) + "\n" or not names:
        raise Damaged(f"{path}: check fails; {remedy}")
    if not all(_GENERATION.fullmatch(n) for n in names):
        raise Damaged(f"{path}: names no generation; {remedy}")
    return Pointer(names[0], tuple(names[1:]))


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
