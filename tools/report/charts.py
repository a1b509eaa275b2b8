"""Charts of the report: Matplotlib's SVG, small, deterministic, in colours that the page decides.

A chart is drawn in stand-in colours that become CSS variables, so that one drawing reads in light, in dark and in
print; its text is text, in the page's font. Ids are made the chart's own, since a page holds several.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tools.console import safe

WIDTH, HEIGHT = 4.6, 2.7
"""Inches; 72 to the inch: the text is 10 pixels where the chart is as wide as a telephone."""
SERIES = ("#0a0001", "#0a0002", "#0a0003", "#0a0004", "#0a0005", "#0a0006")
INK, GRID = "#0b0001", "#0b0002"
COLOURS = {c: f"var(--series-{n})" for n, c in enumerate(SERIES, 1)} | {
    INK: "var(--muted)",
    GRID: "var(--grid)",
}
MARKERS, DASHES = "osD^vP", ("-", "--", ":", "-.", (0, (5, 1)), (0, (1, 1)))
LONGEST = 32
"""Characters of a label."""
STYLE: Any = {
    "svg.fonttype": "none", "svg.hashsalt": "vista", "text.parse_math": False,
    "font.family": "sans-serif", "font.size": 10,
    "axes.edgecolor": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "text.color": INK,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": GRID,
    "grid.linewidth": 0.6, "axes.axisbelow": True, "legend.frameon": False, "legend.fontsize": 9,
    "lines.linewidth": 1.8, "lines.markersize": 4, "path.simplify": True, "path.simplify_threshold": 0.5,
}  # fmt: skip


def chart(name: str, title: str, says: str, draw: Callable[[Any], None], height: float = HEIGHT) -> str:
    """An SVG element.

    Args:
        name: distinct on the page.
        title: what is drawn.
        says: what one sees, for who does not.
        draw: draws on Matplotlib axes.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _own(out.getvalue(), name, title, says)


def _own(svg: str, name: str, title: str, says: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\1{name}-", svg)
    svg = re.sub(r"#0[ab]000\d", lambda m: COLOURS.get(m[0], m[0]), svg)
    svg = re.sub(r"font: (\d[\d.]*)px [^;\"]*", r"font-size: \1px", svg)
    head = (
        f'<svg class="chart" role="img" aria-labelledby="{name}-title {name}-says" viewBox="'
        + re.search(r'viewBox="([^"]+)"', svg)[1]  # type: ignore[index]
        + '" xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
        + f'<title id="{name}-title">{html.escape(safe(title))}</title>'
        + f'<desc id="{name}-says">{html.escape(safe(says))}</desc>'
    )
    return re.sub(r"<svg[^>]*>", lambda _: head, svg, count=1)


def lines(name: str, title: str, says: str, series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
          x: str, y: str, log: str = "") -> str:  # fmt: skip
    """Lines over one axis; more than one has a legend, and each its own dash."""

    def draw(axes: Any) -> None:
        for n, (label, (xs, ys)) in enumerate(series.items()):
            few = MARKERS[n % 6] if len(xs) < 30 else ""
            axes.plot(xs, ys, color=SERIES[n % 6], linestyle=DASHES[n % 6], marker=few, label=_label(label))
        axes.set(xlabel=x, ylabel=y)
        for letter in log:
            getattr(axes, f"set_{letter}scale")("log")
            _plain(getattr(axes, f"{letter}axis"))
        if len(series) > 1:
            axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)

    return chart(name, title, says, draw)


def intervals(name: str, title: str, says: str, rows: Sequence[Sequence[Any]],
              x: str, at: float | None = None) -> str:  # fmt: skip
    """A value with its interval on each row (name, value, low, high), first on top; ``at``: a line to compare."""

    def draw(axes: Any) -> None:
        places = range(len(rows), 0, -1)
        values = [value for _, value, *_ in rows]
        spread = [[0.0 if low is None else max(value - low, 0.0) for _, value, low, _ in rows],
                  [0.0 if high is None else max(high - value, 0.0) for _, value, _, high in rows]]  # fmt: skip
        axes.errorbar(values, list(places), xerr=spread, fmt="o", color=SERIES[0], capsize=3)
        axes.set_yticks(list(places), [_label(r[0]) for r in rows])
        axes.set_ylim(0.4, len(rows) + 0.6)
        axes.grid(axis="y", visible=False)
        axes.set(xlabel=_label(x))
        if at is not None:
            axes.axvline(at, color=INK, linestyle="--", linewidth=1)

    return chart(name, title, says, draw, height=max(1.2, 0.7 + 0.28 * len(rows)))


def bars(name: str, title: str, says: str, rows: Sequence[tuple[str, Mapping[str, float]]], x: str) -> str:
    """Horizontal bars, the parts of each stacked and told apart by colour and hatch; first on top."""

    def draw(axes: Any) -> None:
        places = list(range(len(rows), 0, -1))
        parts = list(dict.fromkeys(part for _, row in rows for part in row))
        left = [0.0] * len(rows)
        for n, part in enumerate(parts):
            widths = [row.get(part, 0.0) for _, row in rows]
            axes.barh(places, widths, left=left, height=0.62, color=SERIES[n % 6], label=_label(part))
            left = [a + b for a, b in zip(left, widths, strict=True)]
        axes.set_yticks(places, [_label(label) for label, _ in rows])
        axes.grid(axis="y", visible=False)
        axes.set(xlabel=_label(x))
        _thousands(axes.xaxis)
        if len(parts) > 1:
            axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)

    return chart(name, title, says, draw, height=max(1.4, 0.9 + 0.28 * len(rows)))


def counts(name: str, title: str, says: str, values: Any, x: str) -> str:
    """A histogram over a log axis."""
    import numpy as np

    def draw(axes: Any) -> None:
        data = np.maximum(np.asarray(values, float), 1)
        low, high = np.log10(data.min()), np.log10(data.max())
        axes.set_xscale("log")
        axes.hist(data, np.logspace(low, max(high, low + 0.1), 25), color=SERIES[0])
        axes.set(xlabel=x, ylabel="users")
        _plain(axes.xaxis)

    return chart(name, title, says, draw)


def shares(name: str, title: str, says: str, series: Mapping[str, Any], x: str) -> str:
    """How large a share is at or below each value, one line for each set of values; log axis."""
    import numpy as np

    at = np.linspace(0, 1, 101)

    def draw(axes: Any) -> None:
        for n, (label, values) in enumerate(series.items()):
            data = np.quantile(np.maximum(np.asarray(values, float), 1e-2), at)
            axes.plot(data, 100 * at, color=SERIES[n], linestyle=DASHES[n], label=_label(label))
        axes.set_xscale("log")
        axes.set(xlabel=x, ylabel="% of users")
        _plain(axes.xaxis)
        axes.legend()

    return chart(name, title, says, draw)


def over_time(
    name: str, title: str, says: str, times_ms: Sequence[int], values: Sequence[float], y: str
) -> str:
    """One value over time, UTC."""
    from datetime import UTC, datetime

    def draw(axes: Any) -> None:
        from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

        at = [datetime.fromtimestamp(ms / 1000, UTC) for ms in times_ms]
        axes.plot(at, values, color=SERIES[0], marker="o" if len(at) < 60 else "")
        locator = AutoDateLocator(maxticks=6)
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
        axes.set(ylabel=y)
        axes.set_ylim(0, max([*values, 1e-3]) * 1.15)
        _thousands(axes.yaxis)

    return chart(name, title, says, draw)


def _label(text: str) -> str:
    """A name of the data as a label: safe, and no longer than a chart has room for."""
    shown = safe(text)
    return shown if len(shown) <= LONGEST else shown[: LONGEST - 1] + "…"


def _thousands(axis: Any) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.set_major_locator(MaxNLocator(5))
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}" if abs(v) >= 10 else f"{v:g}"))


def _plain(axis: Any) -> None:
    """Numbers of a log axis as numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(numticks=6))
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}" if v >= 1 else f"{v:g}"))
    axis.set_minor_formatter(NullFormatter())
