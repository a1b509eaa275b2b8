"""Random histories of a home, with processes killed at random steps, beside a model that is a set of rows.

    python -m tools.drills.histories --histories 500 --kills 1500 --seed 1

A history is a row of ingests (with rows that repeat, come late, tie in time, bring new actions), refreshes,
compactions, prunings, forgettings, undone ingests, and pairs of two at once. Every piece of work is the real job in a
forked process; some die by SIGKILL at a random file operation or moment, and are then mostly done again. After each
step the tables hold what the model says, before or after the step and nothing between; items are counted once; after
each refresh the store knows exactly the events of the tables; nobody who was forgotten is in any table, file of rows,
or the live generation.
"""

from __future__ import annotations

import copy
import functools
import gc
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from beam_jobs.generation import refresh, summarize
from beam_jobs.ingest import job as ingest
from beam_jobs.ingest.options import IngestOptions
from beam_jobs.run.engines import HERE
from beam_jobs.run.leftovers import prune_runs
from beam_jobs.run.runner import local_args
from beam_jobs.tables import compact, forget
from cache_store.store import Store
from tools.drills import expected_rows, killing
from tools.drills.asked import asked
from tools.drills.drill import memory_folder
from tools.drills.expected_rows import (
    ExpectedRows,
    Row,
    differ,
    rows_of,
    write_log,
)
from tools.drills.killing import Child, WorkFailed
from vista import bundle
from vista.config import EmbeddingConfig, ModelConfig, RankerConfig, SlotConfig, SummarizerConfig, TokenConfig
from vista.data.tables.commits import recover
from vista.data.tables.manifests import TableChanged
from vista.data.tables.pruning import prune
from vista.data.tables.undoing import undo
from vista.data.tables.warehouse import Warehouse
from vista.errors import DataError
from vista.model import VistaModel

USERS, ITEMS, ACTIONS = 7, 9, ("view", "buy", "like", "complain", "share")
T0 = 1_700_000_000_000
FOREVER = 2**62
LOCAL = local_args()
WEIGHTS = {"ingest": 5, "refresh": 4, "compact": 1, "prune": 1, "forget": 2, "undo": 1, "pair": 2}


@dataclass
class HistoriesReport:
    """What was done and seen."""

    histories: int = 0
    steps: Counter[str] = field(default_factory=Counter)
    kills: Counter[str] = field(default_factory=Counter)
    halfway: Counter[str] = field(default_factory=Counter)
    events_checked: int = 0
    lookups_checked: int = 0
    seconds: float = 0.0

    @property
    def killed(self) -> int:
        return sum(n for step, n in self.kills.items() if step != "(ended before)")


class WrongHistory(AssertionError):
    """The home and the model differ."""


class History:
    """One home and its model."""

    def __init__(self, root: Path, model: Path, seed: int, report: HistoriesReport) -> None:
        self.root, self.model, self.report = root, model, report
        self.rng = np.random.default_rng(seed)
        self.engine = LOCAL if seed % 4 == 0 else [HERE]  # without Beam a task's step is the process's
        self.truth, self.number = ExpectedRows(), 0
        self.seen: list[set[Row]] = []
        self.steps: dict[str, int] = {}
        self.forgot = False

    def play(self, length: int, kills: int) -> None:
        """``length`` steps, ``kills`` of which meet a kill, then a last refresh."""
        dying = set(self.rng.choice(length, min(kills, length), replace=False).tolist())
        names, weights = list(WEIGHTS), np.array(list(WEIGHTS.values()), float)
        for i in range(length):
            name = str(self.rng.choice(names, p=weights / weights.sum())) if self.truth.brought else "ingest"
            self._step(name, i in dying)
        if not (self.root / "tables").exists():
            self._step("ingest", False)  # all that came before was killed and given up
        self._step("refresh", False)
        self.report.histories += 1

    # Steps --------------------------------------------------------------------------------------------------

    def _step(self, name: str, dies: bool) -> None:
        self.number += 1
        self.report.steps[name] += 1
        if name == "pair":
            return self._pair(dies)
        work, after, again = getattr(self, f"_{name}")()
        if work is None:
            return
        before = copy.deepcopy(self.truth)
        if dies and self._killed(name, work):
            found = self._tables()
            if found not in (before.rows, after.rows):
                raise WrongHistory(f"{name} was killed: {differ(found, before.rows)} beside before")
            self.report.halfway["after" if found == after.rows != before.rows else "before"] += 1
            if not again and self.rng.random() < 0.3:
                self.truth = after if self._committed(self.number) else before
                return self._check(f"{name}, killed and given up")
        self._done(name, work)
        self.truth = after
        self._check(name)

    def _ingest(self) -> Any:
        rows, path = self._log()
        after = copy.deepcopy(self.truth)
        after.ingest(f"run{self.number}", rows)
        return self._ingesting(path, self.number), after, False

    def _ingesting(self, path: Path, number: int) -> Callable[[], object]:
        asked = IngestOptions(
            (str(path),), str(self.root / "tables"), str(self.root / "runs" / f"run{number}"), num_buckets=2
        )
        return lambda: ingest.run(asked, self.engine, progress=False).exit_code

    def _refresh(self) -> Any:
        run = str(self.root / "runs" / f"refresh{self.number}")
        places = str(self.root / "tables"), str(self.model), str(self.root / "store")
        whole = summarize.SummarizeOptions(*places, f"{run}-full", progress=False)

        def work() -> object:
            torch.set_num_threads(1)
            try:
                if self.stores:
                    delta = refresh.RefreshOptions(*places, run, progress=False, max_depth=2)
                    return refresh.run(delta, self.engine).exit_code
            except DataError as error:
                if "vista summarize" not in str(error):
                    raise
            return summarize.run(whole, self.engine).exit_code

        return work, self.truth, False

    @property
    def stores(self) -> tuple[str, ...]:
        store = self.root / "store"
        return (str(store),) if (store / "FORMAT").exists() else ()

    def _compact(self) -> Any:
        asked = compact.CompactOptions(
            str(self.root / "tables"), str(self.root / "runs" / f"compact{self.number}"), self.stores,
            most=int(self.rng.integers(1, 4)), progress=False,
        )  # fmt: skip
        return lambda: compact.run(asked, self.engine).exit_code, self.truth, False

    def _prune(self) -> Any:
        def work() -> object:
            kept = set()
            for store in map(Store, self.stores):
                report = store.prune(1, -(10**12))
                live = [m.table_snapshot for m in store.generations() if m.generation in report.kept]
                kept = {int(snapshot) for snapshot in live if snapshot is not None}
            prune(Warehouse(self.root / "tables").open(), kept, FOREVER)
            return len(prune_runs(self.root / "runs", FOREVER))

        return work, self.truth, False

    def _forget(self) -> Any:
        user, now = int(self.rng.integers(USERS)), T0 + int(self.rng.integers(0, 60_000))
        after = copy.deepcopy(self.truth)
        after.forget(user, now)
        self.forgot = True
        return self._forgetting(user, now), after, True

    def _forgetting(self, user: int, now: int) -> Callable[[], object]:
        tables, runs = str(self.root / "tables"), (str(self.root / "runs"),)
        asked = forget.ForgetOptions([user], tables, self.stores, runs, now_ms=now)
        return lambda: len(forget.run(asked).tables)

    def _undo(self) -> Any:
        run = str(self.rng.choice(sorted(self.truth.brought)))
        after = copy.deepcopy(self.truth)
        after.undo(run)

        def work() -> object:
            try:
                return undo(Warehouse(self.root / "tables").open(), run).rows
            except DataError as error:
                return f"refused {error}"

        refused = killing.told(lambda: expected_rows.mixed(self.root, run))
        return work, self.truth if refused else after, True

    def _pair(self, dies: bool) -> None:
        """Two at once: both end well, in any order; who is forgotten is gone whatever came first."""
        rows, path = self._log()
        first = self._ingesting(path, self.number)
        if self.rng.random() < 0.5:
            more, other = self._log()
            self.number += 1
            second, name = self._ingesting(other, self.number), "ingest"
        else:
            user = int(self.rng.integers(USERS))
            now = T0 + 200_000  # all that a log can say of him is before
            second, name = self._forgetting(user, now), "forget"
            self.forgot = True
        at = int(self.rng.integers(1, self.steps.get("ingest", 60))) if dies else None
        children = [Child(first, "file", at), Child(second, "file", None)]
        for child, work in zip(children, (first, second), strict=True):
            try:
                outcome = child.end()
                if child is children[0] and dies:
                    self.report.kills[outcome.step if outcome.killed else "(ended before)"] += 1
                if outcome.killed:
                    self._done("ingest", work)
            except WorkFailed as error:
                if TableChanged.__name__ not in str(error):  # told, and to be done again
                    raise
                self._done("ingest", work)
        if name == "ingest":
            self.truth.ingest(f"run{self.number - 1}", rows)
            self.truth.ingest(f"run{self.number}", more)
            # Whichever came first brought what both have; undoing one would need to know.
            for number in (self.number - 1, self.number):
                del self.truth.brought[f"run{number}"]
        else:
            self.truth.ingest(f"run{self.number}", rows)
            self.truth.forget(user, now)
        self._check("pair")

    def _log(self) -> tuple[set[Row], Path]:
        n = int(self.rng.integers(1, 25))
        known = ACTIONS[: 1 if not self.truth.brought else 2 + self.number]  # the model's one comes first
        rows = {
            (
                int(self.rng.integers(USERS)), T0 + 1_000 * int(self.rng.integers(0, 90)),
                int(self.rng.integers(ITEMS)), str(self.rng.choice(known)),
            )
            for _ in range(n)
        }  # fmt: skip
        if self.seen and self.rng.random() < 0.4:  # a log that has grown
            rows |= self.seen[int(self.rng.integers(len(self.seen)))]
        self.seen.append(rows)
        path = self.root / "logs" / f"{self.number:04d}-{len(self.seen):04d}.parquet"
        path.parent.mkdir(exist_ok=True)
        write_log(path, rows)
        return rows, path

    # Doing and checking -------------------------------------------------------------------------------------

    def _killed(self, name: str, work: Callable[[], object]) -> bool:
        """Whether the work was killed; at a file operation, or at a moment."""
        known = self.steps.get(name, 60)
        if self.rng.random() < 0.8:
            outcome = killing.run(work, "file", int(self.rng.integers(1, known + 1)))
        else:
            outcome = killing.run(work, "time", float(self.rng.random()))
        self.report.kills[outcome.step.split("-")[0] if outcome.killed else "(ended before)"] += 1
        if not outcome.killed:
            self.steps[name] = max(outcome.steps, 1)
        return outcome.killed

    def _done(self, name: str, work: Callable[[], object]) -> None:
        self.steps[name] = max(killing.run(work, "file", None).steps, 1)

    def _committed(self, number: int) -> bool:
        def work() -> bool:
            warehouse = Warehouse(self.root / "tables")
            if not warehouse.exists():
                return False
            recover(warehouse.open())
            runs = warehouse.read_sources()["run"].to_pylist()
            return any(run.rsplit("-", 1)[0] == f"run{number}" for run in runs)

        return killing.told(work)

    def _tables(self) -> set[Row]:
        return {(u, t, i, a) for u, t, i, a in killing.told(lambda: rows_of(self.root / "tables"))}

    def _check(self, name: str) -> None:
        away, model = sorted(self.truth.until), self.truth.rows

        def work() -> object:
            found = rows_of(self.root / "tables")
            return found, self._wrong(name, found, away)

        rows, wrong = killing.told(work)
        found = {(u, t, i, a) for u, t, i, a in rows}
        if found != model or len(found) != len(rows):
            raise WrongHistory(f"after {name}: {differ(found, model)}, {len(rows)} rows")
        self.report.events_checked += len(found)
        self.report.lookups_checked += USERS * (name == "refresh")
        if wrong:
            raise WrongHistory(f"after {name}: {'; '.join(wrong)}")

    def _wrong(self, name: str, found: list[Row], until: list[int]) -> list[str]:
        """What items, store and files say that the rows of the tables do not."""
        wrong = []
        if not self.forgot and Warehouse(self.root / "tables").exists():
            table = Warehouse(self.root / "tables").open().read_items()
            counted = {i: n for i, n in zip(table.item.tolist(), table.events.tolist(), strict=True) if n}
            items = dict(Counter(row[2] for row in found))
            if counted != items:
                wrong.append(f"items counted {counted}, {items} in the tables")
        if name == "refresh":
            counts = Counter(row[0] for row in found)
            want = {u: (counts[u], max(row[1] for row in found if row[0] == u)) for u in counts}
            with Store.open(self.root / "store") as store:
                got = store.lookup(list(range(USERS)))
                know = dict(enumerate(zip(got.event_count.tolist(), got.last_event_ms.tolist(), strict=True)))
            wrong += [f"user {u}: store {know[u]}, tables {want[u]}" for u in want if know[u] != want[u]]
            wrong += [f"user {u} is in the store" for u in know if u not in want and know[u][0] > 0]
        if name == "forget":
            away = set(until) - {row[0] for row in found}
            for path in expected_rows.row_files(self.root):
                wrong += [f"{path} holds {u}" for u in away & expected_rows.users_in(path)]
        return wrong


def small_bundle(folder: Path) -> Path:
    """A model small enough to be run thousands of times."""
    torch.manual_seed(0)
    config = ModelConfig(
        width=16,
        actions=ACTIONS[:1],
        embedding=EmbeddingConfig(rows=509, surfaces=4),
        tokens=TokenConfig(items=0),
        slots=SlotConfig(buckets=16, clusters=0),
        summarizer=SummarizerConfig(layers=1, heads=2, chunk=16, seeds=4),
        ranker=RankerConfig(layers=1, heads=2, recent=4),
    )
    items = bundle.items_table(np.array([1]), np.array([0]), np.array([1]))
    meta = bundle.Meta(user_kind="int64", actions=config.actions)
    return bundle.save(folder, VistaModel(config), meta, items)


def warmed(model: Path, folder: Path) -> None:
    """Play a home in this process, so that what every job imports and compiles is there in each child."""
    folder.mkdir()
    history = History(folder, model, 1, HistoriesReport())
    for kind in ("ingest", "ingest", "refresh", "ingest", "refresh", "compact", "prune", "undo", "forget"):
        history.number += 1
        if kind == "undo":
            undo(Warehouse(folder / "tables").open(), "run4")
            continue
        work, history.truth, _ = getattr(history, f"_{kind}")()
        work()
        history._wrong(kind, rows_of(folder / "tables"), [])
    shutil.rmtree(folder)
    gc.collect()
    gc.freeze()


def run(
    histories: int, kills: int, seed: int, length: int = 7, told: Callable[[str], None] = print
) -> HistoriesReport:
    """Play histories, as many kills as asked shared among them.

    Raises:
        WrongHistory, WorkFailed: the text begins with the seed that shows it again.
    """
    report, began = HistoriesReport(), time.perf_counter()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="vista-histories-", dir=memory_folder()) as folder:
        model = small_bundle(Path(folder, "model"))
        if histories > 3:
            warmed(model, Path(folder, "warm"))
        for number in range(histories):
            root = Path(folder, f"home{number}")
            root.mkdir()
            # what ended before its kill came is made up for by the histories that are left
            share = min(length, -(-(kills - report.killed) // (histories - number)))
            try:
                History(root, model, seed + number, report).play(length, share)
            except (WrongHistory, WorkFailed) as error:
                again = f"--histories 1 --kills {share} --length {length} --seed {seed + number}"
                raise WrongHistory(f"{again}: {error}") from error
            shutil.rmtree(root)
            report.seconds = time.perf_counter() - began
            if (number + 1) % 25 == 0:
                told(summary(report))
    return report


def summary(report: HistoriesReport) -> str:
    return (
        f"{report.histories} histories, {sum(report.steps.values())} steps {dict(report.steps)}, {report.killed} kills "
        f"({dict(report.halfway)} the step), {report.events_checked} rows and {report.lookups_checked} lookups "
        f"compared, {report.seconds:.0f} s: nothing lost, nothing twice, nobody back"
    )


def main() -> None:
    given = asked(__doc__, histories=500, kills=1_500, length=(7, "steps of a history"), seed=1)
    told = functools.partial(print, flush=True)
    told(summary(run(given.histories, given.kills, given.seed, given.length, told)))


if __name__ == "__main__":
    main()
