"""Two publishers at once: both go live, in order, or one wins and the other is told; none is lost silently. And a
publisher beside ``forget``: whoever is forgotten while a run or a compaction is under way is nowhere afterwards.

    python -m tools.drills.race --races 1000 --seed 7

The first is stopped at a step of its work. The second then runs to its end, or until it waits for the first's lock.
Then the first goes on or is killed; the second may be killed at a step of its own. What was killed is run again. All
the while readers compare every value with the truth of ``cache_store.testing``. One seed is one course of events.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cache_store import Store
from cache_store.errors import Incomplete, PublishConflict, StoreBusy
from cache_store.format import manifest as manifests
from cache_store.format.layout import Layout, exclusive
from cache_store.format.lines import live
from cache_store.read.generation import Generation
from cache_store.testing import STEP, Truth, WrongValue
from tools.drills.asked import asked
from tools.drills.drill import Aim, memory_folder, tidy
from tools.drills.killing import Child
from tools.drills.watch import Seen, Watch

CONFLICT = "conflict"
_DEPTH = 4
_RACES_PER_WORLD = 25


@dataclass(frozen=True)
class Entry:
    """One publisher of a race.

    Attributes:
        kind: ``delta``, ``full`` (both refuse to go live unless the line is where they began), ``free`` (a full one
            that takes the line as it finds it), ``again`` (the same run as the other publisher), ``compact``,
            ``forget``.
        run: its run.
        version: what it publishes; of a compaction or a forget, what was live before.
        line: where.
        users: indices of those to forget.
    """

    kind: str
    run: str
    version: int
    line: str = "main"
    users: tuple[int, ...] = ()


PAIRS = (
    ("delta", "delta"), ("delta", "full"), ("full", "delta"), ("full", "full"), ("free", "free"), ("free", "delta"),
    ("delta", "free"), ("compact", "delta"), ("delta", "compact"), ("delta", "again"), ("free", "shadow"),
    ("delta", "forget"), ("free", "forget"), ("compact", "forget"), ("forget", "delta"), ("forget", "compact"),
)  # fmt: skip
"""Who races whom; the first is the one that is stopped."""


@dataclass
class RaceReport:
    """Counts of races.

    Attributes:
        races: by pair.
        endings: ``both``, ``one``, ``same`` (one generation for one run), ``forgot``, by count.
        kills: of the first and of the second publisher.
        after_flip: kills after a pointer had been replaced.
        waited: races in which the second came while the first held the lock.
        steps: distinct steps of the first.
    """

    races: Counter[str] = field(default_factory=Counter)
    endings: Counter[str] = field(default_factory=Counter)
    kills: Counter[str] = field(default_factory=Counter)
    after_flip: int = 0
    waited: int = 0
    steps: set[str] = field(default_factory=set)
    seen: Seen = field(default_factory=Seen)
    seconds: float = 0.0

    def as_dict(self) -> dict[str, object]:
        return {
            "races": sum(self.races.values()),
            "by_pair": dict(sorted(self.races.items())),
            "endings": dict(sorted(self.endings.items())),
            "kills": dict(sorted(self.kills.items())),
            "kills_after_flip": self.after_flip,
            "second_waited_for_the_lock": self.waited,
            "distinct_steps": len(self.steps - {""}),
            "readers": vars(self.seen),
            "seconds": round(self.seconds, 1),
        }


class Track:
    """A store on which races are run."""

    def __init__(self, root: Path, truth: Truth, readers: int, seed: int) -> None:
        self.root, self.truth = root, truth
        self.version, self.last_full, self.serial = STEP, STEP, 0
        truth.publish(truth.create(root), "run-0", STEP)
        self.watch = Watch([root], truth, readers, seed, gated=False)

    def entries(self, names: tuple[str, str], rng: np.random.Generator) -> tuple[Entry, Entry]:
        """Two publishers with contents of their own; their shards are built, unless someone is forgotten."""
        first = self._entry(names[0], 1, rng)
        same = Entry("again", first.run, first.version)
        second = same if names[1] == "again" else self._entry(names[1], 2, rng)
        if "forget" not in names:
            for entry in (first, second):
                if entry.run:
                    self.truth.build(Store(self.root), entry.run, entry.version, self._base(entry))
        return first, second

    def _entry(self, kind: str, place: int, rng: np.random.Generator) -> Entry:
        if kind == "compact":
            return Entry(kind, "", self.version)
        if kind == "forget":
            at = rng.choice(self.truth.num_users, 2, replace=False)
            self.watch.forgotten[at] = True
            return Entry(kind, "", self.version, users=tuple(at.tolist()))
        if kind == "delta":
            version = self.version + place
        else:
            self.last_full += STEP
            version = self.last_full
        self.serial += 1
        run = f"run-{self.serial}"
        Store(self.root).stage(run)
        return Entry("free", run, version, "shadow") if kind == "shadow" else Entry(kind, run, version)

    def _base(self, entry: Entry) -> int | None:
        return self.version if entry.kind in ("delta", "again") else None

    def work(self, entry: Entry, parent: str) -> str:
        """Publish; the generation that went live, or that it gave way."""
        try:
            return self._work(entry, parent)
        except PublishConflict:
            return CONFLICT
        except Incomplete:  # forget took what was built: a job builds it again, and so do we
            return self.work(entry, parent)

    def _work(self, entry: Entry, parent: str) -> str:
        if entry.kind == "forget":
            Store(self.root).forget(self.truth.users[list(entry.users)])
            return ""
        if entry.kind == "compact":
            with Store.open(self.root) as store:
                return store.compact()
        return self.truth.publish(
            Store(self.root), entry.run, entry.version, line=entry.line,
            parent=None if entry.kind == "free" else parent, base=self._base(entry),
        )  # fmt: skip

    def check(self, both: tuple[Entry, Entry], said: tuple[str, str]) -> str:
        """Who said that he went live is in the line, who was refused is not; the line shows one of them, whole.

        Raises:
            WrongValue
        """
        place = f"{both}: {said}"
        entries = [entry for entry in both if entry.kind != "forget"]
        results = [result for entry, result in zip(both, said, strict=True) if entry.kind != "forget"]
        for entry, result in zip(entries, results, strict=True):
            layout = Store(self.root, lease=False).layout
            pointer = live(layout, entry.line)
            there = (pointer.live, *pointer.earlier)
            if result != CONFLICT and result not in there:
                raise WrongValue(f"{place}: {result} is lost, the line has {there}")
            if result == CONFLICT and entry.run in [
                manifests.read(layout.generation(g)).run_id for g in there
            ]:
                raise WrongValue(f"{place}: {entry.run} was refused, and is in the line")
        winners = [e for e, r in zip(entries, results, strict=True) if r != CONFLICT]
        kinds = {e.kind for e in entries}
        _outcome(place, kinds, results)
        for line in {e.line for e in entries}:
            with Store.open(self.root, line=line) as store:
                version, may = store.manifest.watermark_ms, {e.version for e in winners if e.line == line}
                if version not in may:
                    raise WrongValue(f"{place}: version {version} is live on {line!r}, expected one of {may}")
                self.truth.check_all(store, version, self.watch.forgotten)
                if line == "main":
                    self.version = version
        for entry in both:
            self._check_law_11(entry, place)
        if len(entries) == 1:
            return "forgot"
        return "same" if "again" in kinds else "both" if len({*results} - {CONFLICT}) == 2 else "one"

    def _check_law_11(self, entry: Entry, place: str) -> None:
        gone = set(self.truth.users[list(entry.users)].tolist())
        with Store.open(self.root) as store:
            for manifest in store.generations() if gone else ():
                generation = Generation(store.layout.generation(manifest.generation), manifest, True)
                for k in range(manifest.num_shards):
                    left = gone & set(generation.users(k)[0].tolist())
                    if left:
                        raise WrongValue(f"{place}: {left} came back in {manifest.generation}")


def _outcome(place: str, kinds: set[str], results: list[str]) -> None:
    """Raise where so many of these kinds may not have gone live."""
    won = {r for r in results if r != CONFLICT}
    if not won:
        raise WrongValue(f"{place}: nobody won")
    if kinds <= {"delta", "full"} and len(won) != 1:
        raise WrongValue(f"{place}: expected one winner")
    if kinds == {"free"} and CONFLICT in results:
        raise WrongValue(f"{place}: expected both to go live")
    if "again" in kinds and len(set(results)) != 1:
        raise WrongValue(f"{place}: one run, two outcomes")


def run(races: int, seed: int, *, readers: int = 2, folder: Path | None = None) -> RaceReport:
    """Run races.

    Raises:
        WrongValue, WorkFailed: a law does not hold; the text says where.
    """
    rng = np.random.default_rng(seed)
    report, start, aim = RaceReport(), time.perf_counter(), Aim(rng)
    while sum(report.races.values()) < races:
        truth = Truth(num_users=20, strings=bool(rng.integers(4) == 0))
        with tempfile.TemporaryDirectory(dir=folder or memory_folder()) as root:
            track = Track(Path(root) / "store", truth, readers, seed * 1000 + sum(report.races.values()))
            try:
                for _ in range(min(_RACES_PER_WORLD, races - sum(report.races.values()))):
                    _race(track, rng, report, aim)
                    track.watch.check()
                report.seen.add(track.watch.close())
                tidy(track.root)
            except BaseException:
                track.watch.stop()
                raise
    report.seconds = time.perf_counter() - start
    return report


def _race(track: Track, rng: np.random.Generator, report: RaceReport, aim: Aim) -> None:
    layout = Store(track.root, lease=False).layout
    with Store.open(track.root) as store:
        parent, depth = store.manifest.generation, store.manifest.depth
    pairs = [p for p in PAIRS if ("compact" not in p or depth) and ("delta" not in p or depth < _DEPTH)]
    # The pair that has raced least: some are not possible in every state of the line.
    names = min(pairs, key=lambda pair: (report.races[" and ".join(pair)], rng.random()))
    report.races[" and ".join(names)] += 1
    entries = track.entries(names, rng)
    mode = str(rng.choice(["file", "line"], p=[0.7, 0.3]))
    first = Child(lambda: track.work(entries[0], parent), mode, aim.next(names[0], mode), stops=True)
    stopped = first.until("stopped")
    held = _held(layout)
    report.waited += held
    own, mortal = f"second {names[1]}", rng.random() < 0.5
    at = aim.next(own, "file") if mortal else None
    second = Child(lambda: track.work(entries[1], parent), "file", at)
    second.until("flock" if held else "result")
    if stopped:
        first.kill() if rng.random() < 0.6 else first.go_on()
    outcomes = first.end(), second.end()
    report.steps.add(outcomes[0].step)
    if not stopped and outcomes[0].result != CONFLICT:
        aim.ended(names[0], mode, outcomes[0])
    if mortal and not outcomes[1].killed and outcomes[1].result != CONFLICT:
        aim.ended(own, "file", outcomes[1])
    results = []
    for who, entry, outcome in zip(("first", "second"), entries, outcomes, strict=True):
        report.kills[who] += outcome.killed
        report.after_flip += outcome.after_flip
        # A killed run is run again; one that ended had its say.
        results.append(track.work(entry, parent) if outcome.killed else outcome.result)
    report.endings[track.check(entries, (results[0], results[1]))] += 1


def _held(layout: Layout) -> bool:
    """Does another process hold the store's lock?"""
    try:
        with exclusive(layout, "looking", wait=False):
            return False
    except StoreBusy:
        return True


def main() -> None:
    folder = (Path, "where the stores lie; shared memory by default")
    print(json.dumps(run(**vars(asked(__doc__, races=200, seed=0, readers=2, folder=folder))).as_dict()))


if __name__ == "__main__":
    main()
