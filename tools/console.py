"""How the command line speaks: results on stdout, everything else on stderr, one JSON line where asked.

Errors a user can cause carry an ``exit_code`` and a text that names the remedy; they are printed as one
paragraph, never as a stack trace. ``vista --debug VERB`` shows the trace.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

out = Console(soft_wrap=True)
err = Console(stderr=True, soft_wrap=True)
if not out.is_terminal:
    out.width = 140  # a file or a pipe has no width of its own


def plain(value: Any) -> Any:
    """``value`` as JSON can hold it: numpy becomes plain Python, NaN and infinity become null."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, (str, int, float, bool)) or value is None:
        return value
    return str(value)


def json_line(value: Any) -> None:
    """One compact JSON line on stdout."""
    print(json.dumps(plain(value), separators=(",", ":"), allow_nan=False), flush=True)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table for a person on stdout; numbers are right-aligned."""
    view = Table(title=title, title_justify="left", title_style="bold")
    for k, name in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[k], (int, float)) for row in rows)
        view.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        view.add_row(*(number(cell) for cell in row))
    out.print(view)


def number(cell: Any) -> str:
    """Text of a cell: thousands separated, floats to four significant digits."""
    if isinstance(cell, bool) or cell is None:
        return "-" if cell is None else str(cell)
    if isinstance(cell, int):
        return f"{cell:,}"
    if isinstance(cell, float):
        return f"{cell:.4g}"
    return str(cell)


def fields(title: str, values: Mapping[str, Any]) -> None:
    """Name and value, a line each."""
    table(title, ("", ""), [(name, number(value)) for name, value in values.items()])


def note(text: str) -> None:
    """A line for the person watching, on stderr."""
    err.print(text, highlight=False)


@contextmanager
def progress(label: str, total: float | None) -> Iterator[Any]:
    """A bar on a terminal, silence elsewhere. Yields ``advance(amount=1)``."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=err,
        disable=not err.is_terminal,
        transient=True,
    ) as bar:
        task = bar.add_task(label, total=total)
        yield lambda amount=1: bar.advance(task, amount)


@contextmanager
def status(label: str) -> Iterator[None]:
    """A spinner with a label on a terminal, silence elsewhere."""
    if not err.is_terminal:
        yield
        return
    with err.status(label):
        yield


def when(ms: int) -> str:
    """A time in milliseconds as UTC text."""
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
