"""Law 7 under load: readers look without pause while a publisher publishes, folds and prunes as fast as it can.

    python -m tools.drills.storm --seconds 60 --every-ms 100          # one minute, a generation every 100 ms
    python -m tools.drills.storm --generations 40                     # bounded by count

Every value that every reader sees is compared with the truth of ``cache_store.testing``; a reader that looks twice at
one generation, from a thread of its own store, or from an old pin, is one of them.
"""

from __future__ import annotations

import itertools
import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cache_store import Store
from cache_store.testing import STEP, Truth
from tools.drills.asked import asked
from tools.drills.drill import memory_folder
from tools.drills.watch import LOOKUPS, Seen, Watch

_DEPTH = 4


@dataclass
class StormReport:
    """What a storm did.

    Attributes:
        published: generations by kind.
        pruned: generations removed.
        seen: of the reader processes.
        slowest: lookups of the reader process that did fewest.
        threads: lookups by threads of one store.
        publish_ms: median and largest time of one turn of the publisher, compaction and pruning included.
    """

    published: Counter[str] = field(default_factory=Counter)
    pruned: int = 0
    seen: Seen = field(default_factory=Seen)
    slowest: int = 0
    threads: int = 0
    publish_ms: tuple[float, float] = (0.0, 0.0)
    seconds: float = 0.0

    def as_dict(self) -> dict[str, object]:
        plain = {
            "published": dict(self.published),
            "seen": vars(self.seen),
            "seconds": round(self.seconds, 1),
        }
        return {**vars(self), **plain}


def run(
    generations: int | None, seed: int, *, readers: int = 8, threads: int = 2, seconds: float | None = None,
    every_ms: float = 0.0, min_lookups: int = 20,
) -> StormReport:  # fmt: skip
    """Publish ``generations`` (or for ``seconds``, one every ``every_ms``) under the eyes of readers.

    Args:
        readers: processes.
        threads: of one more process, sharing one store that they refresh under each other.
        min_lookups: go on publishing until every reader has looked so often.

    Raises:
        WrongValue: a reader saw something that was never published together, or failed.
    """
    rng, report = np.random.default_rng(seed), StormReport()
    truth = Truth(num_users=40, record_scale=int(rng.choice([1, 48])))
    with tempfile.TemporaryDirectory(dir=memory_folder()) as folder:
        root = Path(folder) / "store"
        publisher = truth.create(root)
        truth.publish(publisher, "run-0", STEP)
        planned = generations if generations is not None else int((seconds or 0) * 1000 / max(every_ms, 100))
        for turn in itertools.islice(_turns(), planned):
            if turn.kind != "compacted":  # jobs build; what is looked at here is going live
                truth.build(publisher, turn.run, turn.version, turn.base)
        watch = Watch([root], truth, readers, seed, gated=False)
        group = _Threads(root, truth, threads, seed)
        start, times = time.perf_counter(), []
        try:
            for turn in _turns():
                if generations is None:
                    enough = time.perf_counter() - start >= (seconds or 0)
                else:
                    enough = turn.number >= generations
                if enough and watch.lookups().min(initial=min_lookups) >= min_lookups:
                    break
                due = start + turn.number * every_ms / 1000
                time.sleep(max(0.0, due - time.perf_counter()))
                began = time.perf_counter()
                _publish(publisher, truth, turn, report)
                times.append((time.perf_counter() - began) * 1000)
                watch.check()
                group.check()
            report.publish_ms = (round(float(np.median(times)), 1), round(max(times), 1))
            report.slowest = int(watch.lookups().min())
            report.threads = group.close().lookups
            report.seen = watch.close()
        except BaseException:
            watch.stop()
            group.stop()
            raise
    report.seconds = time.perf_counter() - start
    return report


@dataclass(frozen=True)
class _Turn:
    """What the publisher does next: mostly deltas, a compaction now and then, a full generation every tenth time."""

    number: int
    kind: str
    version: int

    @property
    def run(self) -> str:
        return f"run-{self.number + 1}"

    @property
    def base(self) -> int | None:
        return self.version - 1 if self.kind == "delta" else None


def _turns() -> Iterator[_Turn]:
    version, depth = STEP, 0
    for number in itertools.count():
        if number % 10 == 9:
            kind, version, depth = "full", (version // STEP + 1) * STEP, 0
        elif depth == _DEPTH:
            kind, depth = "compacted", 0
        else:
            kind, version, depth = "delta", version + 1, depth + 1
        yield _Turn(number, kind, version)


def _publish(store: Store, truth: Truth, turn: _Turn, report: StormReport) -> None:
    store.refresh()
    if turn.kind == "compacted":
        store.compact()
    else:
        truth.publish(store, turn.run, turn.version, parent=store.manifest.generation, base=turn.base)
    report.published[turn.kind] += 1
    if turn.number % 3 == 2:
        report.pruned += len(store.prune(2).generations)


class _Threads(Watch):
    """A process whose threads share one store, refresh it under each other, and look at pinned views of it.

    A process of its own, since threads beside the publisher would hold the interpreter whenever it comes back from
    a file-system call.
    """

    def __init__(self, root: Path, truth: Truth, count: int, seed: int) -> None:
        self._threads = count
        super().__init__([root], truth, 1, seed, gated=False)

    def _loop(self, root: Path, truth: Truth, number: int, rng: np.random.Generator) -> None:
        def look(own: np.random.Generator) -> int:
            lookups = 0
            while self.goes_on():
                store.refresh()
                with store.pin() as pinned:
                    version = pinned.manifest.watermark_ms
                    for _ in range(2):
                        at = own.integers(0, truth.num_users, 20)
                        truth.check(pinned.lookup(truth.users[at]), at, version)
                        lookups += 1
            return lookups

        with Store.open(root) as store, ThreadPoolExecutor(self._threads) as pool:
            for done in as_completed([pool.submit(look, own) for own in rng.spawn(self._threads)]):
                self._stop[0] |= done.exception() is not None
                self._counts[number, LOOKUPS] += done.result()


def main() -> None:
    given = asked(__doc__, generations=int, seconds=60.0, every_ms=100.0, readers=8, seed=0)
    print(json.dumps(run(**vars(given)).as_dict()))


if __name__ == "__main__":
    main()
