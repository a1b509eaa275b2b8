"""Files that a verb writes for a person: in one step, and over nothing but what the same verb wrote before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import typer

from vista import small_text


def refuse_foreign(path: Path, option: str, ours: Callable[[Path], bool]) -> None:
    """Refuse a place where something is that this verb did not write: a device, a pipe, a folder, another's file.

    Args:
        ours: whether a file that is there was written by this verb.

    Raises:
        typer.BadParameter
    """
    if path.exists() and not (path.is_file() and (not path.stat().st_size or ours(path))):
        raise typer.BadParameter(
            f"{option} {path}: expected no file, or one that this command wrote, found another; name another file"
        )


@contextmanager
def replacing(path: Path, option: str, ours: Callable[[Path], bool]) -> Iterator[BinaryIO]:
    """A file beside ``path`` to be written, which takes its place when the block ends well.

    Raises:
        typer.BadParameter: as :func:`refuse_foreign`.
    """
    refuse_foreign(path, option, ours)
    with small_text.replacing(path) as file:
        yield file
