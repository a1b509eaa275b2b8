"""``vista report``: one HTML file, no network and no script, of everything there is to look at in a home."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools import console
from tools.report.health import WRONG, Health


@dataclass(frozen=True)
class Exhibit:
    """A chart, a table, or both beside each other.

    Attributes:
        name: distinct on the page.
        says: what to see in it.
        svg: of ``charts``; "" for a table alone.
        columns, rows: the same in numbers.
    """

    name: str
    title: str
    says: str
    svg: str = ""
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[Any]] = ()

    @property
    def numeric(self) -> list[bool]:
        """Whether each column has numbers, and nothing but them where something is known."""
        known = [[row[k] for row in self.rows if row[k] is not None] for k in range(len(self.columns))]
        return [bool(cells) and all(isinstance(c, (int, float)) for c in cells) for cells in known]


@dataclass(frozen=True)
class Section:
    """What belongs together, under one heading."""

    name: str
    title: str
    says: str
    figures: Sequence[Exhibit]


@dataclass(frozen=True)
class Fact:
    """A number at the top of the page."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Page:
    """All of it."""

    title: str
    subtitle: str
    health: Health
    facts: Sequence[Fact]
    sections: Sequence[Section]
    footer: str


def render(page: Page) -> str:
    """The page as HTML. Whatever comes from data is escaped, and controls in it are shown as escapes."""
    import jinja2

    folder = Path(__file__).parent / "pages"
    # finalize sees every value that is put in, so that no name of the data is forgotten.
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder), autoescape=True, trim_blocks=True, finalize=_shown
    )
    environment.filters["number"] = console.number
    return environment.get_template("report.html.j2").render(page=page, verdict=_verdict(page.health))


def _shown(value: Any) -> Any:
    return value if hasattr(value, "__html__") else console.safe(str(value))


def _verdict(found: Health) -> tuple[str, str]:
    """Its class on the page, and its text."""
    if found.problems:
        kind, word = ("wrong", "Wrong") if found.code == WRONG else ("look", "Look")
        more = len(found.problems) - 1
        return kind, f"{word}: {found.problems[0].what}" + (f", and {more} more" if more else "")
    if found.store and "live" in found.store:
        return "", "Healthy"
    return "look", "Not serving yet: there is no store"
