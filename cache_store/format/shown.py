"""How a store and what it gives are shown in a notebook and at a prompt: few words, and nothing read as markup."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from html import escape


def text(kind: str, facts: Mapping[str, object]) -> str:
    """One line: ``Kind(first, name second, ...)``; the values of "" stand alone."""
    return f"{kind}({', '.join(f'{name} {value}'.strip() for name, value in facts.items())})"


def html(kind: str, facts: Mapping[str, object]) -> str:
    """The same as a table of names and values, all of it escaped."""
    rows = "".join(f"<tr><th>{escape(n)}</th><td>{escape(str(v))}</td></tr>" for n, v in facts.items())
    return f"<table><caption>{escape(kind)}</caption>{rows}</table>"


def size(n: int) -> str:
    """Bytes for a person."""
    power = min(max(n, 1).bit_length() - 1, 49) // 10
    return f"{n / 1024**power:,.{min(power, 1)}f} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"


def when(ms: int) -> str:
    """Milliseconds since 1970 as UTC text; the number where no date has it."""
    try:
        return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError, OSError):
        return f"{ms} ms"
