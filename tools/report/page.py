"""``vista report``: one HTML file, no network and no script, of everything there is to look at in a home."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tools import console
from tools.report.health import Health


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
    caption: str = ""


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


@dataclass
class Page:
    """All of it."""

    title: str
    subtitle: str
    health: Health
    facts: list[Fact] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)
    footer: str = ""


def render(page: Page) -> str:
    """The page as HTML. Whatever comes from data is escaped, and controls in it are shown as escapes."""
    import jinja2

    folder = Path(__file__).parent / "pages"
    # finalize sees every value that is put in, so that no name of the data is forgotten.
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder), autoescape=True, trim_blocks=True, finalize=_shown
    )
    return environment.get_template("report.html.j2").render(page=_view(page))


def _shown(value: Any) -> Any:
    return value if hasattr(value, "__html__") else console.safe(str(value))


def _view(page: Page) -> dict[str, Any]:
    kind = {0: "", 3: "look", 4: "wrong"}[page.health.code]
    if page.health.problems:
        text = page.health.problems[0].what
        more = len(page.health.problems) - 1
        text = f"{'Wrong' if kind == 'wrong' else 'Look'}: {text}" + (f", and {more} more" if more else "")
    elif page.health.store and "live" in page.health.store:
        text = "Healthy"
    else:
        text, kind = "Not serving yet: there is no store", "look"
    return {
        "title": page.title,
        "subtitle": page.subtitle,
        "verdict": {"kind": kind, "text": text},
        "problems": page.health.problems,
        "facts": page.facts,
        "sections": [
            {"name": s.name, "title": s.title, "says": s.says, "figures": [_figure(f) for f in s.figures]}
            for s in page.sections if s.figures
        ],
        "footer": page.footer,
    }  # fmt: skip


def _figure(f: Exhibit) -> dict[str, Any]:
    import markupsafe

    rows = [list(row) for row in f.rows]
    numeric = [
        bool(rows) and all(isinstance(row[k], (int, float, type(None))) for row in rows) and any(
            row[k] is not None for row in rows)
        for k in range(len(f.columns))
    ]  # fmt: skip
    return {
        "name": f.name, "title": f.title, "says": f.says, "columns": f.columns, "numeric": numeric,
        "caption": f.caption, "svg": markupsafe.Markup(f.svg), "rows": [[console.number(c) for c in r] for r in rows],
    }  # fmt: skip
