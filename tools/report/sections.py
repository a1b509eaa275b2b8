"""The sections of the report: each takes what was found and gives charts with their tables; empty where nothing is."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools import console
from tools.report import charts, run_history
from tools.report.health import size
from tools.report.page import Exhibit, Section

if TYPE_CHECKING:
    from cache_store.format.manifest import Manifest
    from cache_store.store import Store

HOUR_MS = 3_600_000
KEPT_POINTS = 400
"""Points of a curve that are drawn; more cannot be told apart."""


def training(model: Path) -> Section:
    """Loss by step, of ``MODEL.training/curve.jsonl``."""
    rows = _curve(model.with_name(f"{model.name}.training") / "curve.jsonl")
    figures: list[Exhibit] = []
    if rows:
        parts = [k for k in rows[-1] if k not in ("step", "seconds", "loss", "gradient_norm", "lr")]
        every = max(1, len(rows) // KEPT_POINTS)
        thin = [*rows[:-1:every], rows[-1]]
        steps = [r["step"] for r in thin]
        series = {k: (steps, [_float(r.get(k)) for r in thin]) for k in ("loss", *parts)}
        first, last = rows[0], rows[-1]
        says = (
            f"Loss {_float(first['loss']):.3g} at step {first['step']}, {_float(last['loss']):.3g} at step "
            f"{last['step']}, after {last['seconds']:,.0f} s."
        )
        shown = [*thin[:: max(1, len(thin) // 8)], rows[-1]] if len(thin) > 9 else thin
        columns = ["step", "seconds", "loss", *parts]
        table = [[r["step"], *(_float(r.get(k)) for k in columns[1:])] for r in shown]
        svg = charts.lines("training", "Training loss by step", says, series, "step", "loss", "y")
        figures.append(Exhibit("training-loss", "Training curves", says, svg, columns, table))
    says = "How training went, and how well the model ranks what it has not seen."
    return Section("model", "The model", says, figures)


HEADLINES = (
    "ranking.auc", "ranking.gauc", "ranking.mrr", "retrieval.recall@100", "baseline.popularity.ranking.auc",
    "baseline.constant.ranking.auc",
)  # fmt: skip
SLICES = {
    "history_events": ("Ranking by length of the history", "events that the summary has seen"),
    "summary_age": ("Ranking by age of the summary", "time from its last event to the request"),
    "last_touch": ("Ranking by age of the last touch", "time since the user last touched the item"),
}


def quality(model: Mapping[str, Any] | None, evaluation: Mapping[str, Any] | None) -> list[Exhibit]:
    """Figures of a bundle, and AUC by slice of its last evaluation."""
    figures: list[Exhibit] = []
    own = {k: {"value": v} for k, v in (model or {}).items() if isinstance(v, float)}
    found = (evaluation or {}).get("measures") or own
    rows = [(k, m.get("value"), m.get("low"), m.get("high")) for k, m in found.items()]
    rows = [r for r in rows if r[1] is not None]
    head = [r for r in rows if r[0] in HEADLINES]
    if head:
        verdict, title = (evaluation or model or {}).get("verdict", ""), "Quality on held-out requests"
        svg = charts.intervals("quality", title, verdict, head, "value, 95 % interval")
        columns = ("measure", "value", "low", "high")
        figures.append(Exhibit("quality-all", title, f"In words: {verdict}.", svg, columns, rows))
    for key, parts in ((evaluation or {}).get("slices") or {}).items():
        if parts and key in SLICES:
            figures.append(_sliced(key, parts))
    return figures


def _sliced(key: str, rows: Sequence[Mapping[str, Any]]) -> Exhibit:
    title, what = SLICES[key]
    best, worst = max(rows, key=lambda r: r["auc"]), min(rows, key=lambda r: r["auc"])
    says = (
        f"By {what}: from {worst['auc']:.3f} ({worst['slice']}) to {best['auc']:.3f} ({best['slice']}); "
        f"0.5 is a coin toss."
    )
    name = key.replace("_", "-")
    points = [(r["slice"], r["auc"], r["low"], r["high"]) for r in rows]
    svg = charts.intervals(name, title, says, points, "AUC, 95 % interval", 0.5)
    table = [(r["slice"], r["requests"], r["auc"], r["low"], r["high"], r["mrr"]) for r in rows]
    return Exhibit(f"by-{name}", title, says, svg, ("slice", "requests", "AUC", "low", "high", "MRR"), table)


def studies(files: Iterable[Path]) -> Section:
    """What ``vista study`` and ``vista bench`` found: files that hold their JSON lines."""
    figures: list[Exhibit] = []
    for file in files:
        for report in _json_lines(file):
            named = str(report.get("bench", file.stem))
            rows = [
                (k, f["value"], f.get("low"), f.get("high"), f.get("unit", ""))
                for k, f in (report.get("figures") or {}).items()
                if isinstance(f, dict) and isinstance(f.get("value"), (int, float))
            ]
            if not rows:
                continue
            units, svg, number = {r[4] for r in rows}, "", len(figures)
            if len(units) == 1:  # else they share no axis
                points, unit = [r[:4] for r in rows], units.pop() or "value"
                svg = charts.intervals(f"study-{number}", named, "its figures", points, unit)
            says = "; ".join(map(str, report.get("notes") or ())) or f"from {file.name}"
            columns = ("figure", "value", "low", "high", "unit")
            figures.append(Exhibit(f"study-figure-{number}", named, says, svg, columns, rows))
    says = "Results of `vista study` and `vista bench` that were kept."
    return Section("studies", "What summaries are worth", says, figures)


def span(hours: float) -> str:
    """A length of time in the unit that a person would take."""
    for unit, length in (("d", 72.0), ("h", 2.0)):
        if abs(hours) >= length:
            return f"{hours / (24 if unit == 'd' else 1):,.0f} {unit}"
    return f"{hours * 60:,.0f} min" if abs(hours) >= 2 / 60 else f"{hours * 3_600:,.0f} s"


def freshness(
    store: Store, users: Sequence[Any], kept: Sequence[Manifest], runs: Sequence[run_history.PastRun]
) -> Section:
    """The three clocks over users, how old the newest event was at each publication, and how often was published."""
    now = time.time() * 1000
    figures: list[Exhibit] = []
    found = store.lookup_raw(list(users)) if len(users) else None
    if found is not None and (found.event_count > 0).any():
        there = found.event_count > 0
        since = {
            "last event": (now - found.last_event_ms[there]) / HOUR_MS,
            "summarised": (now - found.summarized_ms[there]) / HOUR_MS,
        }
        rows: list[tuple[Any, ...]] = [(name, *map(span, _quantiles(hours))) for name, hours in since.items()]
        published = span((now - store.manifest.published_ms) / HOUR_MS)
        rows.append(("published", *[published] * 5))
        says = (
            f"Time since each user's last event and summary, of {int(there.sum()):,} users; the live generation "
            f"was published {published} ago."
        )
        svg = charts.shares("clocks", "Three clocks", says, since, "hours ago")
        columns: Sequence[str] = ("time since", "least", "10 %", "median", "90 %", "most")
        figures.append(Exhibit("three-clocks", "Three clocks", says, svg, columns, rows))
    main = [m for m in kept if m.line == store.line]
    if main:
        seconds = {r.facts.get("generation"): r.seconds for r in runs if r.job in run_history.PUBLISHERS}
        age = [(m.published_ms - m.watermark_ms) / HOUR_MS for m in main]
        rows = [(m.generation, m.kind, console.when(m.published_ms), span(a), seconds.get(m.generation))
                for m, a in zip(main, age, strict=True)]  # fmt: skip
        says = (
            f"Age of the newest event when its generation went live; of the last, {main[-1].generation}: "
            f"{span(age[-1])}."
        )
        unit, length = ("days", 24) if max(age) > 72 else ("hours", 1)
        drawn = [a / length for a in age]
        svg = charts.over_time("lag", "Lag at publication", says, [m.published_ms for m in main], drawn, unit)
        columns = ("generation", "kind", "published", "behind", "seconds to make")
        figures.append(Exhibit("lag-over-time", "Lag of refreshes over time", says, svg, columns, rows))
    return Section("freshness", "Freshness", "How old is what readers get: by the newest event, by when it was "
                   "summarised, by when it went live.", figures)  # fmt: skip


def store(opened: Store, users: Sequence[Any], kept: Sequence[Manifest]) -> Section:
    """Generations by size and depth, bytes of a record, lengths of histories."""
    newest = list(reversed(kept))
    rows = [
        (m.generation, m.line, m.kind, m.depth, m.records, m.tombstones, m.dead_letters, m.bytes / 2**20,
         console.when(m.published_ms)) for m in newest
    ]  # fmt: skip
    drawn = [
        (f"{m.generation} {m.kind}", {part: _bytes(m, part) / 2**20 for part in ("shard", "state")})
        for m in newest[:12]
    ]
    total, depth = size(sum(m.bytes for m in kept)), opened.manifest.depth
    others = f"{depth} other{'' if depth == 1 else 's'}"
    says = f"{len(kept)} kept, {total} together; the live one lies on {others}."
    columns: Sequence[str] = (
        "generation", "line", "kind", "depth", "users", "gone", "dead", "MiB", "published",
    )  # fmt: skip
    svg = charts.bars("sizes", "Bytes of generations", says, drawn, "MiB")
    figures = [Exhibit("generations", "Generations by size and depth", says, svg, columns, rows)]
    schema = opened.manifest.schema
    groups = [(g.name, g.tokens, g.width, g.codec, schema.dtype[g.name].itemsize) for g in schema.groups]
    says = f"{schema.record_bytes:,} bytes a user, {schema.tokens} tokens of width {schema.width}."
    parts = [("a record", {g[0]: g[4] for g in groups})]
    svg = charts.bars("record", "Bytes of a record", says, parts, "bytes")
    columns = ("group", "tokens", "width", "codec", "bytes")
    figures.append(Exhibit("record-bytes", "What a user's record holds", says, svg, columns, groups))
    found = opened.lookup_raw(list(users)) if len(users) else None
    if found is not None and (found.event_count > 0).any():
        lengths = found.event_count[found.event_count > 0]
        says = f"Events that the summaries of {len(lengths):,} users have seen."
        svg = charts.counts("lengths", "Lengths of histories", says, lengths, "events")
        columns = ("events", "least", "10 %", "median", "90 %", "most")
        table = [("of a user", *_quantiles(lengths))]
        figures.append(Exhibit("history-lengths", "Lengths of histories", says, svg, columns, table))
    return Section("store", "The store", "What is kept, how deep it lies, what a user costs.", figures)


def lookups(opened: Store, users: Sequence[Any], missing: int | None) -> Section:
    """Latency measured while the report is made, and the misses that are to be expected."""
    import numpy as np

    if not len(users):
        return Section("lookups", "Lookups", "", [])
    rng, rows, drawn = np.random.default_rng(0), [], {}
    for batch in (1, 64, 256):
        seconds = []
        for _ in range(12):
            asked = [users[i] for i in rng.integers(0, len(users), batch)]
            start = time.perf_counter()
            opened.lookup(asked)
            seconds.append(time.perf_counter() - start)
        middle, tail = (1e3 * float(np.quantile(seconds[1:], q)) for q in (0.5, 0.95))
        rows.append((batch, middle, tail, batch / max(middle / 1e3, 1e-9)))
        drawn[batch] = (middle, tail)
    says = "Measured on this machine while the report was made; the first read of a page comes from the disk."
    points = [(f"{b} user{'s'[: b != 1]}, median", m, m, t) for b, (m, t) in drawn.items()]
    svg = charts.intervals("latency", "Latency of a lookup", says, points, "ms, to the 95th percentile")
    figures = [Exhibit("latency", "Latency of a lookup", says, svg,
                      ("batch", "median ms", "95 % ms", "users a second"), rows)]  # fmt: skip
    counts = opened.counters.as_dict()
    asked = [(name, counts[name]) for name in ("users", "fresh", "stale", "missing", "corrupt")]
    table = [*asked, ("new users of the tables", missing), ("dead letters of the live generation",
                                                             opened.manifest.dead_letters)]  # fmt: skip
    figures.append(Exhibit("misses", "Misses", "What the lookups above found, and who would be MISSING now: users "
                          "whose first events came after the live generation, and its dead letters.", "",
                          ("", "users"), table))  # fmt: skip
    return Section("lookups", "Lookups", "How fast, and for whom there is nothing.", figures)


def runs(found: Sequence[run_history.PastRun]) -> Section:
    """What the last runs did and cost."""
    figures: list[Exhibit] = []
    if found:
        rows = [
            (r.path.name, r.outcome, None if r.seconds is None else float(r.seconds), r.counts.get("users", 0),
             r.counts.get("events", 0), r.counts.get("dead_letters", 0),
             (r.facts.get("peak_memory_bytes") or 0) / 2**20) for r in found
        ]  # fmt: skip
        drawn = [(r.path.name, {"seconds": r.seconds or 0.0}) for r in found[:12]]
        bad = sum(r.bad for r in found)
        says = f"The last {len(found)}; {bad or 'none'} ended badly."
        svg = charts.bars("runs", "Seconds of the last runs", says, drawn, "seconds")
        columns = ("run", "outcome", "seconds", "users", "events", "dead", "peak MiB")
        figures.append(Exhibit("last-runs", "The last runs", says, svg, columns, rows))
    return Section("runs", "Runs", "What ran last, how it ended, what it cost.", figures)


def _curve(path: Path) -> list[dict[str, Any]]:
    """Rows of a loss curve that have a step, a time and a loss."""
    numbers: dict[str, Any] = {"step": int, "seconds": (int, float), "loss": (int, float)}
    return [r for r in _json_lines(path) if all(isinstance(r.get(k), kind) for k, kind in numbers.items())]


def _json_lines(path: Path) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return []
    found = []
    for row in text.splitlines():
        with contextlib.suppress(ValueError):
            found.append(json.loads(row))
    return [value for value in found if isinstance(value, dict)]


def _float(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else float("nan")


def _quantiles(values: Any) -> list[float]:
    import numpy as np

    return [float(v) for v in np.quantile(np.asarray(values, float), (0, 0.1, 0.5, 0.9, 1))]


def _bytes(m: Manifest, prefix: str) -> int:
    return sum(fact.bytes for name, fact in m.files.items() if name.startswith(f"{prefix}-"))
