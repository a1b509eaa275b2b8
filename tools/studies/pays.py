"""Does it pay on my data? The record beside recent events, raw events of equal bytes and full attention, on own tables.

``vista study pays --home HOME`` trains the product's ranker on the tables' own requests with each of the four
contexts, for as long as a budget in minutes allows, and asks the newest tenth. What it answers is the gain of each over
the 32 newest events, over all requests and by how long ago the item was last touched and how long the history is, with
intervals over users; and whether there is anything to gain at all. A sample of users is read where tables are large.
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tools.bench.harness import Figure, Result
from tools.studies.contexts import Variant
from tools.studies.protocol import CANDIDATES, FAR, NEAR, load
from tools.studies.quality import Runs, percent
from tools.studies.study import build, feeds, train
from vista.errors import DataError
from vista.training import metrics

ARMS = ("recent", "raw", "record", "full")
LONG = (512, 4_096)
"""Events of a history at which it is called long, and very long."""
ENOUGH = 50
"""Questions below which nothing is said of a slice."""
MEASURED, LEAST, MOST = 3, 20, 1_000
"""Steps that tell what a step costs; steps below which nothing is said; steps that are enough."""


def run(
    quick: bool,
    home: str | None = None,
    warehouse: str | None = None,
    minutes: float = 10,
    seeds: int = 3,
    window: int = 8_192,
    users: int = 2_000,
    events: int = 4_000_000,
    min_history: int = 64,
    positives: int = 1_500,
) -> Result:
    """Answer for the tables of a home.

    Args:
        home: with ``warehouse/``, and ``model/`` whose record is taken; the default record where there is none.
        warehouse: folder of the tables, where they are elsewhere.
        minutes: for all of training and judging; reading the tables comes on top.
        seeds: runs per context.
        window: events that full attention reads.
        users: most users that are read.
        events: most events.
        min_history: earlier events of the users who are asked.
        positives: questions asked.

    Raises:
        DataError: no tables, or too few requests to say anything.
    """
    torch.set_num_threads(1)
    if quick:
        minutes, seeds, window, positives = min(minutes, 0.5), 1, 1_024, 200
    root = Path(home or "vista-home")
    found = load(warehouse or root / "warehouse", users=users, events=events)
    with tempfile.TemporaryDirectory() as scratch:
        runs = Runs(found, Path(scratch), 0, 32, window, positives, min_history)
        if len(runs.questions.owner) < ENOUGH:
            raise DataError(
                f"{found.name}: expected {ENOUGH} held-out requests of users with {min_history} earlier events or "
                f"more, found {len(runs.questions.owner)}; ingest more (`vista ingest`), or ask of shorter histories "
                f"(`vista study pays -p min_history={min_history // 2}`)"
            )
        runs.variants = arms(runs, root, window)
        runs.steps, made = steps_for(runs, minutes * 60, seeds)
        for name in ARMS:
            for seed in range(made):
                runs.run(runs.variants[name], seed)
        result = _result(runs, made, minutes)
        if made < seeds:
            result.notes.append(
                f"{made} of {seeds} seeds fit into {minutes:g} minutes with {LEAST} steps or more each"
            )
        return result


def arms(runs: Runs, root: Path, window: int) -> dict[str, Variant]:
    """The four contexts; the record is that of the home's live bundle."""
    from tools.home import Home
    from vista.config import ModelConfig, from_before, from_dict

    tokens = ModelConfig().tokens
    config = Home(root).model / "config.json"
    if config.exists():
        tokens = from_dict(ModelConfig, from_before(json.loads(config.read_text("utf-8")))).tokens
    if not tokens.enabled:
        tokens = ModelConfig().tokens
    options = {
        name: getattr(tokens, name)
        for name in ("items", "clusters", "sequence", "places", "last", "clusters_told")
    }
    size = tokens.bytes
    events = max(1, min(window, int(size / runs.event_bytes)))
    made = (
        Variant("recent", "none", 0),
        Variant("raw", "raw", int(events * runs.event_bytes), {"events": events}),
        Variant("record", "record", size, options),
        Variant("full", "raw", int(window * runs.event_bytes), {"events": window}),
    )
    return {v.name: v for v in made}


def steps_for(runs: Runs, seconds: float, seeds: int) -> tuple[int, int]:
    """Steps and seeds that fit the budget, by what a few steps and the questions take: as many seeds of ``LEAST`` steps
    as fit, up to ``seeds``, and steps for what is left.

    Raises:
        DataError: not even the least fit.
    """
    runs.steps = MEASURED
    batches, step, once = runs.batches(0), 0.0, 0.0
    for name in ARMS:
        variant = runs.variants[name]
        feeds(
            runs.data, runs.space, variant, batches[:1], exact=False
        )  # clusters are fitted once, not a step's cost
        began = time.perf_counter()
        fed = feeds(runs.data, runs.space, variant, batches, exact=False)
        train(build(runs.data, runs.space, variant, fed), batches, fed)
        step += (time.perf_counter() - began) / MEASURED
        began = time.perf_counter()
        some = replace(runs.questions, batches=runs.questions.batches[:1])
        feeds(runs.data, runs.space, variant, some.batches, exact=True)
        once += (time.perf_counter() - began) * len(runs.questions.batches)
    runs._batches.clear()
    steps = int((seconds - 2 * once) / max(step, 1e-9))
    if steps < LEAST:
        raise DataError(
            f"pays: expected time for {LEAST} steps of every context, found {max(steps, 0)} in {seconds / 60:.1f} "
            f"minutes; give it {np.ceil((LEAST * step + 2 * once) / 60):.0f} (`vista study pays -p minutes=`)"
        )
    made = min(seeds, steps // LEAST)
    return min(steps // made, MOST), made


def slices(runs: Runs) -> dict[str, np.ndarray]:
    """Masks bool [P] by name: all, by the last touch of the item, by the length of the history."""
    distance, owner = runs.questions.distance, runs.questions.owner
    length = dict(
        zip((runs.data.users & (2**63 - 1)).tolist(), runs.data.events.lengths.tolist(), strict=True)
    )
    life = np.array([length[int(u)] for u in owner])
    return {
        "all requests": np.ones(len(distance), bool),
        "returns": distance > NEAR,
        f"touched within {NEAR} events": (distance >= 0) & (distance <= NEAR),
        f"{NEAR + 1} to {FAR:,} events ago": (distance > NEAR) & (distance <= FAR),
        f"more than {FAR:,} events ago": distance > FAR,
        "never touched": distance < 0,
        f"histories under {LONG[0]}": life < LONG[0],
        f"histories of {LONG[0]} to {LONG[1]:,}": (life >= LONG[0]) & (life < LONG[1]),
        f"histories of {LONG[1]:,} or more": life >= LONG[1],
    }


def _result(runs: Runs, seeds: int, minutes: float) -> Result:
    result = Result(params={
        "data": runs.data.name, "minutes": minutes, "seeds": seeds, "steps": runs.steps, "window": runs.window,
        "users": len(np.unique(runs.questions.owner)), "questions": len(runs.questions.owner),
        "content": runs.data.asks_after_ms is None,
        "bytes": {name: runs.variants[name].bytes for name in ARMS}, "bytes_per_raw_event": runs.event_bytes,
    })  # fmt: skip
    owner = runs.questions.owner
    rank = {name: runs.gain(name, range(seeds)) for name in ARMS}
    for part, mask in slices(runs).items():
        if mask.sum() < ENOUGH:
            continue
        key = part.replace(" ", "_").replace(",", "")
        result.figures[f"questions_{key}"] = Figure(float(mask.sum()), "questions")
        result.figures[f"mrr_{key}_recent"] = Figure(float(rank["recent"][mask].mean()), "mrr")
        for name in ARMS[1:]:
            gain = metrics.bootstrap(owner[mask], (rank[name] - rank["recent"])[mask])
            result.figures[f"gain_{key}_{name}"] = Figure(gain[0], "mrr", gain[1], gain[2])
        whole = result.figures[f"gain_{key}_full"]
        if (whole.low or 0) > 0:
            sides = np.stack([rank[n][mask] for n in ("record", "recent", "full")], 1)
            share = metrics.bootstrap(
                owner[mask], sides, statistic=lambda m: (m[:, 0] - m[:, 1]) / (m[:, 2] - m[:, 1])
            )
            result.figures[f"recovered_{key}"] = Figure(share[0], "of full", share[1], share[2])
    result.notes.append(verdict(result.figures, runs.variants["record"].bytes))
    small = percent(runs.data.events.lengths * runs.event_bytes < runs.variants["record"].bytes)
    result.notes.append(
        f"a raw event takes {runs.event_bytes:.1f} bytes under zstd: {small} of the {runs.data.events.users:,} "
        "users read have a history smaller than the record, and reading it whole is full attention"
    )
    held = runs.variants["record"].options["items"]
    asked = np.flatnonzero(np.isin(runs.data.users & (2**63 - 1), owner))
    wide = np.array([len(np.unique(runs.data.events.user(u).item)) > held for u in asked.tolist()])
    if wide.any():
        result.notes.append(
            f"{percent(wide)} of the users asked touched more items than the {held:,} that the record names: what they "
            'touched once and long ago is lost; {"model": {"tokens": {"items": N}}} in vista train --config names more'
        )
    if not result.params["content"]:
        result.notes.append(
            "item vectors are of co-occurrence in the older half of the training period: the tables keep no others"
        )
    return result


def verdict(figures: dict[str, Figure], size: int) -> str:
    """What to make of it, in a sentence or two."""

    def told(name: str) -> str:
        f = figures[f"gain_all_requests_{name}"]
        return f"{f.value:+.3f} [{f.low:+.3f}, {f.high:+.3f}]"

    full, record, raw = (figures[f"gain_all_requests_{name}"] for name in ("full", "record", "raw"))
    if not (full.low or 0) > 0 and not (record.low or 0) > 0:
        return (
            f"nothing to gain that these requests show: full attention to long histories gains {told('full')} MRR over "
            f"the newest events, the record {told('record')}"
        )
    text = f"the record gains {told('record')} MRR over the newest events in {size:,} bytes"
    text += f", full attention {told('full')}"
    if not (record.low or 0) > 0:
        return f"{text}: there is something to gain, and the record does not show that it gets it"
    if raw.value >= record.value:
        return f"{text}; raw events of the same bytes gain {told('raw')}, so store those"
    return f"{text}; raw events of the same bytes gain {told('raw')}"


def screen(report: dict[str, Any]) -> tuple[str, tuple[str, ...], list[tuple[Any, ...]]]:
    """Title, columns and rows of the one screen."""
    figures, params = report["figures"], report["params"]

    def cell(key: str) -> str:
        f = figures.get(key)
        return "" if f is None else f"{f['value']:+.3f} [{f['low']:+.3f}, {f['high']:+.3f}]"

    rows = []
    for key in [k.removeprefix("questions_") for k in figures if k.startswith("questions_")]:
        share = figures.get(f"recovered_{key}")
        told = "" if share is None else f"{share['value']:.2f} [{share['low']:.2f}, {share['high']:.2f}]"
        rows.append((
            key.replace("_", " "), int(figures[f"questions_{key}"]["value"]),
            round(figures[f"mrr_{key}_recent"]["value"], 3),
            *(cell(f"gain_{key}_{name}") for name in ARMS[1:]), told,
        ))  # fmt: skip
    sizes = params["bytes"]
    columns = (
        "requests", "number", "newest 32", f"raw, {sizes['raw']:,} B", f"record, {sizes['record']:,} B",
        f"full, {sizes['full']:,} B", "record's share of full",
    )  # fmt: skip
    title = (
        f"{params['data']}: MRR of {params['questions']} held-out requests of {params['users']} users among "
        f"{CANDIDATES} items, and gains over the newest 32 events; {params['seeds']} seeds, {params['steps']} steps"
    )
    return title, columns, rows
