"""What of a lifelong history each kind of summary keeps: rank the touched item among 100 of its surface.

``run(quick, data=...)`` takes an ingested warehouse or Parquet events beside the generated set; without it the
generated set alone is judged (interests that sleep for thousands of events and return, items that seldom come twice).
Protocol, rivals and one run are in protocol.py, contexts.py, rivals.py and study.py; what the figures mean and what
they were is in docs/quality.md.

``recovered`` = (ours - recent) / (full - recent) in MRR, each side the mean over the seeds; low and high are a 95 %
interval over users, ``seeds_recovered`` has the range over seeds. ``ours`` is the product's model with its record as
the store serves it, ``tokens`` the record's sequence alone under the product's ``WeightedAttention``. ``_returns`` and
``_far`` are the same on positives last touched more than 64 and 1,024 events ago. ``_swapped``: the same model, each
request with another user's record. Keys of made sets begin with their name.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import json
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tools.bench.harness import Figure, Result
from tools.studies.contexts import RECENT, Contest, Variant
from tools.studies.protocol import (
    SETS,
    Data,
    bytes_per_event,
    examples,
    generated,
    held_out,
    load,
    training_batches,
)
from tools.studies.rivals import CURVE, QUICK, WHOLE, variants
from tools.studies.study import Answers, answer, build, feeds, train
from tools.studies.tokens import Space
from vista.errors import DataError
from vista.training import metrics
from vista.training.personal import Alike, partners

LEAST = 0.01
"""MRR that full attention must gain over recent events for shares of it to be told."""

PAUSE_MINUTES = {"events": 0.0}
"""Asked are requests after so long a pause: all of a log's, and where the visits of made lives begin (30). Inside a
visit the last few events say what comes next, and four of five generated positives would be of that kind."""

TARGETS = {
    "recovered": 1.2,
    "recovered_returns": 1.15,
    "recovered_tokens": 0.95,
    "generated_recovered": 1.15,
    "generated_recovered_far": 1.0,
    "generated_recovered_tokens": 0.95,
}
ALIKE = "personal_share", "effective_rank"
SLICES = ("all", "returns", "far")


def run(
    quick: bool,
    data: str | None = None,
    sets: str | None = None,
    seeds: int = 3,
    first_seed: int = 0,
    steps: int = 200,
    slates: int = 32,
    negatives: int = 24,
    window: int = 8_192,
    positives: int = 1_200,
    users: int = 400,
    events: int = 1_600_000,
    min_history: int = 512,
    pause_minutes: float | None = None,
    names: str | None = None,
    curve: int = 1,
    longer: int = 0,
    keep: str | None = None,
) -> Result:
    """Train and judge the rivals.

    Args:
        data: path of a warehouse or of Parquet events.
        sets: which of ``events,generated,fresh``; by default ``events`` where there are some, and ``generated``.
        seeds: runs per variant.
        first_seed: the first one.
        steps: of training.
        slates: per step.
        negatives: candidates beside the positive. The same for all.
        window: events that full attention and summaries read.
        positives: questions asked, spread over as many users as there are.
        users: of a made set.
        events: of it in all.
        min_history: earlier events of the users who are asked.
        pause_minutes: training and questions take requests after so long a pause; by default ``PAUSE_MINUTES``.
        names: variants, comma separated.
        curve: seeds for which the record and its sequence alone are judged at 2 to 64 KiB, beside raw events of the
            same compressed bytes.
        longer: so many times the steps for nothing, full, ours and few tokens, with the MRR on the way: whether longer
            training would change the shares.
        keep: folder where every finished run is kept and taken from, so that a long study can be made in pieces.

    Raises:
        DataError: a name or a set that is none, or data that cannot be asked.
    """
    torch.set_num_threads(1)
    if quick:
        seeds, steps, slates, window, positives, curve = 1, min(steps, 30), 32, 2_048, 240, 0
        users, events = min(users, 60), min(events, 180_000)
    chosen = tuple(names.split(",")) if names else (QUICK if quick else WHOLE)
    wanted = (sets or ("events,generated" if data else "generated")).split(",")
    _known("names", chosen, variants(window, 1.0))
    _known("sets", wanted, [*SETS, *(["events"] if data else [])])
    result = Result(
        params=dict(
            data=Path(data).name if data else None, sets=wanted, seeds=seeds, steps=steps, slates=slates,
            negatives=negatives, window=window, positives=positives, users=users, events=events,
            variants=list(chosen), curve=curve,
        )
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(keep) if keep else Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for which in wanted:
            if which == "events":
                found = load(str(data))
            else:
                found = generated(folder / f"{which}-{users}-{events}", users, events, which)
            pause = PAUSE_MINUTES.get(which, 30.0) if pause_minutes is None else pause_minutes
            runs = Runs(found, folder, steps, slates, window, positives, min_history, pause, negatives)
            span = range(first_seed, first_seed + seeds)
            for name in [*chosen, *(CURVE if curve else ())]:
                for seed in span if name in chosen else span[:curve]:
                    runs.run(runs.variants[name], seed)
            prefix = "" if which == "events" else f"{which}_"
            for name in ("recent", "full", "ours", "learned", "heaviest") if longer else ():
                if name in chosen:
                    runs.longer(result, runs.variants[name], first_seed, longer, prefix)
            figures(result, runs, prefix)
            del found, runs
            gc.collect()
    return result


def _known(what: str, asked: Sequence[str], known: Iterable[str]) -> None:
    if wrong := set(asked) - set(known):
        raise DataError(
            f"{what}: expected some of {', '.join(known)}, found {', '.join(sorted(wrong))}; e.g. `vista study quality "
            "-p sets=generated -p names=recent,full,ours`; `events` needs `-p data=PATH`"
        )


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
        self.examples = examples(window, negatives, max(4, slates // 4), least, pause_minutes)
        self.questions = held_out(data, self.examples, RECENT, positives)
        self.space = Space(data.catalogue.item, data.content)
        self.event_bytes = bytes_per_event(data.events)
        self.variants = variants(window, self.event_bytes)
        self.found: dict[tuple[str, int], dict[str, Any]] = {}
        self._batches: dict[int, list] = {}
        self._asked: tuple[str, list] | None = None
        self._fed: dict[int, list] = {}
        self._fed_of = ""

    def batches(self, seed: int, steps: int | None = None) -> list:
        if seed not in self._batches or steps:
            made = training_batches(self.data, self.examples, RECENT, steps or self.steps, self.slates, seed)
            if steps:
                return made
            self._batches[seed] = made
        return self._batches[seed]

    def asked(self, variant: Variant) -> list:
        """What the variant reads for the questions: the same for all seeds."""
        if self._asked is None or self._asked[0] != variant.reads:
            found = feeds(self.data, self.space, variant, self.questions.batches, exact=True)
            self._asked = variant.reads, found
        return self._asked[1]

    def fed(self, variant: Variant, seed: int) -> list:
        """What the variant reads for the training batches; of one record, for all that read it."""
        if self._fed_of != variant.reads:
            self._fed_of, self._fed = variant.reads, {}
        if seed not in self._fed:
            self._fed[seed] = feeds(self.data, self.space, variant, self.batches(seed), exact=False)
        return self._fed[seed]

    def path(self, variant: Variant, seed: int) -> Path:
        return self.folder / (
            f"{self.data.name}-{self.steps}-{self.slates}-{self.window}-{self.pause:g}-"
            f"{self.examples.negatives}-{len(self.questions.owner)}-{variant.mark}-{seed}.json"
        )

    def run(self, variant: Variant, seed: int) -> dict[str, Any]:
        """Train and judge, or take what a run before kept."""
        path = self.path(variant, seed)
        if path.exists():
            row = json.loads(path.read_text())
        else:
            began = time.process_time()
            fed = self.fed(variant, seed)
            contest = build(self.data, self.space, variant, fed, seed)
            seconds = train(contest, self.batches(seed), fed)
            got = answer(contest, self.questions, self.asked(variant))
            row = {
                "variant": variant.name,
                "seed": seed,
                "bytes": variant.bytes,
                "tokens": contest.tokens,
                "seconds": round(seconds, 1),
                "rank": got.rank.tolist(),
                "swapped": self.swapped(contest, variant),
                "auc": np.nan_to_num(got.auc, nan=-1).tolist(),
                "alike": self.alike(contest, variant),
            }
            path.write_text(json.dumps(row))
            told = self._measures(row)["all"]["mrr"]
            took = time.process_time() - began
            print(
                f"{self.data.name} {variant.name} seed {seed}: MRR {told:.4f}, {took:.0f} s", file=sys.stderr
            )
        self.found[variant.name, seed] = row
        return row

    def swapped(self, contest: Contest, variant: Variant) -> list[float]:
        """Ranks where every request reads the record of another user; none for contexts without one."""
        if variant.kind != "record":
            return []
        theirs = []
        for batch, fed in zip(self.questions.batches, self.asked(variant), strict=True):
            assert fed.record is not None
            other = partners(batch.owner[batch.user_of])
            theirs.append(dataclasses.replace(fed, record=fed.record[other]))
        return answer(contest, self.questions, theirs).rank.tolist()

    def alike(self, contest: Contest, variant: Variant) -> list[float]:
        """Personal share and effective rank of few tokens made of records, as ``vista evaluate`` has them of seeds."""
        found = Alike()
        for fed in self.asked(variant) if contest.few is not None else ():
            found.add(contest.made(fed.record)[0].detach())
        return found.measures().tolist() if contest.few is not None else []

    def longer(self, result: Result, variant: Variant, seed: int, times: int, prefix: str) -> None:
        """MRR after 1/2, 1, 2, ... times the steps, in one run."""
        steps = self.steps * times
        batches = self.batches(seed, steps)
        fed = feeds(self.data, self.space, variant, batches, exact=False)
        contest = build(self.data, self.space, variant, fed, seed)
        asked, curve = self.asked(variant), {}

        def judge(step: int) -> None:
            curve[step] = answer(contest, self.questions, asked).measures(self.questions)

        stops = [*(self.steps // 2 * 2**i for i in range(12) if self.steps // 2 * 2**i < steps), steps]
        train(contest, batches, fed, at={step: functools.partial(judge, step) for step in stops})
        for step, found in curve.items():
            for part in SLICES:
                if part in found:
                    key = f"{prefix}mrr_{part}_{variant.name}_at_{step}"
                    result.figures[key] = Figure(found[part]["mrr"], "mrr")
        if lost := self.swapped(contest, variant):
            swapped = float((1 / np.array(lost)).mean())
            result.figures[f"{prefix}mrr_all_{variant.name}_swapped_at_{steps}"] = Figure(swapped, "mrr")
        for name, value in zip(ALIKE, self.alike(contest, variant), strict=False):
            result.figures[f"{prefix}{name}_{variant.name}_at_{steps}"] = Figure(value, "")

    def _measures(self, row: dict[str, Any]) -> dict[str, dict[str, float]]:
        area = np.array(row["auc"])
        return Answers(np.array(row["rank"]), np.where(area < 0, np.nan, area)).measures(self.questions)

    def seeds(self, label: str) -> list[int]:
        return sorted(seed for name, seed in self.found if name == label)

    def mean(self, label: str, part: str, measure: str) -> np.ndarray:
        """float64 [seeds]."""
        return np.array([self._measures(self.found[label, s])[part][measure] for s in self.seeds(label)])

    def gain(self, label: str, seeds: Sequence[int]) -> np.ndarray:
        """float64 [P]: one over the rank of each positive, mean over seeds."""
        return np.mean([1 / np.array(self.found[label, s]["rank"]) for s in seeds], 0)

    def share(self, label: str, part: str, of: str = "full") -> tuple[Figure, Figure] | None:
        """(label - recent) / (of - recent): with its interval over users, and with its range over seeds. None where a
        side or the slice is missing, or ``of`` gains less than ``LEAST``: a share of nothing says nothing."""
        mask = self.questions.slices()[part]
        common = [s for s in self.seeds(label) if (of, s) in self.found and ("recent", s) in self.found]
        if not common or not mask.any():
            return None
        sides = np.stack([self.gain(name, common)[mask] for name in (label, "recent", of)], 1)
        unit = (sides[:, 2] - sides[:, 1]).mean()
        if unit < LEAST:
            return None
        value, low, high = metrics.bootstrap(
            self.questions.owner[mask], sides, statistic=lambda m: (m[:, 0] - m[:, 1]) / (m[:, 2] - m[:, 1])
        )
        each = [(self.gain(label, [s])[mask] - self.gain("recent", [s])[mask]).mean() / unit for s in common]
        return Figure(value, f"of {of}", low, high), Figure(value, f"of {of}", min(each), max(each))


def figures(result: Result, runs: Runs, prefix: str) -> None:
    """Every figure of a data set."""
    labels = list(dict.fromkeys(name for name, _ in runs.found))
    slices = runs.questions.slices()
    parts = [p for p, mask in slices.items() if mask.any()]
    for label in labels:
        _measured(result, runs, prefix, label, parts)
    for label in labels:
        for part in SLICES:
            found = runs.share(label, part) if part in parts and label not in ("recent", "full") else None
            if found is None:
                continue
            end = ("" if label == "ours" else f"_{label}") + ("" if part == "all" else f"_{part}")
            key = f"{prefix}recovered{end}"
            over, by_seed = found
            target = TARGETS.get(key)
            result.figures[key] = Figure(over.value, over.unit, over.low, over.high, target)
            result.figures[f"{prefix}seeds_recovered{end}"] = by_seed
    for part in SLICES:
        found = runs.share("ours", part, "oracle") if part in parts else None
        if found is not None:
            end = "" if part == "all" else f"_{part}"
            result.figures[f"{prefix}recovered_of_oracle{end}"] = found[0]
    for part in SLICES:
        if (
            part in parts
            and {"full", "recent"} <= set(labels)
            and "ours" in labels
            and runs.share("ours", part) is None
        ):
            result.notes.append(f"{prefix}{part}: no share told, full attention gained less than {LEAST} MRR")
    result.figures[f"{prefix}bytes_per_raw_event"] = Figure(runs.event_bytes, "bytes")
    result.notes.append(f"{runs.data.name}: {told(runs)}")


def _measured(result: Result, runs: Runs, prefix: str, label: str, parts: Sequence[str]) -> None:
    """What a context ranks like and takes."""
    for part in parts:
        for measure in ("mrr", "auc"):
            values = runs.mean(label, part, measure)
            key = f"{prefix}{measure}_{part}_{label}"
            result.figures[key] = Figure(
                float(values.mean()), measure, float(values.min()), float(values.max())
            )
    row = runs.found[label, runs.seeds(label)[0]]
    swapped = [runs.found[label, s].get("swapped") for s in runs.seeds(label)]
    if all(swapped):
        lost = [(1 / np.array(s)).mean() for s in swapped]
        result.figures[f"{prefix}mrr_all_{label}_swapped"] = Figure(
            float(np.mean(lost)), "mrr", float(min(lost)), float(max(lost))
        )
    for name, value in zip(ALIKE, row.get("alike", ()), strict=False):
        result.figures[f"{prefix}{name}_{label}"] = Figure(value, "")
    result.figures[f"{prefix}bytes_{label}"] = Figure(row["bytes"], "bytes")
    if row["tokens"]:
        result.figures[f"{prefix}tokens_{label}"] = Figure(row["tokens"], "tokens")


def percent(mask: np.ndarray) -> str:
    """In percent; 100 and 0 only of all and of none."""
    part = 100 * float(mask.mean()) if len(mask) else 0.0
    return f"{part:.0f}%" if part in (0, 100) or 1 <= part < 99 else f"{min(max(part, 0.01), 99.99):.2f}%"


def told(runs: Runs) -> str:
    """What was asked of whom, and whose history is smaller than the record."""
    counts = ", ".join(f"{int(m.sum())} {p}" for p, m in runs.questions.slices().items())
    trained = {int(u) for batches in runs._batches.values() for b in batches for u in b.owner}
    learned = f"trained on {len(trained)} users; " if trained else ""  # none where all runs were kept
    long = runs.data.events.lengths[runs.data.events.lengths >= runs.examples.min_history]
    size = next((v.bytes for v in runs.variants.values() if v.name == "ours"), 0)
    small = percent(long * runs.event_bytes < size)
    return (
        f"{counts} positives of {len(np.unique(runs.questions.owner))} users; {learned}"
        f"{small} of the {len(long)} users with {runs.examples.min_history} events or more have a raw history "
        "smaller than the record under zstd"
    )
