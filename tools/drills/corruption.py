"""Corruption matrix: every class of bytes of a store is damaged in every way, and what readers then see is counted.

    python -m tools.drills.corruption --trials 20000 --seed 3

A trial damages one place of a small store of known content, then a new reader opens it and looks up every user and
state, a reader that was open before does the same, and ``verify`` reads all. With verification on, a row may be
right, or CORRUPT, or the whole may be refused by a typed error; it may not be wrong, and no user may silently be
missing. ``verify`` must name the file, the user where one record is hit, and a remedy. Then the bytes are put back.

Trials run in a forked process, so that a crash (SIGBUS, SIGSEGV) is counted as what it is.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import multiprocessing
import os
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from cache_store import Status, Store
from cache_store.errors import Damaged, StoreError
from cache_store.format import manifest as manifests
from cache_store.format.keys import from_keys
from cache_store.read.generation import Generation
from cache_store.testing import Truth, WrongValue
from tools.drills.asked import asked
from tools.drills.watch import shared

WAYS = ("bit", "byte", "block", "zero", "cut", "grow", "empty", "gone", "foreign", "other")
"""How: one bit, one byte, up to 600 random bytes, up to 600 zeros, truncated, longer, empty, deleted, replaced by
random bytes of the same length, replaced by another file of the same kind (another shard, another generation)."""

IN_PLACE = WAYS[:4]
REMEDIES = ("vista", "restore", "newer", "this is no store", "no file FORMAT")


@dataclass(frozen=True)
class Region:
    """Bytes of one class.

    Attributes:
        kind: name of the class.
        path: within the store.
        user: whose record or state it is.
    """

    kind: str
    path: str
    start: int
    stop: int
    user: int | str | None = None


@dataclass
class Tally:
    """Outcomes of trials by class of bytes.

    ``refused``: a typed error at open. ``corrupt``: rows marked CORRUPT. ``state refused``: a typed error from
    states. ``unseen``: nothing the reader uses was hit, every value right. ``old reader …``: the same for the reader
    that was open before the damage; there a user may be missing. ``verify``: damage that verify named.
    """

    trials: Counter[str] = field(default_factory=Counter)
    ways: Counter[str] = field(default_factory=Counter)
    outcomes: dict[str, Counter[str]] = field(default_factory=dict)
    seconds: float = 0.0

    def add(self, kind: str, outcome: str) -> None:
        self.outcomes.setdefault(kind, Counter())[outcome] += 1

    def as_dict(self) -> dict[str, Any]:
        return {
            "trials": sum(self.trials.values()),
            "by_class": dict(sorted(self.trials.items())),
            "by_way": dict(sorted(self.ways.items())),
            "outcomes": {kind: dict(sorted(c.items())) for kind, c in sorted(self.outcomes.items())},
            "seconds": round(self.seconds, 1),
        }


class Patient:
    """A store that is damaged and healed again and again: a delta over a full generation, and an earlier full one."""

    def __init__(self, root: Path, truth: Truth) -> None:
        self.root, self.truth, self.version = root, truth, 2001
        store = truth.create(root)
        truth.publish(store, "a", 1000)
        full = truth.publish(store, "b", 2000)
        self.live = truth.publish(store, "c", 2001, parent=full, base=2000)
        self.regions = list(self._regions(store))
        self.kinds = sorted({r.kind for r in self.regions})
        self.original = {r.path: (root / r.path).read_bytes() for r in self.regions}

    def _regions(self, store: Store) -> Iterator[Region]:
        for kind, name in (("FORMAT", "FORMAT"), ("pointer", "CURRENT")):
            yield Region(kind, name, 0, (self.root / name).stat().st_size)
        for manifest in store.generations()[1:]:
            folder = store.layout.generation(manifest.generation)
            base = f"generations/{manifest.generation}"
            for name in ("manifest.json", "READY"):
                yield Region(name, f"{base}/{name}", 0, (folder / name).stat().st_size)
            generation = Generation(folder, manifest, True)
            for k, receipt in enumerate(manifest.shards):
                for stem, states in ((receipt.record_stem, False), (receipt.state_stem, True)):
                    yield from self._file(generation, f"{base}/{stem}", k, states)

    def _file(self, generation: Generation, stem: str, shard: int, states: bool) -> Iterator[Region]:
        size = (self.root / f"{stem}.idx").stat().st_size
        yield Region("index header", f"{stem}.idx", 0, 64)
        yield Region("index body", f"{stem}.idx", 64, size)
        data = f"{stem}.mdb"
        yield Region("LMDB meta pages", data, 0, 8192)
        entries = generation.keys(shard, states=states)
        ids = from_keys(entries.keys, generation.schema.user_kind).tolist()
        used = np.zeros((self.root / data).stat().st_size, bool)
        used[:8192] = True
        for user, start, length in zip(ids, entries.offset.tolist(), entries.length.tolist(), strict=True):
            used[start : start + length] = True
            if states:
                yield Region("state", data, start, start + length, user)
            elif length == 64:
                yield Region("tombstone", data, start, start + 64, user)
            else:
                yield Region("record header", data, start, start + 64, user)
                yield Region("payload", data, start + 64, start + length, user)
        edges = np.flatnonzero(np.diff(np.concatenate([[0], (~used).astype(np.int8), [0]])))
        for start, stop in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
            yield Region("LMDB tree pages", data, start, stop)

    def damage(self, region: Region, way: str, rng: np.random.Generator) -> bool:
        """Damage one place; False if the bytes happen to be as before."""
        path, before = self.root / region.path, self.original[region.path]
        at = int(rng.integers(region.start, region.stop))
        after = bytearray(before)
        if way == "bit":
            after[at] ^= 1 << int(rng.integers(8))
        elif way == "byte":
            after[at] = int(rng.integers(256))
        elif way in ("block", "zero"):
            stop = min(region.stop, at + int(rng.integers(1, 600)))
            after[at:stop] = rng.bytes(stop - at) if way == "block" else bytes(stop - at)
        elif way == "cut":
            del after[at:]
        elif way == "grow":
            after += rng.bytes(int(rng.integers(1, 9000)))
        elif way == "empty":
            after.clear()
        elif way == "foreign":
            after[:] = rng.bytes(len(after))
        elif way == "other":
            suffix = Path(region.path).suffix or region.path
            others = [p for p in self.original if p != region.path and (Path(p).suffix or p) == suffix]
            after[:] = self.original[others[rng.integers(len(others))]] if others else b"other"
        if way == "gone":
            path.unlink()
            return True
        if bytes(after) == before:
            return False
        if way in IN_PLACE:
            with open(path, "r+b") as file:  # the same pages that an open reader has mapped
                file.seek(at)
                file.write(after[at : at + 600])
        else:
            # A new file under the name: an open reader keeps the old one. Cutting the mapped file itself is apart.
            temp = path.with_name("damage")
            temp.write_bytes(after)
            os.replace(temp, path)
        return True

    def heal(self, region: Region, way: str) -> None:
        path = self.root / region.path
        if way in IN_PLACE:
            with open(path, "r+b") as file:
                file.write(self.original[region.path])
        else:
            path.write_bytes(self.original[region.path])


def trial(
    patient: Patient, region: Region, way: str, rng: np.random.Generator, tally: Tally, deep: bool
) -> None:
    """One damage, three onlookers, healed.

    Raises:
        WrongValue: a wrong value was served, a user went missing, an error was not typed, or verify saw nothing.
    """
    truth, place = patient.truth, f"{way} in {region}"
    old = Store.open(patient.root, lease=False)
    with_states = bool(rng.integers(2))
    if with_states:
        old.states(truth.users)
    if not patient.damage(region, way, rng):
        return
    tally.trials[region.kind] += 1
    tally.ways[way] += 1
    try:
        new = _typed(lambda: Store.open(patient.root, lease=False), place)
        if new is None:
            tally.add(region.kind, "refused")
        else:
            tally.add(region.kind, _look(new, patient, place))
            new.close()
        # An index is compared with its digest when a generation is opened, and not again: a reader that has it
        # mapped while it is damaged may fall back to the older record below, or miss it.
        blind = way in IN_PLACE and region.kind.startswith("index")
        tally.add(region.kind, f"old reader {_look(old, patient, place, blind)}")
        if deep:
            _verify(patient, region, way, place)
            tally.add(region.kind, "verify")
    finally:
        old.close()
        patient.heal(region, way)


def _typed(work: Callable[[], Any], place: str) -> Any:
    """The result, or None where a typed error came."""
    try:
        return work()
    except StoreError as error:
        if not any(words in str(error) for words in REMEDIES):
            raise WrongValue(f"{place}: no remedy in {error!r}") from error
        return None
    except Exception as error:
        raise WrongValue(f"{place}: untyped {type(error).__name__}: {error}") from error


def _look(store: Store, patient: Patient, place: str, blind: bool = False) -> str:
    """What a reader sees. ``blind``: it need only not crash, and never see another user's or a half value."""
    truth = patient.truth
    everyone = np.arange(truth.num_users)
    found = _typed(lambda: store.lookup(truth.users), place)
    if found is None:
        return "lookup refused"
    corrupt = found.status == Status.CORRUPT
    if blind:
        return _look_blind(found, truth, place)
    part = replace(found, **{name: getattr(found, name)[~corrupt] for name in _ROWS})
    try:
        truth.check(part, everyone[~corrupt], patient.version)
        states = _typed(lambda: store.states(truth.users), place)
        if states is None:
            return "state refused"
        truth.check_states(states, everyone, patient.version)
    except WrongValue as error:
        raise WrongValue(f"{place}: {error}") from error
    return "corrupt" if corrupt.any() else "unseen"


def _look_blind(found: Any, truth: Truth, place: str) -> str:
    """Every row is a whole value of its own user at some version."""
    for i in np.flatnonzero(found.status <= Status.STALE).tolist():
        at, version = np.array([i]), found.event_count[i : i + 1]
        if not (found.tokens[i] == truth.stacked(at, version)[0]).all():
            raise WrongValue(f"{place}: user {truth.users[i]!r} has a value that was never published")
    return "not compared with the index's digest"


_ROWS = ("users", "tokens", "status", "event_count", "last_event_ms", "summarized_ms")


def _verify(patient: Patient, region: Region, way: str, place: str) -> None:
    report = _typed(lambda: Store(patient.root, lease=False).verify(), place)
    if report is None:
        return
    if report.ok:
        raise WrongValue(f"{place}: verify found nothing")
    files = {p.file for p in report.problems}
    folder = region.path.rpartition("/")[0]
    if region.path not in files and folder not in files:
        raise WrongValue(f"{place}: verify names {sorted(files)}")
    if not all(p.remedy for p in report.problems):
        raise WrongValue(f"{place}: a problem has no remedy")
    if region.user is not None and way in IN_PLACE:
        named = {p.user for p in report.problems}
        if region.user not in named:
            raise WrongValue(f"{place}: verify names users {named}")
        shards = {p.shard for p in report.problems if p.user == region.user}
        if shards != {int(Path(region.path).name[6:11])}:
            raise WrongValue(f"{place}: verify names shards {shards}")


def run(trials: int, seed: int, *, deep_every: int = 4, folder: Path | None = None) -> Tally:
    """Damage ``trials`` times, classes of bytes in turn, in a forked process.

    Raises:
        WrongValue: as :func:`trial`, or the process crashed; the text names the damage.
    """
    now, context = shared(1, np.int64), multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(theirs, trials, seed, deep_every, folder, now))
    child.start()
    theirs.close()
    told: Tally | str = ""
    with contextlib.suppress(EOFError):
        told = ours.recv()
    child.join()
    if isinstance(told, Tally):
        return told
    code = child.exitcode or 0
    told = f"killed by {signal.Signals(-code).name}" if code < 0 else told
    raise WrongValue(f"trial {now[0]} of seed {seed}: {told}")


def _child(pipe: Connection, *asked: Any) -> None:
    try:
        pipe.send(_run(*asked))
    except BaseException as error:
        pipe.send(f"{error}")


def _run(trials: int, seed: int, deep_every: int, folder: Path | None, now: np.ndarray) -> Tally:
    rng, tally, start = np.random.default_rng(seed), Tally(), time.perf_counter()
    shapes = [Truth(num_users=24), Truth(num_users=24, strings=True), Truth(num_users=12, record_scale=48)]
    with tempfile.TemporaryDirectory(dir=folder) as root:
        patients = [Patient(Path(root) / str(i), truth) for i, truth in enumerate(shapes)]
        for number in range(trials):
            patient = patients[number % len(patients)]
            kind = patient.kinds[(number // len(patients)) % len(patient.kinds)]
            regions = [r for r in patient.regions if r.kind == kind]
            region = regions[rng.integers(len(regions))]
            # Half of all damage is a flipped bit: the smallest is the hardest to see.
            way = "bit" if rng.integers(2) else str(rng.choice(WAYS))
            now[0] = number
            trial(patient, region, way, rng, tally, deep=bool(rng.integers(deep_every) == 0))
    tally.seconds = time.perf_counter() - start
    return tally


def cut_while_mapped(path: Path, later_ms: int = 0) -> str:
    """What happens to a reader when a file that it has mapped is cut in place: ``Damaged``, ``SIGBUS``, or ``unseen``.

    Nothing in the store ever does this; it is the one damage that a mapped reader cannot survive, if it reads there
    before it looks at the file's size.

    Args:
        later_ms: time between its opening and its lookup, by its own clock.
    """
    truth = Truth(num_users=12, record_scale=48)
    truth.publish(truth.create(path), "a", 1000)
    pid = os.fork()
    if pid == 0:
        faulthandler.disable()  # this death is wanted; its trace would look like a failure in a log
        now = 0
        store = Store.open(path, lease=False, clock=lambda: now)
        manifest = manifests.read(store.layout.generation("00000001"))
        name = f"{manifest.shards[0].record_stem}.mdb"
        os.truncate(store.layout.generation("00000001") / name, 8192)
        now = later_ms
        try:
            store.lookup(truth.users)
        except Damaged:
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return signal.Signals(os.WTERMSIG(status)).name
    return ("unseen", "Damaged")[os.WEXITSTATUS(status)]


def table(tally: Tally) -> str:
    """The summary, for people."""
    rows = [f"{'class of bytes':<18}{'trials':>8}  outcomes (new reader · old reader · verify)"]
    for kind, count in sorted(tally.trials.items()):
        outcomes = "  ".join(f"{name} {n}" for name, n in sorted(tally.outcomes.get(kind, {}).items()))
        rows.append(f"{kind:<18}{count:>8}  {outcomes}")
    rows.append(f"{'all':<18}{sum(tally.trials.values()):>8}  {dict(sorted(tally.ways.items()))}")
    rows.append(f"no wrong value, no user silently missing, no crash; seconds: {tally.seconds:.1f}")
    return "\n".join(rows)


def main() -> None:
    every = (4, "run verify in one of n trials")
    given = vars(asked(__doc__, trials=2000, seed=0, deep_every=every, folder=Path, json=False))
    as_json = given.pop("json")
    tally = run(**given)
    print(json.dumps(tally.as_dict()) if as_json else table(tally))


if __name__ == "__main__":
    main()
