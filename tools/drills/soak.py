"""A home that is fed, followed, compacted, pruned and made to forget, under readers that look, fork and die.

    python -m tools.drills.soak --minutes 60          # an hour
    python -m tools.drills.soak --minutes 2           # a first look

``vista follow``'s service, a process of its own, takes what a feeder puts in a folder and brings it live; it is killed
now and then and started again. Meanwhile users are forgotten, tables and generations folded, and everything that
nothing needs is pruned with no grace. Eight readers look all users up; some fork, some die by SIGKILL and are replaced.
Every value they saw is compared with the events that its generation may know, the tables with a set of rows, each turn.
Told at the end: the last value of everything measured, and its slope over the second half.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from beam_jobs.follow.service import FollowOptions, Service
from beam_jobs.follow.sources.folder import Folder
from beam_jobs.generation import summarize
from beam_jobs.ingest import job as ingest
from beam_jobs.ingest.plan import IngestOptions
from beam_jobs.run.engines import HERE
from beam_jobs.run.leftovers import prune_runs
from beam_jobs.tables import compact, forget
from cache_store.store import Store
from tools.drills import killing
from tools.drills.asked import asked
from tools.drills.drill import memory_folder
from tools.drills.expected_rows import ExpectedRows, differ, rows_of, write_log
from tools.drills.histories import ACTIONS, ITEMS, T0, USERS, WrongHistory, small_bundle
from tools.drills.onlooker import held
from vista.data.tables import compaction
from vista.data.tables.pruning import prune
from vista.data.tables.warehouse import Warehouse

TURN_MS = 100_000
"""Of a log's time; one that was forgotten in a turn is so up to its end."""
PATIENCE_S = 300.0
INBOX = 30
"""Logs that the feeder leaves in the folder."""

Known = dict[str, list[set[int]]]
"""Generation to the numbers of events that it may know of each user."""


@dataclass
class Soaked:
    """What a soak saw.

    Attributes:
        measured: by name, one value a turn.
        lookups: compared.
        deaths: of readers and of the follower.
    """

    turns: int = 0
    lookups: int = 0
    deaths: Counter[str] = field(default_factory=Counter)
    generations: int = 0
    forgotten: int = 0
    seconds: float = 0.0
    measured: dict[str, list[float]] = field(default_factory=dict)

    def slopes(self) -> dict[str, list[float]]:
        """Over the second half, by least squares: [change per hundred turns, that as a share of the mean]."""
        found = {}
        for name, values in self.measured.items():
            late = np.array(values[len(values) // 2 :])
            if len(late) > 2 and late.mean():
                slope = 100 * float(np.polyfit(np.arange(len(late)), late, 1)[0])
                found[name] = [round(slope, 3), round(slope / float(late.mean()), 4)]
        return found

    def text(self) -> str:
        last = {name: round(values[-1], 1) for name, values in self.measured.items() if values}
        told = {
            "turns": self.turns, "generations": self.generations, "forgotten": self.forgotten,
            "lookups": self.lookups, "killed": dict(self.deaths), "seconds": round(self.seconds), "last": last,
        }  # fmt: skip
        return json.dumps({**told, "per_100_turns": self.slopes()})


def follow(home: str) -> None:
    """The following process: what ``vista follow HOME/inbox`` runs."""
    torch.set_num_threads(1)
    root = Path(home)
    options = FollowOptions(
        str(root / "tables"), str(root / "model"), str(root / "store"), str(root / "runs" / "follow"),
        batch_s=0.5, max_depth=4, keep=1, keep_s=0.0, keep_runs=4, tidy_s=5.0,
    )  # fmt: skip
    for _ in Service(options, Folder(str(root / "inbox"))).turns():
        gc.collect()


class Soak:
    """The home, its follower and readers, and what they must see."""

    def __init__(self, root: Path, seed: int, readers: int, turn_s: float) -> None:
        self.root, self.rng, self.readers, self.turn_s = root, np.random.default_rng(seed), readers, turn_s
        self.soaked, self.truth = Soaked(), ExpectedRows()
        self.known: Known = {}
        self.processes: list[subprocess.Popen[bytes]] = []
        self.follower: subprocess.Popen[bytes] | None = None
        self.began_readers = 0

    def run(self, turns: int | None, seconds: float | None, told: Callable[[str], None]) -> Soaked:
        began, soaked = time.perf_counter(), self.soaked
        try:
            self._begin()
            while (turns is None or soaked.turns < turns) and (
                seconds is None or time.perf_counter() - began < seconds
            ):
                self._turn()
                soaked.turns += 1
                soaked.seconds = time.perf_counter() - began
                if soaked.turns % 20 == 0:
                    self._compare()
                    told(soaked.text())
        finally:
            for process in [*self.processes, self.follower]:
                if process is not None:
                    process.kill()
                    process.wait(60)
        self._compare()
        return soaked

    def _begin(self) -> None:
        """Tables and a first generation; then the readers and the follower."""
        root = self.root
        small_bundle(root / "model")
        path = self._feed()

        def work() -> None:
            torch.set_num_threads(1)
            tables, model, store, runs = (str(root / name) for name in ("tables", "model", "store", "runs"))
            logs = IngestOptions((str(path),), tables, f"{runs}/first", num_buckets=2)
            ingest.run(logs, [HERE], progress=False)
            full = summarize.SummarizeOptions(tables, model, store, f"{runs}/full", progress=False)
            summarize.run(full, [HERE])

        killing.run(work, "file", None)
        self._allow(self._counts())
        self._follow()
        while len(self.processes) < self.readers:
            self._read()

    def _turn(self) -> None:
        began, turn, before = time.perf_counter(), self.soaked.turns, self._counts()
        user, work = None, []
        if turn % 5 == 4:
            user = int(self.rng.integers(USERS))
            work.append(self._forgetting(user, T0 + (turn + 2) * TURN_MS - 1))
        if turn % 4 == 3:
            work.append(self._compacting(turn))
        children = [killing.Child(each, "file", None) for each in work]
        self._feed()
        fed = self._counts()
        if turn % 25 == 24:  # wherever it is
            assert self.follower is not None
            self._kill("follower", self.follower)
            self._follow()
        for child in children:
            _ended(child)
        if user is not None:
            self.truth.forget(user, T0 + (turn + 2) * TURN_MS - 1)
            self.soaked.forgotten += 1
        self._wait_until_live(before, fed)
        _ended(killing.Child(self._pruning, "file", None))
        self._check_tables()
        if turn % 7 == 6:
            self._kill("reader", self.processes.pop(int(self.rng.integers(len(self.processes)))))
            self._read()
        self._measure()
        time.sleep(max(0.0, self.turn_s - (time.perf_counter() - began)))

    def _kill(self, who: str, process: subprocess.Popen[bytes]) -> None:
        process.kill()
        process.wait(60)
        self.soaked.deaths[who] += 1

    # Work -----------------------------------------------------------------------------------------------------

    def _feed(self) -> Path:
        """A log of a turn, of which some rows come late and some twice."""
        turn = self.soaked.turns + bool(self.known)
        inbox = self.root / "inbox"
        inbox.mkdir(exist_ok=True)
        rows = set()
        for _ in range(12):
            at = turn if self.rng.random() < 0.8 else int(self.rng.integers(max(0, turn - 20), turn + 1))
            time_ms = T0 + at * TURN_MS + 1_000 * int(self.rng.integers(0, 90))
            action = ACTIONS[int(self.rng.integers(0, 1 if not self.known else len(ACTIONS)))]
            rows.add((int(self.rng.integers(USERS)), time_ms, int(self.rng.integers(ITEMS)), action))
        if again := sorted(self.truth.rows):
            rows |= {again[int(self.rng.integers(len(again)))] for _ in range(3)}
        path = inbox / f"{turn:06d}.parquet"
        write_log(self.root / "feeding.parquet", rows)
        os.replace(self.root / "feeding.parquet", path)
        for old in sorted(inbox.iterdir())[:-INBOX]:
            old.unlink()
        self.truth.ingest("", rows)
        return path

    def _forgetting(self, user: int, now: int) -> Callable[[], object]:
        tables, store, runs = (str(self.root / name) for name in ("tables", "store", "runs"))
        asked = forget.ForgetOptions([user], tables, (store,), (runs,), now_ms=now)
        return lambda: len(forget.run(asked).tables)

    def _compacting(self, turn: int) -> Callable[[], object]:
        store = self.root / "store"
        asked = compact.CompactOptions(
            str(self.root / "tables"), str(self.root / "runs" / f"compact{turn}"), (str(store),), most=2,
            progress=False,
        )  # fmt: skip

        def work() -> None:
            compact.run(asked, [HERE])
            Store(store).compact()

        return work

    def _pruning(self) -> None:
        store, now = Store(self.root / "store"), int(time.time() * 1000)
        store.prune(1, 0)
        kept = {int(m.table_snapshot) for m in store.generations() if m.table_snapshot is not None}
        prune(Warehouse(self.root / "tables").open(), kept, now)
        prune_runs(self.root / "runs", now)

    def _follow(self) -> None:
        code = f"from tools.drills.soak import follow; follow({str(self.root)!r})"
        self.follower = subprocess.Popen([sys.executable, "-c", code])

    def _read(self) -> None:
        out, forks = self.root / f"seen-{self.began_readers:05d}", self.began_readers % 2 == 0
        self.began_readers += 1
        words = [str(self.root / "store"), str(USERS), str(out), "0.25", "forks" if forks else "-"]
        self.processes.append(subprocess.Popen([sys.executable, "-m", "tools.drills.onlooker", *words]))

    # What must be -------------------------------------------------------------------------------------------------

    def _counts(self) -> dict[int, int]:
        return dict(Counter(row[0] for row in self.truth.rows))

    def _allow(self, *states: dict[int, int]) -> None:
        """What generations that came since the last turn may say; of one forgotten, also nothing."""
        found = [{state.get(u, 0) for state in states} for u in range(USERS)]
        for path in (self.root / "store" / "generations").iterdir():
            self.known.setdefault(path.name, found)

    def _wait_until_live(self, *states: dict[int, int]) -> None:
        """Until the follower has published what is there now.

        Raises:
            WrongHistory: it has died, or is silent.
        """
        want, end = self._counts(), time.monotonic() + PATIENCE_S
        with Store.open(self.root / "store", lease=False) as store:
            while True:
                store.refresh()
                self._allow(*states, want)
                got = store.lookup(list(range(USERS))).event_count.tolist()
                if got == [want.get(u, 0) for u in range(USERS)]:
                    return
                running = [p for p in [*self.processes, self.follower] if p is not None]
                ended = [p.args for p in running if p.poll() is not None]
                if time.monotonic() > end or ended:
                    raise WrongHistory(
                        f"turn {self.soaked.turns}: {got} is live, must be {want}; processes that ended: {ended}"
                    )
                time.sleep(0.2)

    def _check_tables(self) -> None:
        found = killing.told(lambda: rows_of(self.root / "tables"))
        rows = {(u, t, i, a) for u, t, i, a in found}
        if len(found) != len(rows) or rows != self.truth.rows:
            wrong = differ(rows, self.truth.rows)
            raise WrongHistory(f"turn {self.soaked.turns}: {wrong}, {len(found)} rows")

    def _compare(self) -> None:
        """Everything that readers saw, with what its generation may know.

        Raises:
            WrongHistory
        """
        self.soaked.lookups, self.soaked.generations = 0, len(self.known)
        for out in self.root.glob("seen-*"):
            lines = [json.loads(line) for line in out.read_text().splitlines() if line.endswith("]")]
            self.soaked.lookups += lines[-1][1] if lines else 0
            for line, *_ in lines:
                generation, counts, corrupt = json.loads(line)
                may = self.known.get(generation)
                if may is None:
                    continue  # between a publication and its entry here; it is there the next time
                away = self.truth.until  # of one forgotten, also nothing
                wrong = {u: n for u, n in enumerate(counts) if n not in may[u] and (n or u not in away)}
                if corrupt or wrong:
                    raise WrongHistory(f"{out.name}: generation {generation} served {wrong}, may be {may}")

    def _measure(self) -> None:
        def work() -> dict[str, int]:
            tables = Warehouse(self.root / "tables").open()
            return {
                "rows": sum(f.rows for files in tables.bucket_files().values() for f in files),
                "files_of_a_bucket": compaction.most_files(tables)[0],
                "snapshots": len(tables.history.metadata.snapshots),
                "ledger": tables.read_sources().num_rows,
            }

        values: dict[str, float] = killing.told(work)
        files = _sizes([self.root / "tables", self.root / "store"])
        values |= {
            "files": len(files), "bytes": sum(files.values()),
            "metadata_files": sum(name.endswith((".avro", ".metadata.json")) for name in files),
            "run_files": len(_sizes([self.root / "runs"])),
        }  # fmt: skip
        assert self.follower is not None
        for who, processes in (("reader", self.processes), ("follower", [self.follower])):
            measured = [held(p.pid) for p in processes if p.poll() is None]
            for i, what in enumerate(("mb", "open_files", "mappings")):
                values[f"{who}_{what}"] = max((m[i] for m in measured), default=0)
        for name, value in values.items():
            self.soaked.measured.setdefault(name, []).append(float(value))


def _ended(child: killing.Child) -> None:
    """A job that another was faster than says so, and is done again another time."""
    try:
        child.end()
    except killing.WorkFailed as error:
        if "TableChanged" not in str(error) and "PublishConflict" not in str(error):
            raise


def _sizes(folders: list[Path]) -> dict[str, int]:
    found = {}
    for at, _, names in itertools.chain.from_iterable(map(os.walk, folders)):
        for path in (f"{at}/{name}" for name in names):
            with contextlib.suppress(FileNotFoundError):  # the follower tidies
                found[path] = os.stat(path).st_size
    return found


def run(
    turns: int | None = None, minutes: float | None = None, seed: int = 1, readers: int = 8, turn_s: float = 5.0,
    told: Callable[[str], None] = print,
) -> Soaked:  # fmt: skip
    """Soak for a number of turns or minutes, whichever ends first.

    Args:
        turn_s: a turn takes that long at least.

    Raises:
        WrongHistory: a reader, the tables or the store had a wrong value.
    """
    folder = Path(tempfile.mkdtemp(prefix="vista-soak-", dir=memory_folder()))
    try:
        return Soak(folder, seed, readers, turn_s).run(turns, None if minutes is None else 60 * minutes, told)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    given = asked(__doc__, minutes=60.0, readers=8, seed=1, turn_seconds=(5.0, "at least, of a turn"))
    told = functools.partial(print, flush=True)
    told(run(None, given.minutes, given.seed, given.readers, given.turn_seconds, told).text())


if __name__ == "__main__":
    main()
