"""Storage that gives out: a disk that is full at any point of any work, and a filesystem that refuses writes.

    python -m tools.drills.storage --trials 200

Needs the right to mount a small memory filesystem (root, or a user namespace); ``mountable`` tells.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from cache_store import Store
from cache_store.errors import NothingPublished, ReadOnlyStorage, StorageFull
from cache_store.remote.copy import pull, push
from cache_store.testing import Truth, WrongValue
from tools.drills.asked import asked

_MIB = 1 << 20


@contextmanager
def small_disk(size: int) -> Iterator[Path]:
    """A filesystem of its own of ``size`` bytes; unmounted at the end."""
    with tempfile.TemporaryDirectory() as place:
        _done("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place)
        try:
            yield Path(place)
        finally:
            _done("umount", "-l", place)


@contextmanager
def seen_read_only(folder: Path) -> Iterator[Path]:
    """A folder as a read-only mount shows it, to every process; as it was at the end."""
    _done("mount", "--bind", folder, folder)
    try:
        _done("mount", "-o", "remount,bind,ro", folder)
        yield folder
    finally:
        _done("umount", "-l", folder)


def _done(*words: str | Path) -> None:
    subprocess.run(words, check=True, capture_output=True)


def mountable() -> bool:
    """May this process mount?"""
    try:
        with small_disk(_MIB):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


class Chores:
    """A store with a history, and every kind of work on it with the version that is live afterwards."""

    def __init__(self, root: Path, elsewhere: Path, truth: Truth) -> None:
        self.root, self.truth = root / "store", truth
        store = truth.create(self.root)
        truth.publish(store, "a", 1000)
        full = truth.publish(store, "b", 2000)
        self.delta = truth.publish(store, "c", 2001, parent=full, base=2000)
        truth.publish(store, "s", 3000, line="shadow")
        self.forgotten = np.zeros(truth.num_users, bool)
        self.url = f"file://{elsewhere}/remote"
        other = truth.create(elsewhere / "other")
        truth.publish(other, "o", 4000)
        push(other, None, self.url, jobs=1)

    def work(self) -> dict[str, tuple[Callable[[Store], object], int]]:
        """Name to what is done, and the version of the main line afterwards."""
        truth = self.truth
        return {
            "full": (lambda s: truth.publish(s, "d", 5000), 5000),
            "delta": (lambda s: truth.publish(s, "e", 2002, parent=self.delta, base=2001), 2002),
            "compact": (lambda s: s.compact(), 2001),
            "forget": (lambda s: s.forget(truth.users[:2]), 2001),
            "promote": (lambda s: s.promote("shadow"), 3000),
            "rollback": (lambda s: s.rollback(), 2000),
            "pull": (lambda s: pull(self.url, s, jobs=1), 4000),
            "prune": (lambda s: s.prune(1), 2001),
        }

    def check(self, *versions: int) -> int:
        """The live version, which must be one of these, whole."""
        with Store.open(self.root) as store:
            version = store.manifest.watermark_ms
            if version not in versions:
                raise WrongValue(f"version {version} is live, expected one of {versions}")
            self.truth.check_all(store, version, self.forgotten)
        return version


def full_disk(trials: int, seed: int) -> Counter[str]:
    """Every kind of work with every amount of space left; then space is made and it is done again.

    Returns:
        Counts by work and outcome (``full: StorageFull``, ``full: fitted``).

    Raises:
        WrongValue: another error, the earlier generation is not live, or the second attempt does not do.
    """
    rng = np.random.default_rng(seed)
    counts: Counter[str] = Counter()
    truth = Truth(num_users=40, record_scale=8)
    for number in range(trials):
        with small_disk(6 * _MIB) as disk, tempfile.TemporaryDirectory() as elsewhere:
            chores = Chores(disk, Path(elsewhere), truth)
            works = chores.work()
            name = list(works)[number % len(works)]
            work, after = works[name]
            if name == "forget":
                chores.forgotten[:2] = True
            filler = disk / "filler"
            free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
            leave = int(rng.choice([4096 * rng.integers(3), 4096 * rng.integers(40), rng.integers(0, free)]))
            filler.write_bytes(bytes(max(0, free - leave)))
            try:
                work(Store(chores.root))
                outcome = "fitted"
            except StorageFull as error:
                outcome = "StorageFull"
                if "live generation is untouched" not in str(error) or "free space" not in str(error):
                    raise WrongValue(f"{name}: {error}") from error
            except Exception as error:
                raise WrongValue(
                    f"{name} with {leave} bytes left: {type(error).__name__}: {error}"
                ) from error
            chores.check(2001, after)
            if outcome == "StorageFull":
                filler.unlink()
                if name == "rollback":
                    with suppress(NothingPublished):
                        Store(chores.root).rollback("00000002")
                else:
                    work(Store(chores.root))
            chores.check(after)
            counts[f"{name}: {outcome}"] += 1
    return counts


def read_only() -> list[str]:
    """On a read-only filesystem every kind of work is refused and reading goes on; names of the work.

    Raises:
        WrongValue
    """
    truth, refused = Truth(num_users=40), []
    with small_disk(16 * _MIB) as disk, tempfile.TemporaryDirectory() as elsewhere:
        chores = Chores(disk, Path(elsewhere), truth)
        _done("mount", "-o", "remount,ro", disk)
        for name, (work, _) in chores.work().items():
            try:
                work(Store(chores.root))
            except ReadOnlyStorage as error:
                if "live generation is untouched" not in str(error):
                    raise WrongValue(f"{name}: {error}") from error
                refused.append(name)
            except Exception as error:
                raise WrongValue(f"{name}: {type(error).__name__}: {error}") from error
            else:
                raise WrongValue(f"{name}: succeeded on a read-only filesystem")
            chores.check(2001)
        if not Store(chores.root).verify().ok:
            raise WrongValue("verify finds a problem on a read-only filesystem")
    return refused


def main() -> None:
    given = asked(__doc__, trials=100, seed=0)
    for outcome, count in sorted(full_disk(given.trials, given.seed).items()):
        print(f"{outcome:<24}{count:>6}")
    print(f"read-only: refused {', '.join(read_only())}")


if __name__ == "__main__":
    main()
