"""Law 7 under load: readers look without pause while a publisher publishes, folds and prunes as fast as it can.

    python -m tools.faults.storm --seconds 60 --every-ms 100          # one minute, a generation every 100 ms
    python -m tools.faults.storm --generations 40                     # bounded by count

Every value that every reader sees is compared with ``truth``; a reader that looks twice at one generation, from a
thread of its own store, or from an old pin, is one of them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cache_store import Store
from tools.faults.drill import memory_folder
from tools.faults.truth import STEP, Truth
from tools.faults.watch import Seen, Watch


@dataclass
class StormReport:
    """What a storm did.

    Attributes:
        published: generations by kind. pruned: generations removed. seen: of the reader processes.
        slowest: lookups of the reader process that did fewest. threads: lookups by threads of one store.
    """

    published: Counter[str] = field(default_factory=Counter)
    pruned: int = 0
    seen: Seen = field(default_factory=Seen)
    slowest: int = 0
    threads: int = 0
    seconds: float = 0.0

    def as_dict(self) -> dict[str, object]:
        return {
            **vars(self),
            "published": dict(self.published),
            "seen": vars(self.seen),
            "seconds": round(self.seconds, 1),
        }


def run(
    generations: int | None,
    seed: int,
    *,
    readers: int = 8,
    threads: int = 2,
    seconds: float | None = None,
    every_ms: float = 0.0,
    min_lookups: int = 20,
) -> StormReport:
    """Publish ``generations`` (or for ``seconds``, one every ``every_ms``) under the eyes of readers.

    Args:
        readers: processes. threads: of this process, sharing one store that they refresh under each other.
        min_lookups: go on publishing until every reader has looked so often.

    Raises:
        WrongValue: a reader saw something that was never published together, or failed.
    """
    rng, report, start = np.random.default_rng(seed), StormReport(), time.perf_counter()
    truth = Truth(num_users=40, record_scale=int(rng.choice([1, 48])))
    with tempfile.TemporaryDirectory(dir=memory_folder()) as folder:
        root = Path(folder) / "store"
        publisher = truth.create(root)
        truth.publish(publisher, "run-0", STEP)
        watch = Watch([root], truth, readers, seed, gated=False)
        group = _Threads(root, truth, threads, seed)
        try:
            version = STEP
            while True:
                number = sum(report.published.values())
                enough = (
                    number >= generations
                    if generations is not None
                    else time.perf_counter() - start >= (seconds or 0)
                )
                if enough and watch.lookups().min(initial=min_lookups) >= min_lookups:
                    break
                due = start + number * every_ms / 1000
                time.sleep(max(0.0, due - time.perf_counter()))
                version = _publish(publisher, truth, version, number, report)
                watch.check()
                group.check()
            report.slowest = int(watch.lookups().min())
            report.threads = group.close()
            report.seen = watch.close()
        except BaseException:
            watch.stop()
            group.stop()
            raise
    report.seconds = time.perf_counter() - start
    return report


def _publish(store: Store, truth: Truth, version: int, number: int, report: StormReport) -> int:
    """The next generation: mostly deltas, a compaction now and then, a full one every tenth; old ones are pruned."""
    store.refresh()
    live = store.manifest
    if number % 10 == 9:
        version = (version // STEP + 1) * STEP
        truth.publish(store, f"run-{number + 1}", version, parent=live.generation)
        report.published["full"] += 1
    elif live.depth >= 4:
        store.compact()
        report.published["compacted"] += 1
    else:
        version += 1
        truth.publish(store, f"run-{number + 1}", version, parent=live.generation, base=version - 1)
        report.published["delta"] += 1
    if number % 3 == 2:
        report.pruned += len(store.prune(2).generations)
    return version


class _Threads:
    """Threads that share one store, refresh it under each other, and look at pinned views of it."""

    def __init__(self, root: Path, truth: Truth, count: int, seed: int) -> None:
        self._store, self._truth = Store.open(root), truth
        self._stop, self._errors = threading.Event(), []
        self._counts = [0] * count
        self._threads = [
            threading.Thread(target=self._loop, args=(i, np.random.default_rng([seed, 99, i])))
            for i in range(count)
        ]
        [t.start() for t in self._threads]

    def _loop(self, number: int, rng: np.random.Generator) -> None:
        try:
            while not self._stop.is_set():
                self._store.refresh()
                with self._store.pin() as pinned:
                    version = pinned.manifest.watermark_ms
                    for _ in range(2):
                        at = rng.integers(0, self._truth.num_users, 20)
                        self._truth.check(pinned.lookup(self._truth.users[at]), at, version)
                        self._counts[number] += 1
        except BaseException as error:
            self._errors.append(error)

    def check(self) -> None:
        if self._errors:
            raise self._errors[0]

    def stop(self) -> None:
        self._stop.set()

    def close(self) -> int:
        self._stop.set()
        [t.join() for t in self._threads]
        self.check()
        self._store.close()
        return sum(self._counts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--generations", type=int)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--every-ms", type=float, default=100.0)
    parser.add_argument("--readers", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    report = run(
        args.generations, args.seed, readers=args.readers, seconds=args.seconds, every_ms=args.every_ms
    )
    print(json.dumps(report.as_dict()))


if __name__ == "__main__":
    main()
