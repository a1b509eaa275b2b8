"""``vista demo``: the whole way of the data on generated lives, in a few minutes, ending in one table."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from tools import console, demo_folder, invocation
from tools.home import Home
from tools.options import DryRunOption, JsonOption


def command(
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for everything the demo makes: an empty one, or that of an earlier demo, which is cleared.  "
            "[default: demo-out, or the next free demo-out-2, ...]",
            show_default=False,
        ),
    ] = None,
    users: Annotated[int, typer.Option(min=50, help="Lives to generate.")] = 600,
    seconds: Annotated[float, typer.Option(min=5, help="Time to train.")] = 60.0,
    workers: Annotated[int, typer.Option(min=1, help="Beam worker processes.")] = 2,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> None:
    """Generate, ingest, train, summarize, look up, recommend, refresh, report: every part, really run."""
    folder = out or demo_folder.next_free(Path("demo-out"))
    others = demo_folder.foreign(folder)
    if others:
        raise typer.BadParameter(
            f"--out: {folder} holds {len(others)} files that no demo made as they are now, such as {others[0]}; "
            f"choose another folder, or move it away yourself"
        )
    if dry_run:
        found = {"out": str(folder), "clears": sum(f.is_file() for f in folder.rglob("*")), "users": users}
        return console.told("would make a demo", found, json)
    demo_folder.clear(folder)
    story = Demo(folder, users, seconds, workers)
    try:
        story.run()
    finally:
        demo_folder.mark(folder)
    if json:
        return console.json_line({"figures": dict(story.rows), "seconds": dict(story.seconds)})
    console.table("vista demo", ("", ""), story.rows)
    console.note(f"Everything is in {folder}/. Look around:")
    console.note(f"    {folder / 'report.html'} in a browser")
    for words in (("status",), ("lookup", story.example), ("recommend", story.example)):
        console.note("    " + invocation.command(*words, "--home", folder))


class Demo:
    """The steps, in order, each with the API that its verb uses."""

    def __init__(self, out: Path, users: int, train_seconds: float, workers: int):
        self.home, self.logs = Home(out), out / "logs"
        self.users, self.train_seconds, self.workers = users, train_seconds, workers
        self.rows: list[tuple[str, str]] = []
        self.seconds: list[tuple[str, float]] = []
        self.example: Any = None

    def run(self) -> None:
        steps = (
            self.generate,
            self.ingest,
            self.train,
            self.summarize,
            self.look_up,
            self.recommend,
            self.refresh,
            self.report,
        )
        for number, step in enumerate(steps, 1):
            with self._timed(number, len(steps), step.__name__.replace("_", " ")):
                step()
        self.rows.append(("time of all steps", f"{sum(s for _, s in self.seconds):.0f} s"))

    @contextmanager
    def _timed(self, number: int, of: int, name: str) -> Iterator[None]:
        console.note(f"[{number}/{of}] {name} ...")
        start = time.perf_counter()
        yield
        self.seconds.append((name, time.perf_counter() - start))
        console.note(f"      {self.seconds[-1][1]:.1f} s")

    @property
    def beam(self) -> list[str]:
        from beam_jobs.run.runner import local_args

        return local_args("multi_processing", self.workers) if self.workers > 1 else local_args()

    def generate(self) -> None:
        from vista.data.generator import GeneratorOptions, generate

        options = GeneratorOptions(
            users=self.users, min_events=100, max_events=20_000, tail=0.9, clusters=64, niches=8, niche_items=16,
            sleep_events=800, phase_events=150, held_back_days=20, slate=20,
        )  # fmt: skip
        self.made = generate(options, self.logs)
        self.rows.append(
            (
                "generated",
                f"{self.made.event_rows + self.made.later_rows:,} events of {self.made.users:,} users",
            )
        )

    def ingest(self) -> None:
        from beam_jobs.ingest import job as ingest

        record = self._ingest(ingest, self.made.events, self.made.impressions)
        size = sum(f.stat().st_size for f in self.home.warehouse.rglob("*.parquet"))
        self.rows.append(
            (
                "tables",
                f"{record.counts['events']:,} events in {size / 2**20:.1f} MiB, bucketed and sorted by user",
            )
        )

    def _ingest(self, ingest: Any, events: list[str], impressions: list[str]) -> Any:
        options = ingest.IngestOptions(
            events=tuple(events),
            impressions=tuple(impressions),
            warehouse=str(self.home.warehouse),
            run_dir=str(self.home.new_run("ingest")),
            num_buckets=8,
            actions=("0", "1", "2"),
        )
        return ingest.run(options, self.beam)

    def train(self) -> None:
        import torch

        from vista import bundle
        from vista.data.tables.warehouse import Warehouse
        from vista.training.train import TrainingConfig, train

        torch.set_num_threads(1)
        config = TrainingConfig(max_steps=0, max_seconds=self.train_seconds, validation_slates=600)
        path = train(config, Warehouse(self.home.warehouse).open(), self.home.model)
        meta, _ = bundle.read_meta(path)
        self.rows.append(
            ("model", f"ranks held-out requests with AUC {meta.metrics['ranking.auc']:.3f}, "
             f"MRR {meta.metrics['ranking.mrr']:.3f}")
        )  # fmt: skip

    def summarize(self) -> None:
        from beam_jobs.generation import summarize

        options = summarize.SummarizeOptions(
            warehouse=str(self.home.warehouse),
            bundle=str(self.home.model),
            store=str(self.home.store),
            run_dir=str(self.home.new_run("summarize")),
        )
        self.full = summarize.run(options, self.beam)
        self.rows.append(
            ("generation 1", f"{self.full.counts['written']:,} users summarised from "
             f"{self.full.counts['events']:,} events")
        )  # fmt: skip

    def look_up(self) -> None:
        import numpy as np

        from cache_store import Status, Store

        with Store.open(self.home.store) as store:
            users = np.concatenate([store.users(b) for b in range(store.format.num_shards)])
            batch = np.random.default_rng(0).choice(users, 512)
            store.lookup(batch)
            times = []
            for _ in range(20):
                start = time.perf_counter()
                found = store.lookup(batch)
                times.append(time.perf_counter() - start)
            self.example = int(users[np.argmax(store.lookup(users).event_count)])
        fresh = int((found.status == Status.FRESH).sum())
        _, s, d = found.tokens.shape
        self.rows.append(
            (
                "lookup",
                f"{fresh} of 512 users FRESH, tokens [512, {s}, {d}] in {1e3 * np.median(times):.1f} ms",
            )
        )

    def recommend(self) -> None:
        import numpy as np

        from cache_store import Store
        from tools import histories
        from tools.serving import open_index
        from vista import bundle as bundles
        from vista.data.tables.warehouse import Warehouse
        from vista.serving.recommender import MAX_RECENT, Recommender

        bundle = bundles.load(self.home.model, serve=True)
        tables = Warehouse(self.home.warehouse).open()
        with Store.open(self.home.store, fingerprint=bundle.fingerprint) as store:
            users = np.concatenate([store.users(b) for b in range(store.format.num_shards)])[:64]
            recent = histories.newest(tables, users, MAX_RECENT)
            index = open_index(bundle, self.home.index)
            serve = Recommender(store.lookup, bundle.model, index, fingerprint=bundle.fingerprint)
            now = recent.time[recent.offsets[1:] - 1] + 1
            serve.recommend(users, recent, now, 10, candidates=200)
            start = time.perf_counter()
            serve.recommend(users, recent, now, 10, candidates=200)
            each = (time.perf_counter() - start) / len(users)
        self.rows.append(
            ("retrieve and rank", f"top 10 of {len(index):,} items through 200 candidates, "
             f"{each * 1e3:.1f} ms per user")
        )  # fmt: skip

    def refresh(self) -> None:
        import numpy as np

        from beam_jobs.generation import refresh, summarize
        from beam_jobs.ingest import job as ingest
        from cache_store import Store

        new = self._ingest(ingest, self.made.later, [])
        shared: dict[str, Any] = {
            "warehouse": str(self.home.warehouse),
            "bundle": str(self.home.model),
            "store": str(self.home.store),
        }
        asked = refresh.RefreshOptions(**shared, run_dir=str(self.home.new_run("refresh")))
        delta = refresh.run(asked, self.beam)
        # the proof: a line of its own, made from all events at once
        run = summarize.SummarizeOptions(**shared, run_dir=str(self.home.new_run("summarize")), line="proof")
        whole = summarize.run(run, self.beam)
        with Store.open(self.home.store) as live, Store.open(self.home.store, line="proof") as proof:
            users = np.concatenate([proof.users(b) for b in range(proof.format.num_shards)])
            schema = live.manifest.schema
            whole_numbers = {g.name for g in schema.groups if g.codec == "int64"}
            rows = np.concatenate(
                [np.arange(s.start, s.stop) for n, s in schema.slices.items() if n not in whole_numbers]
            )
            one, two = live.lookup(users).tokens, proof.lookup(users).tokens
        ids = np.delete(one.view(np.int32), rows, 1) != np.delete(two.view(np.int32), rows, 1)
        one, two = one[:, rows], two[:, rows]
        scale = np.sqrt((two.astype(np.float64) ** 2).mean((1, 2), keepdims=True))
        error = np.abs(one - two) / np.maximum(scale, 1e-12)
        # A number on the edge between two codes of int8 may be stored as either: told apart, with its size.
        other = error > 1e-4
        most, rounded = error[~other].max(initial=0), int(other.sum())
        apart = f"; {int(ids.any(2).sum())} item tables differ" if ids.any() else ""
        apart += f"; {rounded} of {other.size:,} numbers further, up to {error.max():.1e}" if rounded else ""
        self.rows += [
            ("generation 2", f"{new.counts['events']:,} new events: {delta.counts['written']:,} users resumed, "
             f"{delta.counts['events'] / max(whole.counts['events'], 1):.1%} of the events of a full run"),
            ("resumed against recomputed", f"largest difference {most:.1e} of a user's token size, as stored{apart}"),
        ]  # fmt: skip

    def report(self) -> None:
        import torch

        from tools import evaluations
        from tools.report.assemble import assemble
        from tools.report.page import render
        from tools.verbs.report import write
        from vista.data.tables.warehouse import Warehouse
        from vista.training.evaluate import evaluate

        torch.set_num_threads(1)
        tables = Warehouse(self.home.warehouse).open()
        evaluations.keep(self.home.model, evaluate(self.home.model, tables, slates=600, draws=200))
        write(self.home.root / "report.html", render(assemble(self.home)))
        self.rows.append(("report", f"{self.home.root / 'report.html'}: open it in a browser"))
