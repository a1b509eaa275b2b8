"""What of a lifelong history each kind of summary keeps: rank the touched item among 100 of its surface.

``run(quick, data=...)`` takes an ingested warehouse or Parquet events; without it, the generated set alone is
judged (interests that sleep for thousands of events and return, items that seldom come twice). Protocol,
variants and one run are in tools/studies/; what the figures mean and what they were is in docs/quality.md.

``recovered`` = (ours - recent only) / (full - recent only) in MRR, means over seeds; its interval is the
range over seeds. ``recovered_returns`` and ``recovered_far`` are the same on positives last touched more than
64 and 1,024 events ago, ``recovered_seeds`` takes seed tokens alone (places). Keys of the generated set begin with
``generated_``.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tools.bench.harness import Figure, Result
from tools.studies.contexts import BASE, Variant, served_bytes, variants
from tools.studies.information import information
from tools.studies.protocol import Data, examples, generated, held_out, load, training_batches
from tools.studies.study import Answers, answer, build, train
from vista.config import ModelConfig, fingerprint

QUICK = ("recent", "full", "places", "ours")
WHOLE = (
    "recent",
    "budget",
    "distinct",
    "last1024",
    "full",
    "full+counts",
    "paper",
    "seeds",
    "places",
    "slots",
    "ours",
)
CODECS = {
    "float32": {"seeds": "float32", "slots": "float32"},
    "float16": {"seeds": "float16", "slots": "float16"},
    "int8": {"seeds": "int8", "slots": "int8"},
    "int4": {"seeds": "int4", "slots": "int4"},
    "int4+log8": {"seeds": "int4", "slots": "log8"},
}
"""Ways of serving the same summaries; by default seeds are int8 and slots log8."""

LEAST = 0.01
"""MRR that full attention must gain over recent events for shares of it to be told."""

CURVE = {4: (341, 683), 8: (682, 1_366), 16: (1_365, 2_730), 32: (3_413, 4_096), 64: (8_874, 4_096)}
"""KiB of slots served to (buckets of each of two rows, clusters): 3 horizons of one byte each."""

PAUSE_MINUTES = {"events": 0.0, "generated": 30.0}
"""Asked are requests after so long a pause: all of a log's, and where the generated visits begin. Inside a
visit the last few events say what comes next, and four of five generated positives would be of that kind."""

TARGETS = {
    "recovered": 1.2,
    "recovered_returns": 1.1,
    "generated_recovered": 0.9,
    "generated_recovered_seeds": 0.5,
    "generated_far_full_over_last1024": 0.05,
}


def run(
    quick: bool,
    data: str | None = None,
    sets: str | None = None,
    seeds: int = 3,
    first_seed: int = 0,
    steps: int = 300,
    slates: int = 48,
    negatives: int = 24,
    window: int = 8_192,
    positives: int = 1_000,
    users: int = 60,
    events: int = 400_000,
    min_history: int = 512,
    pause_minutes: float | None = None,
    names: str | None = None,
    curve: bool = False,
    keep: str | None = None,
) -> Result:
    """Train and judge the variants.

    Args:
        data: path of a warehouse or of Parquet events.
        sets: which of ``events,generated``; by default those there are.
        seeds, first_seed: runs per variant.
        steps, slates, negatives: of training, the same for all.
        window: events that full attention and summaries read.
        positives: questions asked.
        users, events: of the generated set.
        min_history: earlier events of the users who are asked.
        pause_minutes: training and questions take requests after so long a pause; by default ``PAUSE_MINUTES``.
        names: variants, comma separated.
        curve: also slots alone at 4 to 64 KiB.
        keep: folder where every finished run is kept and taken from, so that a long study can be made in
            pieces.
    """
    torch.set_num_threads(1)
    if quick:
        seeds, steps, slates, window, positives = 1, min(steps, 40), 32, 2_048, 300
        users, events = 40, 160_000
    chosen = tuple(names.split(",")) if names else (QUICK if quick else WHOLE)
    wanted = (sets or ("events,generated" if data else "generated")).split(",")
    result = Result(
        params=dict(
            data=Path(data).name if data else None, sets=wanted, seeds=seeds, steps=steps, slates=slates,
            negatives=negatives,
            window=window, positives=positives, users=users, events=events, variants=list(chosen),
        )
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(keep) if keep else Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for which in wanted:
            if which == "events":
                found = load(str(data))
            else:
                found = generated(folder / f"generated-{users}-{events}", users, events)
            pause = PAUSE_MINUTES[which] if pause_minutes is None else pause_minutes
            runs = Runs(found, folder, steps, slates, window, positives, min_history, pause, negatives)
            for seed in range(first_seed, first_seed + seeds):
                for name in chosen:
                    ways = CODECS if name == "ours" and seed == first_seed and not quick else None
                    runs.run(variants(window)[name], seed, codecs=ways)
                for kib, (buckets, clusters) in CURVE.items() if curve else ():
                    slots = replace(BASE.slots, buckets=buckets, clusters=clusters)
                    runs.run(variants(window)["slots"], seed, replace(BASE, slots=slots), f"slots_{kib}KiB")
            labels = chosen + tuple(f"slots_{kib}KiB" for kib in CURVE if curve)
            _figures(result, runs, labels, "" if which == "events" else "generated_")
    return result


class Runs:
    """Finished runs of one data set, by variant and seed; what was asked is shared by all of them."""

    def __init__(
        self,
        data: Data,
        folder: Path,
        steps: int,
        slates: int,
        window: int,
        positives: int,
        least: int = 512,
        pause_minutes: float = 0.0,
        negatives: int = 24,
    ) -> None:
        self.data, self.folder = data, folder
        self.steps, self.slates, self.window, self.pause = steps, slates, window, pause_minutes
        self.examples = examples(window, negatives, max(8, slates // 2), least, pause_minutes)
        self.questions = held_out(data, self.examples, 1_024, positives)
        self.found: dict[tuple[str, int], dict[str, Any]] = {}
        self._batches: tuple[int, list] | None = None

    def batches(self, seed: int) -> list:
        if self._batches is None or self._batches[0] != seed:
            made = training_batches(self.data, self.examples, 1_024, self.steps, self.slates, seed)
            self._batches = seed, made
        return self._batches[1]

    def path(self, variant: Variant, seed: int, base: ModelConfig) -> Path:
        mark = fingerprint(base)[:8]
        return self.folder / (
            f"{self.data.name}-{self.steps}-{self.slates}-{self.window}-{self.pause:g}-"
            f"{self.examples.negatives}-{len(self.questions.owner)}-{variant.name}-{mark}-{seed}.json"
        )

    def run(
        self,
        variant: Variant,
        seed: int,
        base: ModelConfig = BASE,
        label: str | None = None,
        codecs: dict[str, dict[str, str]] | None = None,
    ) -> dict[str, Any]:
        """Train and judge, or take what a run before kept.

        Args:
            codecs: further ways of serving the same model, by name: group to codec.
        """
        path = self.path(variant, seed, base)
        if path.exists():
            row = json.loads(path.read_text())
        else:
            model = build(self.data, variant, base, seed)
            seconds = train(model, variant, self.batches(seed))
            default = {name: codec for name, _, _, codec in model.groups}
            row = {
                "variant": variant.name,
                "seed": seed,
                "bytes": served_bytes(model, variant),
                "seconds": round(seconds, 1),
                "ranks": self._judge(model, variant, {"": default, **(codecs or {})}),
                "information": information(model, variant, self.data, self.questions, default),
            }
            path.write_text(json.dumps(row))
        self.found[label or variant.name, seed] = row
        return row

    def _judge(self, model, variant: Variant, ways: dict[str, dict[str, str]]) -> dict[str, Any]:
        got = answer(model, variant, self.questions, ways)
        return {
            name: {"rank": x.rank.tolist(), "auc": np.nan_to_num(x.auc, nan=-1).tolist()}
            for name, x in got.items()
        }

    def measures(self, label: str, seed: int, way: str = "") -> dict[str, dict[str, float]]:
        row = self.found[label, seed]["ranks"][way]
        area = np.array(row["auc"])
        return Answers(np.array(row["rank"]), np.where(area < 0, np.nan, area)).measures(self.questions)

    def seeds(self, label: str) -> list[int]:
        return sorted(seed for name, seed in self.found if name == label)

    def mean(self, label: str, part: str, measure: str) -> np.ndarray:
        """float64 [seeds]."""
        return np.array([self.measures(label, s)[part][measure] for s in self.seeds(label)])

    def recovered(self, label: str, part: str) -> np.ndarray | None:
        """(label - recent) / (full - recent) in MRR per seed; None where a side or the slice is missing, or
        where full attention gains less than ``LEAST``: a share of nothing says nothing."""
        if part not in self.questions.slices() or not self.questions.slices()[part].any():
            return None
        common = [s for s in self.seeds(label) if s in self.seeds("recent") and s in self.seeds("full")]
        if not common:
            return None
        side = {
            n: np.array([self.measures(n, s)[part]["mrr"] for s in common]) for n in (label, "recent", "full")
        }
        # The mean difference of full attention is the unit: one seed's own could be near zero.
        unit = (side["full"] - side["recent"]).mean()
        return (side[label] - side["recent"]) / unit if unit >= LEAST else None


def _spread(values: np.ndarray, unit: str, **more: Any) -> Figure:
    return Figure(float(values.mean()), unit, low=float(values.min()), high=float(values.max()), **more)


def _figures(result: Result, runs: Runs, labels: Iterable[str], prefix: str) -> None:
    parts = [p for p, mask in runs.questions.slices().items() if mask.any()]
    for label in labels:
        for part in parts:
            for measure in ("mrr", "hr@1", "auc"):
                key = f"{prefix}{measure}_{part}_{label}"
                result.figures[key] = _spread(runs.mean(label, part, measure), measure)
        for measure, value in runs.found[label, runs.seeds(label)[0]].get("information", {}).items():
            result.figures[f"{prefix}told_{measure}_{label}"] = Figure(value, "of history")
        result.figures[f"{prefix}bytes_{label}"] = Figure(
            runs.found[label, runs.seeds(label)[0]]["bytes"], "bytes"
        )
    for name, label, part in (
        ("recovered", "ours", "all"),
        ("recovered_returns", "ours", "returns"),
        ("recovered_far", "ours", "far"),
        ("recovered_seeds", "places", "all"),
        ("recovered_seeds_returns", "places", "returns"),
        ("recovered_seeds_far", "places", "far"),
        ("recovered_qla", "seeds", "all"),
        ("recovered_paper", "paper", "all"),
        ("recovered_slots", "slots", "all"),
        ("recovered_slots_returns", "slots", "returns"),
        *((f"recovered_slots_{kib}KiB", f"slots_{kib}KiB", "all") for kib in CURVE),
    ):
        values = runs.recovered(label, part) if (label, runs_seed(runs, label)) in runs.found else None
        if values is not None:
            key = prefix + name
            result.figures[key] = _spread(values, "of full", target=TARGETS.get(key))
        elif runs.seeds(label) and runs.seeds("full") and runs.seeds("recent"):
            result.notes.append(f"{prefix}{name}: no share told, full attention gained less than {LEAST} MRR")
    if {"ours", "recent"} <= set(labels):
        _codec_figures(result, runs, prefix)
    if prefix and {"full", "last1024"} <= set(labels) and "far" in parts:
        gain = runs.mean("full", "far", "mrr") - runs.mean("last1024", "far", "mrr")
        key = f"{prefix}far_full_over_last1024"
        result.figures[key] = _spread(gain, "mrr", target=TARGETS[key])
    counts = {p: int(m.sum()) for p, m in runs.questions.slices().items()}
    result.notes.append(
        f"{runs.data.name}: {counts} positives of {len(np.unique(runs.questions.owner))} users"
    )


def _codec_figures(result: Result, runs: Runs, prefix: str) -> None:
    """What of the gain over recent events each way of serving keeps, against float32."""
    seed = runs.seeds("ours")[0]
    ways = runs.found["ours", seed]["ranks"]
    if "float32" not in ways or seed not in runs.seeds("recent"):
        return
    base = runs.measures("recent", seed)["all"]["mrr"]
    whole = runs.measures("ours", seed, "float32")["all"]["mrr"] - base
    for way in ways:
        kept = (runs.measures("ours", seed, way)["all"]["mrr"] - base) / whole
        result.figures[f"{prefix}kept_{way or 'served'}"] = Figure(kept, "of the float32 gain")


def runs_seed(runs: Runs, label: str) -> int:
    """First seed of a label, -1 where it was not run."""
    found = runs.seeds(label)
    return found[0] if found else -1
