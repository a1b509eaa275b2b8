"""``refresh`` against the full job: a few new events on some of the users, the rest untouched.

Both sides end with the same summaries (law 2, checked to 1e-5 on the records as stored, ids to the bit): ``full``
summarises all events into a new store, ``refresh`` adds the new ones to a store that holds the old. Timed is the
whole run of each, and the time that each spends in the model.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from pathlib import Path

import numpy as np

from beam_jobs.generation import refresh, summarize
from beam_jobs.run.record import RunRecord
from cache_store.change.compare import floats
from cache_store.format.keys import bucket_of
from cache_store.store import Store
from tools.bench.harness import Figure, Result, median, ratio, sized, turns
from tools.bench.job import START_MS, histories, lengths_of, make_bundle, make_tables
from vista.config import SummarizerConfig
from vista.data.tables.appending import append
from vista.data.tables.warehouse import Warehouse


@sized(users=100, repeats=1)
def run(
    quick: bool,
    users: int = 800,
    mean: int = 4_000,
    active: float = 0.1,
    new: float = 0.01,
    buckets: int = 8,
    width: int = 64,
    layers: int = 2,
    seeds: int = SummarizerConfig.seeds,
    repeats: int = 3,
) -> Result:
    """Measure both sides in turn.

    Args:
        users: of ``mean`` events.
        active: share of them with new events.
        new: share of new events.
    """
    result = Result()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        bundle = make_bundle(root / "bundle", width, layers, seeds)
        tables = make_tables(root / "tables", buckets, users, mean)
        options = summarize.SummarizeOptions(
            warehouse=str(root / "tables"), bundle=str(bundle), store=str(root / "base"), run_dir=str(root / "run"),
            progress=False,
        )  # fmt: skip
        summarize.run(options)
        chosen = np.arange(0, users, max(1, round(1 / active)), dtype=np.int64)
        held = lengths_of(users, mean, seed=1)
        share = new * held.sum() / held[chosen].sum()  # of each active user's own history
        added = np.maximum((held[chosen] * share).astype(np.int64), 1)
        events = histories(added, seed=3, start_ms=START_MS + 10**13)
        append(tables, chosen, events, bucket_of(chosen, buckets))

        def side(name: str) -> RunRecord:
            for made in (name, f"{name}-run"):
                shutil.rmtree(root / made, ignore_errors=True)
            here = dataclasses.replace(options, store=str(root / name), run_dir=str(root / f"{name}-run"))
            if name == "full":
                return summarize.run(here)
            shutil.copytree(root / "base", root / name)
            return refresh.run(refresh.RefreshOptions(**vars(here)))

        records: dict[str, list[RunRecord]] = {"full": [], "delta": []}
        for _, name in turns(records, repeats):
            records[name].append(side(name))
        worst = difference(root / "delta", root / "full", Warehouse(root / "tables"))

    def of(name: str, step: str) -> np.ndarray:
        return np.array([record.timings[step] for record in records[name]])

    last = records["delta"][-1]
    result.params |= {"new_events": last.counts["events"], "changed_users": last.counts["users"]}
    result.figures = {
        "model_time_ratio": ratio(of("delta", "model"), of("full", "model"), target=0.03, at_least=False),
        "wall_ratio": ratio(of("delta", "wall"), of("full", "wall"), target=0.15, at_least=False),
        "model_cpu_ratio": ratio(of("delta", "model_cpu"), of("full", "model_cpu"), at_least=False),
        "law_2_difference": Figure(worst, "relative", target=1e-5, at_least=False),
        "full_s": median(of("full", "wall"), "s", at_least=False),
        "refresh_s": median(of("delta", "wall"), "s", at_least=False),
    }
    return result


def difference(found: Path, wanted: Path, tables: Warehouse) -> float:
    """Largest difference of any user's tokens between two stores, relative to that user's largest value; infinite
    where a status, a count or an id differs."""
    worst = 0.0
    with Store.open(found) as a, Store.open(wanted) as b:
        number = floats(b.manifest.schema)
        for bucket in range(tables.open().num_buckets):
            users = b.users(bucket)
            for i in range(0, len(users), 256):
                x, y = a.lookup(users[i : i + 256]), b.lookup(users[i : i + 256])
                if not np.array_equal(x.status, y.status) or not np.array_equal(x.event_count, y.event_count):
                    return float("inf")
                if x.tokens[:, ~number].tobytes() != y.tokens[:, ~number].tobytes():
                    return float("inf")
                one, two = x.tokens[:, number], y.tokens[:, number]
                scale = np.abs(two).max(axis=(1, 2), keepdims=True, initial=1e-9)
                worst = max(worst, float((np.abs(one - two) / scale).max(initial=0.0)))
    return worst
