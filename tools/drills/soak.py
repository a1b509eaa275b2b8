"""A home that is fed, refreshed, compacted, pruned and made to forget without end, under readers that look and die.

    python -m tools.drills.soak --minutes 60          # an hour
    python -m tools.drills.soak --minutes 2           # what `make test` has time for

Every turn ingests a log of a size, refreshes, and now and then forgets, folds and merges; prune follows each with no
grace. Jobs are the real ones in forked processes; readers are processes that look all users up without pause, of which
some die by SIGKILL and are replaced. Every value they saw is compared with the events that its generation must know.
At the end the slopes over the second half are told, per hundred turns: rows, files, bytes and metadata of the home, run
directories, and the readers' memory, open files and mappings.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cache_store.store import Store
from tools.drills import killing
from tools.drills.histories import USERS, HistoriesReport, History, WrongHistory, small_bundle
from tools.drills.onlooker import reader
from vista.data.tables import compaction
from vista.data.tables.warehouse import Warehouse

Known = dict[str, dict[int, int]]
"""Generation to the number of events of each user that it must know."""


@dataclass
class Soaked:
    """What a soak saw.

    Attributes:
        measured: by name, one value a turn.
        lookups: compared.
        deaths: of readers.
    """

    turns: int = 0
    lookups: int = 0
    deaths: int = 0
    generations: int = 0
    seconds: float = 0.0
    measured: dict[str, list[float]] = field(default_factory=dict)

    def slopes(self) -> dict[str, float]:
        """Change per hundred turns over the second half, by least squares, as a share of the mean there."""
        found = {}
        for name, values in self.measured.items():
            late = np.array(values[len(values) // 2 :])
            if len(late) > 2 and late.mean():
                found[name] = round(
                    100 * float(np.polyfit(np.arange(len(late)), late, 1)[0] / late.mean()), 4
                )
        return found

    def text(self) -> str:
        last = {name: round(values[-1], 1) for name, values in self.measured.items() if values}
        return json.dumps(
            {
                "turns": self.turns, "generations": self.generations, "lookups": self.lookups, "deaths": self.deaths,
                "seconds": round(self.seconds), "last": last, "share_per_100_turns": self.slopes(),
            }
        )  # fmt: skip


class Soak:
    """The home, its readers and what they must see."""

    def __init__(self, root: Path, seed: int, readers: int) -> None:
        self.root, self.rng, self.readers = root, np.random.default_rng(seed), readers
        self.history = History(root, small_bundle(root / "model"), seed, HistoriesReport())
        self.soaked = Soaked()
        self.known: Known = {}
        self.gone: set[int] = set()
        self.spawn = multiprocessing.get_context("spawn")
        self.stop = self.spawn.Event()
        self.processes: list[Any] = []

    def run(self, turns: int | None, seconds: float | None, told: Callable[[str], None]) -> Soaked:
        began, soaked = time.perf_counter(), self.soaked
        try:
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
            self.stop.set()
            for process in self.processes:
                process.join(60)
                if process.is_alive():
                    process.kill()
        self._compare()
        return soaked

    def _turn(self) -> None:
        h, turn = self.history, self.soaked.turns
        h._step("ingest", False)
        h.seen, h.truth.brought = h.seen[-10:], dict(list(h.truth.brought.items())[-5:])
        if turn % 5 == 4:
            before = {u for u, *_ in h.truth.rows}
            h._step("forget", False)
            self.gone |= before - {u for u, *_ in h.truth.rows}
        h._step("refresh", False)
        counts = Counter(row[0] for row in h.truth.rows)
        generation = self._live()
        self.known.setdefault(generation, {u: counts.get(u, 0) for u in range(USERS)})
        if turn % 4 == 3:
            h._step("compact", False)
            killing.run(lambda: Store(self.root / "store").compact(), "file", None)
            merged = self._live()
            self.known.setdefault(merged, dict(self.known[generation]))
        h._step("prune", False)
        while len(self.processes) < self.readers:
            self._read()
        if turn % 7 == 6:
            victim = self.processes.pop(int(self.rng.integers(len(self.processes))))
            os.kill(victim.pid, signal.SIGKILL)
            victim.join(60)
            self.soaked.deaths += 1
        self._measure()

    def _live(self) -> str:
        def work() -> str:
            with Store.open(self.root / "store") as store:
                return store.manifest.generation

        return killing.run(work, "file", None).result

    def _read(self) -> None:
        out = self.root / f"seen-{len(list(self.root.glob('seen-*')))}"
        out.touch()
        process = self.spawn.Process(
            target=reader, args=(str(self.root / "store"), USERS, str(out), self.stop)
        )
        process.start()
        self.processes.append(process)

    def _measure(self) -> None:
        def work() -> str:
            tables = Warehouse(self.root / "tables").open()
            rows = sum(f.rows for files in tables.bucket_files().values() for f in files)
            return json.dumps([rows, compaction.most_files(tables)[0]])

        rows, most = json.loads(killing.run(work, "file", None).result)
        files = [p for name in ("tables", "store") for p in (self.root / name).rglob("*") if p.is_file()]
        values = {
            "rows": rows, "files_of_a_bucket": most, "files": len(files),
            "runs": sum(1 for _ in (self.root / "runs").iterdir()),
            "avro": sum(p.suffix == ".avro" for p in files), "bytes": sum(p.stat().st_size for p in files),
        }  # fmt: skip
        latest = [out.read_text().splitlines()[-1:] for out in self.root.glob("seen-*")]
        alive = [json.loads(lines[0])[2:] for lines in latest[-self.readers :] if lines]
        for i, name in enumerate(("reader_mb", "reader_files", "reader_mappings")):
            if alive:
                values[name] = max(a[i] for a in alive)
        for name, value in values.items():
            self.soaked.measured.setdefault(name, []).append(float(value))

    def _compare(self) -> None:
        """Everything that readers saw, with what its generation must know.

        Raises:
            WrongHistory
        """
        self.soaked.lookups, self.soaked.generations = 0, len(self.known)
        for out in self.root.glob("seen-*"):
            lines = [json.loads(line) for line in out.read_text().splitlines() if line.endswith("]")]
            self.soaked.lookups += lines[-1][1] if lines else 0
            for line, *_ in lines:
                generation, counts, corrupt = json.loads(line)
                want = self.known.get(generation)
                if want is None:
                    continue  # between a publication and its entry here; it is there the next time
                wrong = {
                    u: n for u, n in enumerate(counts) if n != want[u] and not (n == 0 and u in self.gone)
                }
                if corrupt or wrong:
                    raise WrongHistory(f"{out.name}: generation {generation} served {wrong}, must be {want}")


def run(
    turns: int | None = None, minutes: float | None = None, seed: int = 1, readers: int = 8,
    told: Callable[[str], None] = print,
) -> Soaked:  # fmt: skip
    """Soak for a number of turns or minutes.

    Raises:
        WrongHistory: a reader, the tables or the store had a wrong value.
    """
    with tempfile.TemporaryDirectory(prefix="vista-soak-") as folder:
        return Soak(Path(folder), seed, readers).run(turns, None if minutes is None else 60 * minutes, told)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--readers", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    done = run(None, asked.minutes, asked.seed, asked.readers, lambda text: print(text, flush=True))
    print(done.text(), flush=True)


if __name__ == "__main__":
    main()
