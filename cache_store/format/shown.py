"""How a store and what it gives are shown in a notebook and at a prompt: few words, and nothing read as markup."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from html import escape


class Shown:
    """Names and values of ``_shown`` as one line, those of "" without a name; in a notebook as a table, escaped."""

    def _shown(self) -> Mapping[str, object]:
        raise NotImplementedError

    def __repr__(self) -> str:
        facts = ", ".join(f"{name} {value}".strip() for name, value in self._shown().items())
        return f"{type(self).__name__}({facts})"

    def _repr_html_(self) -> str:
        facts = self._shown().items()
        rows = "".join(f"<tr><th>{escape(n)}</th><td>{escape(str(v))}</td></tr>" for n, v in facts)
        return f"<table><caption>{type(self).__name__}</caption>{rows}</table>"


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
