"""Whether a home is as it should be: what is wrong, most urgent first, each with the command that comes next."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tools import invocation
from tools.home import Home, holds_bundle
from tools.report import run_history, store_seen
from tools.report.tables_seen import TablesSeen

HEALTHY, ATTENTION, WRONG = 0, 3, 4
"""Exit codes of ``vista status``; 2 where there is nothing at all."""
MAX_DEPTH = 7
HOUR_MS = 3_600_000


@dataclass(frozen=True)
class AgeLimits:
    """When age becomes a problem, in hours.

    Attributes:
        lag: the tables have had events that the store lacks for so long; where there are no tables here, since
            publication.
        event_age: since the newest event of the live generation; None does not look, for logs may be of long ago.
    """

    lag: float = 26.0
    event_age: float | None = None


@dataclass(frozen=True)
class Trouble:
    """One thing that is not as it should be.

    Attributes:
        code: ``WRONG``, what is served is at stake; or ``ATTENTION``, it is served but somebody should look.
        what: a sentence.
        command: what to run next.
        paragraph: of docs/operations.md.
    """

    code: int
    what: str
    command: str
    paragraph: str


@dataclass
class Health:
    """What was found, as ``vista status --json`` prints it."""

    home: str
    problems: list[Trouble] = field(default_factory=list)
    warehouse: dict[str, Any] | None = None
    model: dict[str, Any] | None = None
    store: dict[str, Any] | None = None
    runs: list[run_history.PastRun] = field(default_factory=list)

    @property
    def code(self) -> int:
        return max((p.code for p in self.problems), default=HEALTHY)

    @property
    def there(self) -> bool:
        """Whether anything is there at all."""
        return bool(self.warehouse or self.model or self.store or self.runs)

    def as_dict(self) -> dict[str, Any]:
        return {
            "healthy": self.code == HEALTHY,
            "exit_code": self.code,
            "problems": [asdict(p) for p in self.problems],
            "home": self.home,
            "warehouse": self.warehouse,
            "model": self.model,
            "store": self.store,
            "runs": [run.as_dict() for run in self.runs],
        }


def look(at: Home, *, limits: AgeLimits | None = None, last: int = 5, keep: bool = False) -> Health:
    """Look at everything that shows without reading every byte.

    Args:
        last: runs to tell.
        keep: note in the home what was read of the tables, so that the next look need not (``tables_seen``).

    Raises:
        VistaError: the catalog or the bundle cannot be read.
    """
    from cache_store.format.layout import holds_store

    limits, now_ms = limits or AgeLimits(), int(time.time() * 1000)
    found = Health(str(at.root))
    everything = run_history.runs(at.runs)
    found.runs = everything[:last]
    store, tables = at.store, TablesSeen(at.tables, at.store, at.root, keep)
    found.warehouse = tables.overview
    found.model = _model(at.model)
    if holds_store(store):
        _store(found, store, tables, limits, now_ms)
    if found.model and found.model["verdict"].startswith("worse than"):
        _add(found, ATTENTION, f"the model is {found.model['verdict']}", "A bad model", "train")
    _runs(found, everything)
    if found.warehouse and found.warehouse["buckets due"]:
        due = found.warehouse["buckets due"]
        _add(found, ATTENTION, f"{due} buckets of the tables have many small files", "Many small files",
             "compact", "tables")  # fmt: skip
    found.problems.sort(key=lambda p: -p.code)
    return found


def _add(found: Health, code: int, what: str, paragraph: str, *words: object) -> None:
    command = invocation.command(*words, "--home", found.home)
    found.problems.append(Trouble(code, what, command, paragraph))


def _model(path: Path) -> dict[str, Any] | None:
    if not holds_bundle(path):
        return None
    from vista import bundle
    from vista.training.verdict import verdict

    meta, fingerprint = bundle.read_meta(path)
    return {"path": str(path), "fingerprint": fingerprint, "verdict": verdict(meta.metrics), **meta.metrics}


def _store(found: Health, path: Path, tables: TablesSeen, limits: AgeLimits, now_ms: int) -> None:
    from cache_store import Store
    from cache_store.errors import StoreError
    from cache_store.format import lines

    store = Store(path)
    names = store.layout.line_names()
    live: dict[str, str | None] = {}
    for name in names:
        try:
            live[name] = lines.live(store.layout, name).live
        except StoreError as error:
            live[name] = None
            code = WRONG if name == "main" else ATTENTION
            _add(found, code, f"line {name}: {error}", "A damaged store", "verify")
    found.store = {
        "path": str(path),
        "read by": store.kernel,
        "lines": live,
        "some users": {},
        "generations": [store_seen.as_row(m, now_ms) for m in store.generations()],
        "readers": store_seen.readers(store),
        "free bytes": store_seen.free_bytes(path),
    }
    served = [live["main"]] if live.get("main") else []  # other lines are under construction, or refused
    damaged = store_seen.damage(store, [g for g in served if g])
    try:
        kept = store.prune(dry_run=True).kept if damaged else {}
    except StoreError:
        kept = {}
    for d in damaged:
        back = "rollback" if d.live else "prune" if kept and d.generation not in kept else "verify"
        _add(found, WRONG if d.live else ATTENTION, f"generation {d.generation} is damaged: {d.what}",
             "A damaged store", back)  # fmt: skip
    if "main" not in live:
        _add(found, WRONG, "the store has no live generation", "Nothing is live", "summarize")
    for name in names:
        if live[name]:
            try:
                _line(found, path, name, tables, limits, now_ms)
            except StoreError as error:
                found.store["some users"][name] = []
                if name == "main" and not any(p.code == WRONG for p in found.problems):
                    _add(found, WRONG, f"line {name}: {error}", "A damaged store", "verify")


def _line(found: Health, path: Path, name: str, tables: TablesSeen, limits: AgeLimits, now_ms: int) -> None:
    """Facts of a line's live generation; clocks, lag and space of ``main``."""
    from cache_store import Store

    assert found.store is not None
    with Store.open(path, line=name, verify=False) as store:
        users = store_seen.sample(store)
        found.store["some users"][name] = users[:3]
        if name != "main":
            return
        manifest = store.manifest
        count = store.count_users()
        need = store_seen.full_bytes(store, manifest, count)
        lag = tables.lag(manifest, store)
        found.store |= {
            "live": manifest.generation,
            "users": count,
            "depth": manifest.depth,
            "clocks": store_seen.clocks(store, users),
            "dead letters": manifest.dead_letters,
            "a full run needs bytes": need,
            "lag": None if lag is None else asdict(lag),
        }
    if manifest.depth >= MAX_DEPTH:
        _add(found, ATTENTION, f"{manifest.depth} deltas lie on each other", "Deep chains", "compact")
    free = found.store["free bytes"]
    if free < need:
        what = f"{size(free)} left on the disk, and the next full run needs about {size(need)}"
        _add(found, ATTENTION, what, "A full disk", "prune", "--dry-run")
    since = manifest.published_ms if lag is None else lag.since_ms
    behind = lag is None or bool(lag.events)
    if behind and since is not None and now_ms - since > limits.lag * HOUR_MS:
        hours = (now_ms - since) / HOUR_MS
        what = f"published {hours:,.0f} h ago"
        if lag is not None:
            what = f"{lag.events:,} events of the tables are not in the store, the first since {hours:,.0f} h"
        _add(found, ATTENTION, what, "A stale store", "refresh")
    if lag is not None and lag.events and lag.why:
        _add(found, ATTENTION, f"the tables cannot be read: {lag.why}", "A run that fails", "runs")
    if lag is not None and lag.events is None:
        _add(found, ATTENTION, f"how far the store is behind cannot be told: {lag.why}", "A stale store",
             "summarize")  # fmt: skip
    age = (now_ms - manifest.watermark_ms) / HOUR_MS
    if limits.event_age is not None and age > limits.event_age:
        what = f"the newest event is {age:,.0f} h old: logs stopped, or ingest did"
        _add(found, ATTENTION, what, "A stale store", "runs")
    if found.model and found.model["fingerprint"] != manifest.fingerprint:
        what = f"what is live was made by model {manifest.fingerprint[:12]}, which is not at {found.model['path']}"
        _add(found, ATTENTION, what, "Another model", "summarize")


def _runs(found: Health, runs: list[run_history.PastRun]) -> None:
    """The newest run that ended badly, of those whose work no later run has done."""
    done: set[str] = set()
    for run in runs:
        if run.job in done:
            continue
        same = run_history.PUBLISHERS if run.job in run_history.PUBLISHERS else (run.job,)
        done |= set(same)
        if run.bad:
            why = f": {run.why}" if run.why else ""
            what = f"the last {run.job} {run.outcome}{why}"
            code = ATTENTION if found.store and found.store.get("live") else WRONG
            looked_at = (
                run.outcome == run_history.DAMAGED or run.job == "ingest"
            )  # whose files are in its record
            again = ("runs", run.path) if looked_at else (*run.verb, "--run-dir", run.path)
            _add(found, code, what, "A run that fails", *again)


def size(n: float) -> str:
    """Bytes for a person."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(n) < 1024:
            return f"{n:,.0f} {unit}" if unit == "B" or n >= 10 else f"{n:,.1f} {unit}"
        n /= 1024
    return f"{n:,.1f} TiB"
