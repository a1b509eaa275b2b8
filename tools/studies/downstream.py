"""Gain of cached summaries in a ranker of one's own: the example of docs/downstream.md on generated lives.

Everything a team would do, by the jobs themselves: lives are generated, their logs cut at three dates, ingested,
a model trained and a generation published at the first date, two refreshed ones at the others. The example ranker
(docs/examples/dlrm_ranker.py, DLRM style, its 16 newest events, content vectors of the items) is trained on the rows
between the first date and the last, each reading the newest generation before itself, and judged on the rows after
the last: without summaries; with its own attention to the sequence of 128 items, in its own item vectors; with what the
record counts by clusters, pooled to as many places among these vectors; with as many raw events as fit the bytes of the
places, as old as they and up to the request, under the same reader; addressing its own entry and cluster; with both.
``near`` arms attend to their recent events as well, which the others read by their mean: without summaries, and with.
Same rows, order, steps and seeds. ``company_`` figures have vectors of co-occurrence in the place of content.

``auc_gain_sequence``: AUC within a request, with minus without. ``ne_gain_sequence``: share of the normalised entropy
that is saved. Low and high are 95 % bootstrap intervals over users. The gain is that of lives made to return to old
interests (vista/data/generator.py): it shows that the path works, not what your data will give.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from beam_jobs.generation import refresh, summarize
from beam_jobs.ingest import job as ingest
from tools.bench.harness import Figure, Result
from vista.config import ModelConfig, TokenConfig, from_dict, from_text, to_dict
from vista.data.generator import GeneratorOptions, generate
from vista.data.tables.warehouse import Warehouse
from vista.training.train import TrainingConfig, train

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
CUTS = ("2024-06-15", "2024-07-15", "2024-08-15")


def example(name: str) -> ModuleType:
    """A script of docs/examples as a module."""
    known = f"docs_examples_{name}"
    if known not in sys.modules:
        spec = importlib.util.spec_from_file_location(known, EXAMPLES / f"{name}.py")
        module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
        sys.modules[known] = module  # dataclasses look their module up
        if str(EXAMPLES) not in sys.path:  # as where the script is run
            sys.path.append(str(EXAMPLES))
        spec.loader.exec_module(module)  # type: ignore[union-attr]
    return sys.modules[known]


def prepare(
    folder: Path, steps: int, lives: dict[str, Any] | None = None, model: dict[str, Any] | None = None
) -> None:
    """``logs`` and ``home`` in ``folder`` as the commands of docs/downstream.md make them.

    Args:
        steps: of training the summarizer.
        lives: fields of the generator that differ from lives.json.
        model: fields of ModelConfig that differ from the default.
    """
    logs, home = folder / "logs", folder / "home"
    options = from_text(GeneratorOptions, (EXAMPLES / "lives.json").read_text())
    generate(dataclasses.replace(options, **(lives or {})), logs)
    cuts = [int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp() * 1_000) for day in CUTS]
    parts = example("split_logs").split(logs, cuts)
    where: dict[str, Any] = {"warehouse": str(home / "warehouse")}
    made = {**where, "bundle": str(home / "model"), "store": str(home / "store")}
    for number, part in enumerate(parts[:-1]):
        ingest.run(
            ingest.IngestOptions(
                **where,
                events=(str(part / "events-*.parquet"),),
                impressions=(str(part / "impressions-*.parquet"),) if number == 0 else (),
                run_dir=str(home / "runs" / f"ingest-{number}"),
                num_buckets=8,
                actions=("0", "1", "2"),
            ),
            [],
        )
        run_dir = str(home / "runs" / f"summaries-{number}")
        if number:
            refresh.run(refresh.RefreshOptions(**made, run_dir=run_dir), [])
            continue
        shape = from_dict(ModelConfig, {**to_dict(ModelConfig()), **(model or {})})
        config = TrainingConfig(model=shape, max_steps=steps, validation_slates=200)
        train(config, Warehouse(home / "warehouse").open(), home / "model", progress=False)
        summarize.run(summarize.SummarizeOptions(**made, run_dir=run_dir), [])


TARGETS = {"auc_gain_pooled": 0.07, "company_auc_gain_pooled": 0.06}


def run(
    quick: bool,
    steps: int = 100,
    users: int = 600,
    epochs: int = 1,
    seeds: int = 3,
    tokens: int = 128,
    arms: str = "without,raw,raw_fresh,sequence,pooled,near,near_pooled,addressed,with",
    vectors: str = "content,company",
    record: str = "small",
    keep: str | None = None,
) -> Result:
    """Generate, publish three generations, train every arm, judge, serve.

    Args:
        steps: of training the summarizer.
        users: lives.
        epochs: of the example ranker, each arm.
        seeds: runs of each arm.
        tokens: of the sequence.
        arms: comma separated; with other vectors ``without``, ``sequence`` and ``pooled`` alone.
        vectors: of items, comma separated: ``content``, ``company``, ``random``.
        record: size of the summaries by name.
        keep: folder for home and logs; what an earlier run left there is used again.
    """
    torch.set_num_threads(1)
    chosen = tuple(arms.split(","))
    if quick:
        steps, users, epochs, seeds, vectors = min(steps, 20), min(users, 150), 1, 1, "content"
        chosen = ("without", "sequence")
    ranker = example("dlrm_ranker")
    result = Result(
        params={
            "steps": steps,
            "users": users,
            "epochs": epochs,
            "seeds": seeds,
            "tokens": tokens,
            "cuts": list(CUTS),
        }
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(keep) if keep else Path(scratch)
        if not (folder / "home" / "store").exists():
            prepare(folder, steps, {"users": users}, {"tokens": to_dict(TokenConfig.named(record))})
        for kind in vectors.split(","):
            trial = ranker.Trial(epochs, seeds=seeds, vectors=kind, size=tokens)
            mine = (
                chosen
                if kind == "content"
                else tuple(a for a in chosen if a in ("without", "sequence", "pooled"))
            )
            found = ranker.compare(folder / "home", folder / "logs", trial, mine)
            _figures(result, found, "" if kind == "content" else f"{kind}_")
    return result


def _figures(result: Result, found: dict[str, Any], prefix: str) -> None:
    units = {"auc": "AUC", "ne": "NE"}
    for name, (value, low, high) in found["figures"].items():
        unit = "of NE" if name.startswith("ne_gain") else units[name.partition("_")[0]]
        key = prefix + name
        better_is_more = not name.startswith("ne_") or "gain" in name
        result.figures[key] = Figure(value, unit, low, high, TARGETS.get(key), better_is_more)
    if prefix:
        return
    if found["request_ms"] is not None:  # raw events are not served
        result.figures["request"] = Figure(found["request_ms"], "ms", at_least=False)
    result.figures["sequence_bytes"] = Figure(found["sequence_bytes"], "bytes", at_least=False)
    result.figures["pooled_bytes"] = Figure(found["pooled_bytes"], "bytes", at_least=False)
    result.figures["raw_events_in_them"] = Figure(found["raw_events"], "events")
    result.notes.append(
        f"{found['train_requests']:,} requests train, {found['test_requests']:,} of {found['test_users']} users judge; "
        f"{found['with_summary']:.1%} of those have a summary, from generations {', '.join(found['generations'])}"
    )
    seconds = ", ".join(f"{name} {value:.0f}" for name, value in found["cpu_seconds"].items())
    result.notes.append(f"CPU seconds to train and judge, all seeds: {seconds}")
