"""How the command line speaks: results on stdout, everything else on stderr, one JSON line where asked.

Errors a user can cause carry an ``exit_code`` and a text that names the remedy; they are printed as one
paragraph, never as a stack trace. ``vista --debug VERB`` shows the trace.

Whatever comes out of data, a file's name included, is text and nothing else here: no markup is read from it, and
characters that steer a terminal are shown as escapes (:func:`safe`).
"""

from __future__ import annotations

import json
import math
import os
import sys
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

out = Console(soft_wrap=True, markup=False, emoji=False, highlight=False)
err = Console(stderr=True, soft_wrap=True, markup=False, emoji=False, highlight=False)
if not out.is_terminal and "COLUMNS" not in os.environ:
    out.width = 80  # a file or a pipe has no width of its own

LEAST_FOLDED = 12
JOINERS = "\u200c\u200d"
"""Format characters that scripts and emoji need and that steer nothing."""


def safe(text: str) -> str:
    """``text`` with every character that steers a terminal as an escape: controls, ESC, bidi marks, lone surrogates.

    Tabs and line breaks are escaped too; who prints several lines calls this for each.
    """
    return text if text.isprintable() else "".join(map(_shown, text))


def _shown(character: str) -> str:
    if character.isprintable() or character in JOINERS or unicodedata.category(character) == "Zs":
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def encodable() -> None:
    """Let a stream that cannot hold a character print its escape rather than fail."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


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
    """A table for a person on stdout; numbers are right-aligned. What is too wide goes without lines, and folds its
    widest column alone where that keeps ``LEAST_FOLDED`` letters."""
    names = [safe(name) for name in columns]
    cells = [[safe(number(cell)) for cell in row] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(names, *cells, strict=True)]
    room = out.width - sum(widths) - 2 * (len(widths) - 1)  # without lines
    view = Table(title=Text(safe(title)) if title else None, title_justify="left", title_style="bold",
                 show_header=any(columns))  # fmt: skip
    for k, name in enumerate(names):
        numeric = bool(rows) and all(isinstance(row[k], (int, float)) for row in rows)
        whole = k != widths.index(max(widths)) and room + max(widths) >= LEAST_FOLDED
        view.add_column(Text(name), justify="right" if numeric else "left", overflow="fold", no_wrap=whole)
    for row in cells:
        view.add_row(*map(Text, row))
    if view.__rich_measure__(out, out.options.update(max_width=10_000)).maximum > out.width:
        view.box, view.pad_edge = None, False
    out.print(view)


def number(cell: Any) -> str:
    """Text of a cell: thousands separated, floats to four significant digits."""
    if isinstance(cell, bool) or cell is None:
        return "-" if cell is None else str(cell)
    if isinstance(cell, int):
        return f"{cell:,}"
    if isinstance(cell, float):
        return f"{cell:,.0f}" if 1_000 <= abs(cell) < 1e15 else f"{cell:.4g}"
    if isinstance(cell, (list, tuple)):
        return ", ".join(map(str, cell)) or "none"
    return str(cell)


def fields(title: str, values: Mapping[str, Any]) -> None:
    """Name and value, a line each."""
    table(title, ("", ""), [(name, number(value)) for name, value in values.items()])


def told(title: str, found: Mapping[str, Any], json: bool) -> None:
    """A result: one JSON line where that was asked, else name and value."""
    json_line(found) if json else fields(title, found)


def line(text: str, style: str | None = None, width: int | None = None) -> None:
    """A line for a person on stdout, broken at ``width``."""
    import textwrap

    shown = safe(text)
    indent = " " * (len(shown) - len(shown.lstrip()) + 2)
    parts = textwrap.wrap(shown, width or out.width, subsequent_indent=indent, break_on_hyphens=False)
    for part in parts or [""]:
        out.print(Text(part, style or ""))


def grid(rows: Sequence[tuple[str, str]], width: int) -> None:
    """Name and text, no borders, within ``width`` columns."""
    view = Table.grid(padding=(0, 2))
    view.add_column(style="bold", no_wrap=True)
    view.add_column(overflow="fold")
    for name, text in rows:
        view.add_row(Text(safe(name)), Text(safe(text)))
    out.print(view, width=min(width, out.width))


def note(text: str) -> None:
    """Lines for the person watching, on stderr."""
    err.print("\n".join(map(safe, text.split("\n"))))


def failure(kind: str, text: str) -> None:
    """An error: what kind it is, and its paragraph, on stderr."""
    err.print(Text(f"{kind}:", "bold red"), end=" ")
    note(text)


@contextmanager
def status(label: str) -> Iterator[None]:
    """A spinner with a label on a terminal, silence elsewhere."""
    if not err.is_terminal:
        yield
        return
    with err.status(Text(safe(label))):
        yield


def when(ms: int) -> str:
    """A time in milliseconds as UTC text."""
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
