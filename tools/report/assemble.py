"""From a home to the page of ``vista report``: what is looked at, in which order, and what is left out where it is not
there."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from tools import console, evaluations
from tools.home import Home
from tools.report import health, run_history, sections, store_seen
from tools.report.page import Exhibit, Fact, Page, Section

RUNS = 20


def assemble(
    at: Home, *, studies: Sequence[Path] = (), users: int = 2_000, more: Sequence[Section] = ()
) -> Page:
    """Everything there is to look at.

    Args:
        studies: files of JSON lines of ``vista study`` and ``vista bench``, beside those in ``HOME/studies``.
        users: looked up for the distributions, at most.
        more: sections that were asked for, put after the store.

    Raises:
        VistaError, StoreError: what must be read cannot be.
    """
    found = health.look(at, last=RUNS)
    root, now = at.root.resolve(), console.when(int(time.time() * 1000))
    model = sections.training(at.model)
    quality = sections.quality(found.model, evaluations.read(at.model))
    kept_studies = sorted((at.root / "studies").glob("*.json*"))
    parts = [
        *_of_store(found, at.store, users),
        *more,
        replace(model, figures=[*model.figures, *quality]),
        sections.studies([*kept_studies, *studies]),
        sections.runs(found.runs),
    ]
    footer = (
        f"Made by vista {version('vista-cache')} from what lies in this home, without asking anything else. Numbers "
        f"of the sample are of at most {users:,} users. docs/operations.md has the runbook."
    )
    return Page(f"vista report: {root.name}", f"{root}, {now} UTC", found, _facts(found), parts, footer)


def _facts(found: health.Health) -> list[Fact]:
    store, tables = found.store or {}, found.warehouse or {}
    facts = []
    if "live" in store:
        clocks, lag = store["clocks"], (store["lag"] or {}).get("events")
        hours = (time.time() * 1000 - clocks["published_ms"]) / 3_600_000
        facts += [
            Fact("live generation", store["live"], f"depth {store['depth']}, published {sections.span(hours)} ago"),
            Fact("users", f"{store['users']:,}", f"{store['readers']} reader{'s'[: store['readers'] != 1]} now"),
            Fact("newest event", console.when(clocks["newest_event_ms"])[:10], "that a summary has seen, UTC"),
            Fact("behind the tables", "-" if lag is None else f"{lag:,}", "events"),
            Fact("disk left", health.size(store["free bytes"]),
                 f"a full run writes {health.size(store['a full run needs bytes'])}"),
        ]  # fmt: skip
    if tables:
        note = f"{tables['items']:,} items, {health.size(tables['bytes'])}"
        facts.append(Fact("events", f"{tables['events']:,}", note))
    if found.model and "ranking.auc" in found.model:
        facts.append(Fact("AUC", f"{found.model['ranking.auc']:.3f}", "of training's last look"))
    return facts


def _of_store(found: health.Health, path: Path, users: int) -> list[Section]:
    from cache_store import Store
    from cache_store.errors import StoreError

    if not found.store or "live" not in found.store:
        return []
    try:
        with Store.open(path, verify=False) as opened:
            sample, kept = store_seen.sample(opened, users), opened.generations()
            missing = (found.store["lag"] or {}).get("new_users")
            everything = run_history.runs(Path(found.home) / "runs")
            return [
                sections.freshness(opened, sample, kept, everything),
                sections.store(opened, sample, kept),
                sections.lookups(opened, sample, missing),
            ]
    except StoreError as error:
        title, table = "The store cannot be read", [("vista verify",)]
        says = Exhibit("store-damaged", title, str(error), "", ("next",), table)
        return [Section("store", "The store", "", [says])]
