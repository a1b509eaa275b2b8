"""``vista demo``: the whole way of the data on generated lives, in a few minutes, ending in one table."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tools import console, demo_folder, invocation
from tools.home import Home
from tools.options import DryRunOption, JsonOption, Runner

if TYPE_CHECKING:
    from cache_store import Store


def command(
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for everything the demo makes: an empty one, or that of an earlier demo, which is cleared.  "
            "[default: demo-out, or the next free demo-out-2, ...]"
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
    with demo_folder.making(folder):
        story.run()
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
        self.users, self.train_seconds = users, train_seconds
        self.beam = Runner(workers=workers).arguments()
        self.rows: list[tuple[str, str]] = []
        self.seconds: list[tuple[str, float]] = []
        self.example: Any = None

    def run(self) -> None:
        steps = (
            self.generate, self.ingest, self.train, self.summarize, self.look_up, self.recommend, self.refresh,
            self.report,
        )  # fmt: skip
        for number, step in enumerate(steps, 1):
            name, start = step.__name__.replace("_", " "), time.perf_counter()
            console.note(f"[{number}/{len(steps)}] {name} ...")
            step()
            self.seconds.append((name, time.perf_counter() - start))
            console.note(f"      {self.seconds[-1][1]:.1f} s")
        self._told("time of all steps", f"{sum(s for _, s in self.seconds):.0f} s")

    def _told(self, name: str, text: str) -> None:
        self.rows.append((name, text))

    def generate(self) -> None:
        from vista.data.generator import GeneratorOptions, generate

        options = GeneratorOptions(
            users=self.users, min_events=100, max_events=20_000, tail=0.9, clusters=64, niches=8, niche_items=16,
            sleep_events=800, phase_events=150, held_back_days=20, slate=20,
        )  # fmt: skip
        self.made = generate(options, self.logs)
        events = self.made.event_rows + self.made.later_rows
        self._told("generated", f"{events:,} events of {self.made.users:,} users")

    def ingest(self) -> None:
        events = self._ingest(self.made.events, self.made.impressions)
        size = sum(f.stat().st_size for f in self.home.warehouse.rglob("*.parquet")) / 2**20
        self._told("tables", f"{events:,} events in {size:.1f} MiB, bucketed and sorted by user")

    def _ingest(self, events: list[str], impressions: list[str]) -> int:
        from beam_jobs.ingest import job as ingest

        options = ingest.IngestOptions(
            tuple(events), str(self.home.warehouse), str(self.home.new_run("ingest")),
            impressions=tuple(impressions), num_buckets=8, actions=("0", "1", "2"),
        )  # fmt: skip
        return ingest.run(options, self.beam).counts["events"]

    def train(self) -> None:
        import torch

        from vista import bundle
        from vista.data.tables.warehouse import Warehouse
        from vista.training.train import TrainingConfig, train

        torch.set_num_threads(1)
        config = TrainingConfig(max_steps=0, max_seconds=self.train_seconds, validation_slates=600)
        path = train(config, Warehouse(self.home.warehouse).open(), self.home.model)
        found = bundle.read_meta(path)[0].metrics
        auc, mrr = found["ranking.auc"], found["ranking.mrr"]
        self._told("model", f"ranks held-out requests with AUC {auc:.3f}, MRR {mrr:.3f}")

    def summarize(self) -> None:
        from beam_jobs.generation import summarize

        options = summarize.SummarizeOptions(*self._places(), str(self.home.new_run("summarize")))
        done = summarize.run(options, self.beam).counts
        self._told("generation 1", f"{done['written']:,} users summarised from {done['events']:,} events")

    def _places(self) -> tuple[str, str, str]:
        """Tables, model and store, as the jobs take them."""
        return str(self.home.warehouse), str(self.home.model), str(self.home.store)

    def look_up(self) -> None:
        import numpy as np

        from cache_store import Status, Store

        with Store.open(self.home.store) as store:
            users = _users(store)
            batch = np.random.default_rng(0).choice(users, 512)
            store.lookup(batch)
            times = []
            for _ in range(20):
                start = time.perf_counter()
                found = store.lookup(batch)
                times.append(time.perf_counter() - start)
            self.example = int(users[np.argmax(store.lookup(users).event_count)])
        fresh, ms = int((found.status == Status.FRESH).sum()), 1e3 * np.median(times)
        _, s, d = found.tokens.shape
        self._told("lookup", f"{fresh} of 512 users FRESH, tokens [512, {s}, {d}] in {ms:.1f} ms")

    def recommend(self) -> None:
        from cache_store import Store
        from tools import histories
        from tools.serving import open_index
        from vista import bundle as bundles
        from vista.data.tables.warehouse import Warehouse
        from vista.serving.recommender import MAX_RECENT, Recommender

        bundle = bundles.load(self.home.model, serve=True)
        tables = Warehouse(self.home.warehouse).open()
        with Store.open(self.home.store, fingerprint=bundle.fingerprint) as store:
            users = _users(store)[:64]
            recent = histories.newest(tables, users, MAX_RECENT)
            index = open_index(bundle, self.home.index)
            serve = Recommender(store.lookup, bundle.model, index, fingerprint=bundle.fingerprint)
            now = recent.time[recent.offsets[1:] - 1] + 1
            serve.recommend(users, recent, now, 10, candidates=200)
            start = time.perf_counter()
            serve.recommend(users, recent, now, 10, candidates=200)
            each = (time.perf_counter() - start) / len(users) * 1e3
        text = f"top 10 of {len(index):,} items through 200 candidates, {each:.1f} ms per user"
        self._told("retrieve and rank", text)

    def refresh(self) -> None:
        import numpy as np

        from beam_jobs.generation import refresh, summarize
        from cache_store import Store
        from cache_store.change.compare import floats

        new = self._ingest(self.made.later, [])
        asked = refresh.RefreshOptions(*self._places(), str(self.home.new_run("refresh")))
        delta = refresh.run(asked, self.beam).counts
        # the proof: a line of its own, made from all events at once
        run = summarize.SummarizeOptions(*self._places(), str(self.home.new_run("summarize")), "proof")
        whole = summarize.run(run, self.beam).counts
        with Store.open(self.home.store) as live, Store.open(self.home.store, line="proof") as proof:
            users, number = _users(proof), floats(live.manifest.schema)
            one, two = live.lookup(users).tokens, proof.lookup(users).tokens
        ids = one.view(np.int32)[:, ~number] != two.view(np.int32)[:, ~number]
        one, two = one[:, number], two[:, number]
        scale = np.sqrt((two.astype(np.float64) ** 2).mean((1, 2), keepdims=True))
        error = np.abs(one - two) / np.maximum(scale, 1e-12)
        # A number on the edge between two codes of int8 may be stored as either: told apart, with its size.
        other = error > 1e-4
        most, rounded = error[~other].max(initial=0), int(other.sum())
        apart = f"; {int(ids.any(2).sum())} item tables differ" if ids.any() else ""
        apart += f"; {rounded} of {other.size:,} numbers further, up to {error.max():.1e}" if rounded else ""
        resumed = f"{new:,} new events: {delta['written']:,} users resumed"
        share = delta["events"] / max(whole["events"], 1)
        self._told("generation 2", f"{resumed}, {share:.1%} of the events of a full run")
        text = f"largest difference {most:.1e} of a user's token size, as stored{apart}"
        self._told("resumed against recomputed", text)

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
        self._told("report", f"{self.home.root / 'report.html'}: open it in a browser")


def _users(store: Store) -> Any:
    import numpy as np

    return np.concatenate([store.users(bucket) for bucket in range(store.format.num_shards)])
