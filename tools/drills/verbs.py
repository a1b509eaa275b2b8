"""Every verb that writes is killed at a step, most the first time that it is done in a place; then done again.

    vista drill verbs --kills 300 --seed 1
    vista drill verbs --kills 100 --verbs train,push
    vista drill verbs --kills 300 --full       # the disk is full at any point instead (mounts a small tmpfs)

A verb runs as its command line in a forked process that dies by SIGKILL at a file operation of any of its threads, at
a line of the store, or at a moment. What was there before must then be read as before, every look is a result or a
typed error, and the very same command must end as one that nobody killed: exit code, rows of the tables, answers of
the stores, fingerprints of the models, settings. What a killed process left is nobody else's, damaged or busy to the
next, and is gone after it or after `vista prune`. With a full disk the verb ends with code 4 or well, and there is
room when it is done again.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import xxhash

from cache_store.errors import StoreError
from cache_store.store import Store
from tools import cli
from tools.drills import killing
from tools.drills.asked import asked
from tools.drills.drill import memory_folder
from tools.drills.expected_rows import Row as TableRow
from tools.drills.expected_rows import rows_of
from tools.drills.storage import small_disk
from tools.home import Home, fingerprint_of
from vista.config import to_text
from vista.errors import VistaError
from vista.training.train import TrainingConfig

MODES = ("any", "line", "time")
PAGE, ROOM = 4096, 1 << 30
PACKAGES = (
    "vista", "cache_store", "beam_jobs", "tools", "pyarrow", "pyiceberg", "faiss", "safetensors", "lmdb",
)  # fmt: skip
USERS, SHOWN = 12, 4
T0 = 1_700_000_000_000


@dataclass(frozen=True)
class Row:
    """A verb to be killed.

    Attributes:
        words: its command line, below the folder of the place.
        over: the row whose end it starts from; the empty text for logs alone.
        done: text of its refusal once it has been done.
        serves: a store is live before, and must answer whatever happens.
    """

    words: str
    over: str
    done: str = ""
    serves: bool = False


H = "--home home"
ROWS = {
    "generate": Row("generate made --users 9 --min-events 5 --max-events 9", "", "holds"),
    "init": Row(f"init logs/events.parquet {H}", "", "--force"),
    "ingest": Row(f"ingest logs/events.parquet --impressions logs/shown.parquet --buckets 2 {H}", ""),
    "train": Row(f"train --config logs/train.json {H}", "ingest"),
    "summarize": Row(f"summarize {H}", "train"),
    "recommend": Row(f"recommend 1 -k 2 {H}", "summarize", serves=True),
    "evaluate": Row(f"evaluate --slates 5 {H}", "summarize", serves=True),
    "report": Row(f"report {H}", "summarize", serves=True),
    "ingest-more": Row(f"ingest logs/more.parquet {H}", "summarize", serves=True),
    "train-more": Row(f"train --config logs/train.json --seed 5 {H}", "ingest-more", serves=True),
    "items": Row(f"items refresh {H}", "ingest-more", serves=True),
    "refresh": Row(f"refresh {H}", "ingest-more", serves=True),
    "summarize-more": Row(f"summarize {H}", "ingest-more", serves=True),
    "follow": Row(f"follow inbox --turns 1 {H}", "train"),
    "follow-more": Row(f"follow inbox --turns 1 {H}", "summarize", serves=True),
    "deliver": Row(f"follow silent --turns 1 --deliver {{deliver}} {H}", "summarize", serves=True),
    "deliver-more": Row(f"follow inbox --turns 1 --deliver {{deliver}} {H}", "deliver", serves=True),
    "compact-store": Row(f"compact store {H}", "refresh", serves=True),
    "compact-tables": Row(f"compact tables --files 1 {H}", "refresh", serves=True),
    "prune": Row(f"prune --keep 1 {H}", "refresh", serves=True),
    "forget": Row(f"forget 1 --yes {H}", "refresh", serves=True),
    "rollback": Row(f"rollback --to 00000001 {H}", "refresh", serves=True),
    "promote": Row(f"promote 00000001 {H}", "refresh", serves=True),
    "push": Row(f"push file://{{root}}/remote {H}", "refresh", serves=True),
    "pull": Row("pull file://{root}/remote --store pulled/store", "push", serves=True),
}  # fmt: skip
"""The verbs, those of the first time first; a row's place is made by the rows it stands on, without a kill."""


@dataclass
class VerbsReport:
    """What was killed and done again.

    Attributes:
        kills: by row.
        steps: distinct steps at which a kill came, by row.
        unkilled: runs that ended before their step came.
        refused: runs again that said that it had been done.
        left: kinds of names that stay after the second run and a prune, and that an unbroken run has not.
    """

    kills: Counter[str] = field(default_factory=Counter)
    steps: dict[str, set[str]] = field(default_factory=dict)
    unkilled: int = 0
    refused: int = 0
    left: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    @property
    def total(self) -> int:
        return sum(self.kills.values())


class WrongAgain(AssertionError):
    """A command that was killed did not go on."""


def write_logs(root: Path) -> None:
    """Events and impressions of a few users, a later log of some, and how to train a model of a few steps."""
    rng = np.random.default_rng(0)
    (root / "logs").mkdir()
    (root / "inbox").mkdir()
    (root / "silent").mkdir()

    def events(path: Path, n: int, since: int, users: int) -> None:
        columns = {
            "user_id": rng.integers(0, users, n), "item_id": rng.integers(0, 30, n),
            "action": rng.choice(["view", "buy"], n), "timestamp_ms": since + np.sort(rng.integers(0, 10**9, n)),
            "request_id": np.arange(n) // 3,
        }  # fmt: skip
        pq.write_table(pa.table(columns), path)

    events(root / "logs/events.parquet", 30 * USERS, T0, USERS)
    events(root / "logs/more.parquet", 30, T0 + 10**9, SHOWN)
    shutil.copy(root / "logs/more.parquet", root / "inbox/more.parquet")
    n = 8 * USERS
    shown = {
        "request_id": np.repeat(np.arange(n), 4), "user_id": np.repeat(rng.integers(0, USERS, n), 4),
        "item_id": rng.integers(0, 30, 4 * n), "position": np.tile(np.arange(4), n),
        "actions": [["view"] if k % 4 == 0 else [] for k in range(4 * n)],
        "timestamp_ms": np.repeat(T0 + np.sort(rng.integers(0, 10**9, n)), 4),
    }  # fmt: skip
    pq.write_table(pa.table(shown), root / "logs/shown.parquet")
    small = {
        "width": 16, "embedding": {"rows": 509, "surfaces": 4}, "tokens": {"items": 0},
        "slots": {"buckets": 16, "clusters": 0}, "summarizer": {"layers": 1, "heads": 2, "chunk": 16, "seeds": 4},
        "ranker": {"layers": 1, "heads": 2, "recent": 4},
    }  # fmt: skip
    told = json.loads(to_text(TrainingConfig()))
    told["model"] = _merged(told["model"], small)
    told |= {"max_steps": 4, "checkpoint_every": 2, "validation_slates": 20}
    (root / "logs/train.json").write_text(json.dumps(told))


def _merged(whole: dict, part: dict) -> dict:
    return {
        k: _merged(v, part[k]) if isinstance(part.get(k), dict) else part.get(k, v) for k, v in whole.items()
    }


class Place:
    """A folder in which verbs are done; always at the same path, since tables know theirs."""

    def __init__(self, root: Path, beside: Path) -> None:
        self.root, self.kept, self.said = root, beside / "kept", beside / "said"
        self.kept.mkdir()
        self.aims: dict[tuple[str, str], list[float]] = {}
        write_logs(self.root)
        shutil.copytree(self.root, self.kept / "logs")
        self.sink = ""
        self.ends: dict[str, tuple[str, dict]] = {}

    def start(self, name: str) -> None:
        """The place as the row finds it."""
        over = ROWS[name].over or "logs"
        if not (self.kept / over).exists():
            self.end(over)
        for path in self.root.iterdir():
            shutil.rmtree(path)
        shutil.copytree(self.kept / over, self.root, dirs_exist_ok=True)

    def end(self, name: str) -> tuple[str, dict]:
        """Output and facts of a run that nobody kills; what it leaves is kept."""
        if name not in self.ends:
            self.start(name)
            code, said, outcome = self.run(name, "any", None)
            if code:
                raise WrongAgain(f"{name} ends with code {code} without any kill: {said}")
            _import(outcome.result.split()[1:])
            self.ends[name] = said, self.facts()
            shutil.copytree(self.root, self.kept / name)
        return self.ends[name]

    def aim(self, name: str, mode: str, rng: np.random.Generator) -> None:
        """Where the next kills of a verb come, from a run that is not killed: each step once, in any order."""
        before = self.used()
        _, _, outcome = self.run(name, mode, None)
        left: np.ndarray = np.arange(1, outcome.steps + 1)
        if mode == "time":
            left = rng.random(50) * outcome.seconds
        elif mode == "full":
            left = np.arange(0, 1.1 * (self.used() - before) + PAGE, PAGE)
        self.aims[name, mode] = rng.permutation(left).tolist()
        self.start(name)

    def used(self) -> int:
        """Bytes of the filesystem that are not free."""
        facts = os.statvfs(self.root)
        return (facts.f_blocks - facts.f_bfree) * facts.f_bsize

    def leave(self, room: float) -> None:
        """So many bytes are left on the disk; all of :data:`ROOM` where it is infinite."""
        size = int(min(ROOM, self.used() + room)) // PAGE * PAGE
        words = ["mount", "-o", f"remount,size={max(size, PAGE)}", str(self.root)]
        subprocess.run(words, check=True, capture_output=True)

    def run(self, name: str, mode: str, at: float | None) -> tuple[int, str, killing.Outcome]:
        """Exit code (-1 if it was killed), what it said, and how it ended."""
        words = ROWS[name].words.format(root=self.root, deliver=self.sink).split()
        before = set(sys.modules)
        self.said.write_text("")
        if mode == "full" and at is not None:
            self.leave(at)
            mode, at = "any", None
        outcome = killing.run(
            lambda: f"{self._verb(words)} {' '.join(set(sys.modules) - before)}", mode, at
        )  # fmt: skip
        code = -1 if outcome.killed else int(outcome.result.split()[0])
        return code, self.said.read_text(errors="replace"), outcome

    def _verb(self, words: list[str]) -> int:
        """The command line, in this process; its exit code. What it says goes to a file."""
        torch.set_num_threads(1)
        os.chdir(self.root)
        said = os.open(self.said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(said, 1)
        os.dup2(said, 2)
        sys.stdout, sys.stderr = (open(fd, "w", closefd=False) for fd in (1, 2))  # whoever had taken them
        try:
            cli.main(words)
            return 0
        except SystemExit as ended:
            return int(ended.code or 0)
        finally:
            sys.stdout.flush()

    def facts(self) -> dict:
        """What the place holds, by what any reader finds."""
        return killing.told(self._facts)

    def _facts(self) -> dict[str, object]:
        home = Home(self.root / "home")
        settings = home.root / "vista.toml"
        found: dict[str, object] = {
            "rows": _rows(home.warehouse),
            "model": fingerprint_of(home.newest_model),
            "settings": settings.read_text() if settings.exists() else "",
            "made": _digests(self.root / "made"),
            "delivered": _delivered(self.root / "sink/received", home.store),
        }
        for store in (home.store, self.root / "pulled/store"):
            if (store / "CURRENT").exists():
                found[store.parent.name] = _answers(store)
        return found

    def looks(self, name: str) -> None:
        """Every look at what a kill left is a result or a typed error; what was live is.

        Raises:
            WrongAgain
        """
        if not (self.root / "home").exists():
            return
        self.said.write_text("")
        asked = [[verb, *H.split()] for verb in ("status", "runs", "verify")]
        asked += [["lookup", "2", *H.split()]] if ROWS[name].serves else []
        codes = killing.told(lambda: [self._verb(words) for words in asked])
        said = self.said.read_text(errors="replace")
        if 1 in codes or "Traceback" in said or (ROWS[name].serves and codes[-1]):
            raise WrongAgain(f"{name} was killed, and {asked} end with codes {codes}: {said}")

    def tidied(self, name: str) -> Counter[str]:
        """Kinds of names that a prune leaves and that no unbroken run has."""
        if (self.root / "home/warehouse").exists():
            words = f"prune --keep 9 --staging-hours 0 {H}".split()
            killing.told(lambda: self._verb(words))
        left = {*kinds_of(self.root)} - {*kinds_of(self.kept / name)}
        return Counter(
            path for path in left if "/leases/" not in path and not path.endswith("/.tables-seen.json")
        )


def kinds_of(root: Path) -> dict[str, list[Path]]:
    """Files and folders by kind of name."""
    found: dict[str, list[Path]] = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        found.setdefault(re.sub(r"[0-9a-f]{4,}(-[0-9a-f]{4,})*|[0-9]+", "#", name), []).append(path)
    return found


def _rows(tables: Path) -> list[TableRow] | str:
    """Rows of the history; the error where it does not open."""
    try:
        return sorted(rows_of(tables))
    except VistaError as error:
        return type(error).__name__


def _answers(store: Path) -> list[object] | str:
    """What a store answers about every user; its error where it does not open."""
    try:
        with Store.open(store) as opened:
            rows = opened.lookup(list(range(USERS)))
    except StoreError as error:
        return type(error).__name__
    tokens = xxhash.xxh3_64_hexdigest(np.ascontiguousarray(rows.tokens).tobytes())
    return [rows.status.tolist(), rows.event_count.tolist(), tokens]


def _delivered(file: Path, store: Path) -> dict[str, int]:
    """How many records a sink has had of each user.

    Raises:
        WrongAgain: more often than by each of two runs, or what it was told last is not what the store holds.
    """
    if not file.exists():
        return {}
    rows = [line.split() for line in file.read_text().splitlines()]
    often = Counter((user, generation) for user, generation, _ in rows)
    last = {user: record for user, _, record in rows}
    with Store.open(store) as opened:
        held = {
            str(u): _digest(r)
            for block in opened.changes()
            for u, r in zip(block.users, block.rows, strict=True)
        }
    if last != held or max(often.values()) > 2:
        raise WrongAgain(f"a sink has {last} of {held}, a record of it as often as {often.most_common(1)}")
    return dict(Counter(user for user, _ in {(user, record) for user, _, record in rows}))


def _digest(row: np.ndarray) -> str:
    return xxhash.xxh3_64_hexdigest(row.tobytes())


@contextmanager
def receiving(file: Path) -> Iterator[str]:
    """Where a server of Flight takes what is delivered: a line of the file for each record."""
    words = [sys.executable, "-c", f"from tools.drills.receiver import serve; serve({str(file)!r})"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield f"flight://127.0.0.1:{int(server.stdout.readline())}/summaries"
        finally:
            server.kill()


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): xxhash.xxh3_64_hexdigest(p.read_bytes()) for p in files}


def _import(names: list[str]) -> None:
    """So that what a verb imports is there in each process forked from here."""
    for name in names:
        if name.partition(".")[0] in PACKAGES:
            importlib.import_module(name)


def run(
    kills: int, seed: int, verbs: tuple[str, ...] = (), full: bool = False, told: Callable[[str], None] = print
) -> VerbsReport:  # fmt: skip
    """Kill so often, the verbs in turn.

    Args:
        full: fill the disk instead.

    Raises:
        WrongAgain: the text says which verb, where it was killed, and what came of it.
    """
    unknown = set(verbs) - set(ROWS)
    if unknown:
        told_of = ", ".join(sorted(unknown))
        raise SystemExit(f"--verbs: expected names among {', '.join(ROWS)}, found {told_of}")
    rng, report, began = np.random.default_rng(seed), VerbsReport(), time.perf_counter()
    memory = memory_folder()
    disk = small_disk(ROOM) if full else tempfile.TemporaryDirectory(prefix="vista-verbs-", dir=memory)
    with tempfile.TemporaryDirectory(dir=memory) as beside, disk as folder, ExitStack() as stack:
        place = Place(Path(folder), Path(beside))
        if any(name.startswith("deliver") for name in verbs or ROWS):
            place.sink = stack.enter_context(receiving(place.root / "sink/received"))
        for turn in itertools.count():
            name = list(verbs or ROWS)[turn % len(verbs or ROWS)]
            mode = "full" if full else str(rng.choice(MODES, p=[0.7, 0.1, 0.2]))
            place.end(name)
            place.start(name)
            if not place.aims.get((name, mode)):
                place.aim(name, mode, rng)
            if place.aims[name, mode]:  # a verb that does nothing in the store has no lines there
                _turn(place, name, mode, place.aims[name, mode].pop(), report)
            report.seconds = time.perf_counter() - began
            if report.total >= kills:
                return report
            if turn % 50 == 49:
                told(summary(report))
    raise AssertionError


def _turn(place: Place, name: str, mode: str, at: float, report: VerbsReport) -> None:
    said, facts = place.end(name)
    code, text, outcome = place.run(name, mode, at)
    where = f"{name}, {mode} {at:g} ({outcome.step})"
    full = mode == "full" and code == 4
    if not outcome.killed and not full:
        report.unkilled += 1
        if code:
            raise WrongAgain(f"{where}: code {code} without a kill: {text}")
    else:
        report.kills[name] += 1
        report.steps.setdefault(name, set()).add(outcome.step or f"{at:g}")
    if "Traceback" in text or "internal error" in text:
        raise WrongAgain(f"{where}: {text}")
    place.looks(name)
    if mode == "full":
        place.leave(np.inf)
    code, text, _ = place.run(name, "any", None)
    done = ROWS[name].done
    if code and not (done and code in (2, 3) and done in text):
        raise WrongAgain(f"{where}: killed, then the same ends with code {code}: {text}")
    report.refused += bool(code)
    found = place.facts()
    if found != facts:
        differ = [k for k in {*found, *facts} if found.get(k) != facts.get(k)]
        raise WrongAgain(
            f"{where}: killed and done again, {', '.join(differ)} differ: {[found.get(k) for k in differ]} beside "
            f"{[facts.get(k) for k in differ]} of one unbroken run"
        )
    report.left.update(place.tidied(name))


def summary(report: VerbsReport) -> str:
    kinds = {name: len(steps) for name, steps in report.steps.items()}
    return (
        f"{report.total} kills {dict(report.kills)} at distinct steps {kinds}, {report.unkilled} ended before; each "
        f"done again by the same command, {report.refused} told that they had been done; left over: "
        f"{dict(report.left)}; {report.seconds:.0f} s"
    )


def main() -> None:
    given = asked(__doc__, kills=300, seed=1, full=False,
                  verbs=("", "which, with commas between; all where none is named"))  # fmt: skip
    names = tuple(filter(None, given.verbs.split(",")))
    print(summary(run(given.kills, given.seed, names, given.full)))
