"""Crash drill: work on a store is killed at a step, while readers look on; then the same work is done again.

    python -m tools.drills.drill --kills 2000 --seed 7           # SIGKILL with readers
    python -m tools.drills.drill --kills 500 --seed 7 --power    # and what was not fsynced is lost

After every kill: a new reader must see the version before or after the work, whole; then the same work, run again,
must end in the version after; then, now and then, ``prune`` must leave nothing behind and ``verify`` must find
nothing. All the while readers compare every value with the truth of ``cache_store.testing``. One seed is one course
of events, except where a kill comes after a time instead of at a counted step.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cache_store import Status, Store
from cache_store.format import lines
from cache_store.format import manifest as manifests
from cache_store.remote.copy import pull, push
from cache_store.testing import STEP, Truth, WrongValue
from tools.drills import killing
from tools.drills.asked import asked
from tools.drills.watch import Seen, Watch

MODES = ("file", "line", "time")
ACTIONS = {
    "full": 0.1, "delta": 0.2, "compact": 0.15, "prune": 0.1, "forget": 0.1,
    "shadow": 0.05, "promote": 0.05, "rollback": 0.05, "push": 0.1, "pull": 0.1,
}  # fmt: skip
"""What is done, and how often; compaction needs deltas, promotion a shadow."""

_DEPTH = 5
_LATE = 10
_ACTIONS_PER_WORLD = 40


@dataclass
class Act:
    """One piece of work, decided before it begins, so that it can be done again.

    Attributes:
        work: does it; doing it again after a kill finishes it.
        main: version of the main line afterwards.
        shadow: of the line "shadow".
        copy: of the replica.
    """

    name: str
    work: Callable[[], object]
    main: int
    shadow: int | None
    copy: int | None


@dataclass
class KillReport:
    """Counts of a drill.

    Attributes:
        kills: by action.
        steps: distinct steps at which a kill came, by action.
        unkilled: work that ended before its step came.
        recovered: kills after which the same work was done again.
        fell_back: kills after which the version before was live; the others had gone live already.
        after_flip: kills after a pointer had been replaced.
        verified: times that prune left nothing and verify found nothing.
        lost: kinds of files that a simulated power cut took.
        seen: what the readers did.
    """

    kills: Counter[str] = field(default_factory=Counter)
    steps: dict[str, set[str]] = field(default_factory=dict)
    unkilled: int = 0
    recovered: int = 0
    fell_back: int = 0
    after_flip: int = 0
    verified: int = 0
    lost: Counter[str] = field(default_factory=Counter)
    seen: Seen = field(default_factory=Seen)
    seconds: float = 0.0

    @property
    def total(self) -> int:
        return sum(self.kills.values())

    def as_dict(self) -> dict[str, object]:
        return {
            "kills": self.total,
            "by_action": dict(sorted(self.kills.items())),
            "distinct_steps": {name: len(steps) for name, steps in sorted(self.steps.items())},
            "unkilled": self.unkilled,
            "recovered": self.recovered,
            "fell_back": self.fell_back,
            "after_flip": self.after_flip,
            "verified": self.verified,
            "lost_files": dict(sorted(self.lost.items())),
            "readers": vars(self.seen),
            "seconds": round(self.seconds, 1),
        }


class World:
    """A store, its replica and a remote copy between them, and what each must hold."""

    def __init__(self, root: Path, truth: Truth, rng: np.random.Generator, readers: int, seed: int) -> None:
        self.truth, self.rng = truth, rng
        self.main, self.copy, self.remote = root / "main", root / "copy", root / "remote"
        store, replica = truth.create(self.main), truth.create(self.copy)
        self.serial = 0
        self.version: int = STEP
        self.shadow: int | None = None
        self.pushed: int | None = None
        truth.publish(store, "run-0", STEP)
        truth.publish(replica, "run-0", STEP)
        self.copied: int | None = STEP
        self.last_full = STEP
        self.watch = Watch([self.main, self.copy], truth, readers, seed) if readers else None
        self.forgotten = self.watch.forgotten if self.watch else np.zeros(truth.num_users, bool)

    def close(self) -> Seen:
        return self.watch.close() if self.watch else Seen()

    def choose(self) -> Act:
        """The next piece of work that makes sense here."""
        while True:
            act = getattr(self, f"_{self.rng.choice(list(ACTIONS), p=list(ACTIONS.values()))}")()
            if act is not None:
                return act

    def done(self, act: Act) -> None:
        self.version, self.shadow, self.copied = act.main, act.shadow, act.copy

    def _act(self, name: str, work: Callable[[], object], **after: int | None) -> Act:
        state: dict[str, Any] = {"main": self.version, "shadow": self.shadow, "copy": self.copied, **after}
        return Act(name, work, **state)

    def _publishing(self, version: int, **given: Any) -> Callable[[], object]:
        self.serial += 1
        run = f"run-{self.serial}"
        return lambda: self.truth.publish(Store(self.main), run, version, **given)

    def _live(self) -> manifests.Manifest:
        layout = Store(self.main, lease=False).layout
        return manifests.read(layout.generation(lines.live(layout, "main").live))

    def _full(self) -> Act:
        self.last_full += STEP
        work = self._publishing(self.last_full, parent=self._live().generation)
        return self._act("full", work, main=self.last_full)

    def _delta(self) -> Act | None:
        live = self._live()
        if live.depth >= _DEPTH:
            return None
        work = self._publishing(self.version + 1, parent=live.generation, base=self.version)
        return self._act("delta", work, main=self.version + 1)

    def _compact(self) -> Act | None:
        if self._live().depth == 0:
            return None

        def work() -> None:
            with Store.open(self.main) as store:
                store.compact()

        return self._act("compact", work)

    def _prune(self) -> Act:
        path, keep = (self.main, self.copy)[self.rng.integers(2)], int(self.rng.integers(1, 4))
        return self._act("prune", lambda: Store(path).prune(keep))

    def _forget(self) -> Act:
        at = self.rng.integers(0, self.truth.num_users, 2)
        self.forgotten[at] = True

        def work() -> None:
            for path in (self.main, self.copy):
                Store(path).forget(self.truth.users[at])

        return self._act("forget", work)

    def _shadow(self) -> Act:
        self.last_full += STEP
        work = self._publishing(self.last_full, line="shadow")
        return self._act("shadow", work, shadow=self.last_full)

    def _promote(self) -> Act | None:
        if self.shadow is None:
            return None
        return self._act("promote", lambda: Store(self.main).promote("shadow"), main=self.shadow)

    def _rollback(self) -> Act | None:
        layout = Store(self.main, lease=False).layout
        pointer = lines.live(layout, "main")
        if not pointer.earlier:
            return None
        target = pointer.earlier[0]

        def work() -> None:
            store = Store(self.main)
            if lines.live(store.layout, "main").live != target:
                store.rollback(target)

        return self._act("rollback", work, main=manifests.read(layout.generation(target)).watermark_ms)

    def _push(self) -> Act:
        self.pushed = self.version
        return self._act("push", lambda: push(Store(self.main), None, f"file://{self.remote}", jobs=1))

    def _pull(self) -> Act | None:
        if self.pushed is None:
            return None
        url = f"file://{self.remote}"
        return self._act("pull", lambda: pull(url, Store(self.copy), jobs=1), copy=self.pushed)

    def check(self, act: Act | None) -> bool:
        """Every line shows a version it may show, whole; True if any has moved on to the one after ``act``."""
        after = (act.main, act.shadow, act.copy) if act else (self.version, self.shadow, self.copied)
        before = (self.version, self.shadow, self.copied)
        moved = False
        places = ((self.main, "main"), (self.main, "shadow"), (self.copy, "main"))
        for (path, line), old, new in zip(places, before, after, strict=True):
            if old is None and not Store(path, lease=False).layout.pointer(line).exists():
                continue
            with Store.open(path, line=line) as store:
                version = store.manifest.watermark_ms
                if version not in (old, new):
                    raise WrongValue(f"{path.name}, line {line}: version {version}, expected {old} or {new}")
                moved |= version != old
                self.truth.check_all(store, version, self.forgotten)
        if act is None:
            self._check_law_11()
        return moved

    def _check_law_11(self) -> None:
        """Whom the replica has forgotten is in none of its generations, whatever was pulled since."""
        gone = self.truth.users[self.forgotten]
        with Store.open(self.copy) as store:
            for manifest in store.generations() if len(gone) else ():
                found = store.lookup(gone, as_of=manifest.watermark_ms)
                if (found.status != Status.MISSING).any():
                    raise WrongValue(f"{manifest.generation} of the replica: a forgotten user came back")


def tidy(path: Path) -> None:
    """Prune must leave nothing that is not needed, and verify must find nothing.

    Raises:
        WrongValue
    """
    store = Store(path)
    store.prune(1, staging_ms=-(10**12))
    report = store.verify()
    if not report.ok:
        raise WrongValue(f"{path.name}: {report.problems[0]} (and {len(report.problems) - 1} more)")
    left = [*store.layout.staging.iterdir()]
    left += [p for p in path.rglob("*") if any(end in p.name for end in (".tmp", ".deleting", ".part"))]
    # Readers may be renewing their leases at this moment.
    left = [p for p in left if p.parent.name != "leases"]
    if left:
        raise WrongValue(f"{path.name}: {[str(p.relative_to(path)) for p in left[:5]]} left after prune")


def run(
    kills: int, seed: int, *, readers: int = 2, power: bool = False, folder: Path | None = None
) -> KillReport:
    """Kill ``kills`` times.

    Args:
        power: also lose what was not fsynced; without readers, which would not survive a power cut.

    Raises:
        WrongValue, WorkFailed: a law does not hold; the text says where, and the seed reproduces counted kills.
    """
    rng = np.random.default_rng(seed)
    report, start = KillReport(), time.perf_counter()
    aim = Aim(rng)
    number = 0
    while report.total < kills:
        number += 1
        strings, pages = bool(rng.integers(4) == 0), bool(rng.integers(4) == 0)
        truth = Truth(num_users=30, strings=strings, record_scale=48 if pages else 1)
        with tempfile.TemporaryDirectory(dir=folder or memory_folder()) as root:
            world = World(Path(root), truth, rng, 0 if power else readers, seed * 1000 + number)
            try:
                for turn in range(_ACTIONS_PER_WORLD):
                    if report.total >= kills:
                        break
                    _turn(world, rng, report, aim, power)
                    if turn % 8 == 7:
                        tidy(world.main)
                        tidy(world.copy)
                        report.verified += 1
                report.seen.add(world.close())
            except BaseException:
                if world.watch:
                    world.watch.stop()
                raise
    report.seconds = time.perf_counter() - start
    return report


class Aim:
    """Where the next kill of some work goes: every step once before any comes again, in random order.

    The few steps after a pointer was replaced, where work is live but not at its end, come ``_LATE`` times as often.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._steps: dict[tuple[str, str], list[int]] = {}
        self._seconds: dict[str, float] = {}

    def next(self, name: str, mode: str) -> float | None:
        """A step, or seconds; None where the length of such work is not known yet."""
        if mode == "time":
            return self._rng.random() * self._seconds[name] if name in self._seconds else None
        left = self._steps.get((name, mode))
        return float(left.pop()) if left else None

    def ended(self, name: str, mode: str, outcome: killing.Outcome) -> None:
        """Work that ran to its end tells how many steps there are."""
        if mode == "time":
            self._seconds[name] = outcome.seconds
        else:
            late = range(outcome.flip + 1, outcome.steps + 1) if outcome.flip else ()
            steps = [*range(1, outcome.steps + 1), *(_LATE - 1) * [*late]]
            self._steps[name, mode] = self._rng.permutation(steps).tolist()


def _turn(world: World, rng: np.random.Generator, report: KillReport, aim: Aim, power: bool) -> None:
    act = world.choose()
    mode = "file" if power else str(rng.choice(MODES, p=[0.6, 0.25, 0.15]))
    at = aim.next(act.name, mode)
    roots = [world.main, world.copy, world.remote]
    durable = {facts for root in roots for facts in killing.files_of(root).values()} if power else set()
    if world.watch:
        world.watch.resume()
    outcome = killing.run(act.work, mode, at)
    if outcome.killed:
        report.kills[act.name] += 1
        report.after_flip += outcome.after_flip
        report.steps.setdefault(act.name, set()).add(outcome.step)
        if power:
            report.lost.update(killing.lose_unsynced(roots, durable | outcome.durable, rng))
        report.fell_back += not world.check(act)
        act.work()
        report.recovered += 1
    else:
        report.unkilled += 1
        aim.ended(act.name, mode, outcome)
    world.done(act)
    world.check(None)
    if world.watch:
        world.watch.pause()
        world.watch.check()


def memory_folder() -> str | None:
    """Shared memory where there is some: a killed process loses nothing there either, and fsync costs nothing."""
    path = Path("/dev/shm")
    return str(path) if os.access(path, os.W_OK) and shutil.disk_usage(path).free > 1 << 28 else None


def table(report: KillReport) -> str:
    """The summary, for people."""
    rows = [f"{'action':<10}{'kills':>7}{'distinct steps':>16}"]
    rows += [f"{name:<10}{n:>7}{len(report.steps[name]):>16}" for name, n in sorted(report.kills.items())]
    s = report.seen
    rows += [
        f"{'all':<10}{report.total:>7}{sum(len(x) for x in report.steps.values()):>16}",
        f"recovered by running again: {report.recovered}; the version before was live after {report.fell_back} kills, "
        f"{report.after_flip} kills came after a pointer was replaced",
        f"pruned and verified clean: {report.verified} times; work that ended before its kill: {report.unkilled}",
        f"readers: {s.lookups} lookups, {s.moves} moves to another generation, {s.as_of} as-of lookups, {s.states} "
        f"reads of states, {s.old} lookups on an older generation; no wrong value",
        f"seconds: {report.seconds:.1f}",
    ]
    if report.lost:
        rows.append(f"files whose unsynced content was lost: {dict(report.lost)}")
    return "\n".join(rows)


def main() -> None:
    folder = (Path, "where the stores lie; shared memory by default")
    given = vars(asked(__doc__, kills=200, seed=0, readers=2, power=False, folder=folder, json=False))
    as_json = given.pop("json")
    report = run(**given)
    print(json.dumps(report.as_dict()) if as_json else table(report))


if __name__ == "__main__":
    main()
