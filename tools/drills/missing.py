"""Every kind of file of a home is gone, one at a time, and then every look and every job that goes on from it.

    vista drill missing --seed 1

Whatever is gone: no internal error; a look that ends with code 0 says what it said of the whole home; `vista verify`
and `vista status` do not call a store whole that is not; and a job that ends with code 0 leaves what it leaves in a
whole home. So a file is either told, rebuilt, or needed by nothing, and which it was is printed.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tools.drills import killing
from tools.drills.asked import asked
from tools.drills.drill import memory_folder
from tools.drills.verbs import T0, H, Place, kinds_of

BUILT = (
    "init logs/events.parquet", "ingest logs/events.parquet --impressions logs/shown.parquet --buckets 2",
    "train --config logs/train.json", "summarize", "evaluate --slates 20", "ingest logs/more.parquet", "refresh",
    "items refresh", "recommend 1 -k 2", "report", "ingest logs/last.parquet",
)  # fmt: skip
"""How the home is made that loses files: two generations, and events that the store has not seen."""
LOOKS = (
    "lookup 0 1 2 3 4 5 6 7 8 9 10 11 --json", "recommend 1 2 -k 3 --json", "explain 1 --json", "verify --json",
    "status --max-lag-hours 1000000 --json", "runs --json", "diff 00000001 00000002 --json",
    "evaluate --slates 20 --json",
)  # fmt: skip
JOBS = (
    "refresh", "summarize", "ingest logs/yet.parquet", "compact store", "compact tables --files 1", "prune --keep 1",
    "forget 1 --yes", "items refresh", "rollback",
)  # fmt: skip
ALIKE = ("verify", "status", "runs")
"""Looks at health: what they say may differ; that it is well they may not say of what is not."""


class Homes(Place):
    """A place with the built home, and what each look and each job says of it whole."""

    def __init__(self, root: Path, beside: Path) -> None:
        super().__init__(root, beside)
        for k, name in enumerate(("last", "yet")):
            when = T0 + (2 + k) * 10**9
            rows = {
                "user_id": [1, 2], "item_id": [40 + k, 3], "action": ["view", "buy"],
                "timestamp_ms": [when, when + 1], "request_id": [0, 1],
            }  # fmt: skip
            pq.write_table(pa.table(rows), root / f"logs/{name}.parquet")
        for words, (code, said) in zip(BUILT, self.say(*BUILT), strict=True):
            if code:
                raise AssertionError(f"{words} ends with code {code}: {said}")
        shutil.copytree(root, self.kept / "home")

    def say(self, *asked: str) -> list[tuple[int, str]]:
        """Exit code of each command line, given one after the other, and what it said."""
        self.said.write_text("")
        ends = killing.told(
            lambda: [(self._verb(f"{words} {H}".split()), self.said.stat().st_size) for words in asked]
        )
        said, starts = self.said.read_bytes(), [0, *(end for _, end in ends)]
        return [(code, said[starts[k] : end].decode(errors="replace")) for k, (code, end) in enumerate(ends)]

    def whole(self) -> None:
        for path in self.root.iterdir():
            shutil.rmtree(path)
        shutil.copytree(self.kept / "home", self.root, dirs_exist_ok=True)


def plain(said: str) -> Any:
    """The last line as JSON, without times and ages; the text itself where it is none."""
    try:
        return _timeless(json.loads(said.splitlines()[-1]))
    except (ValueError, IndexError):
        return re.sub(r"[0-9.]+", "#", said)


def _timeless(found: Any) -> Any:
    if isinstance(found, dict):
        changing = re.compile("age|_ms|seconds|now|bytes|opened")
        return {k: _timeless(v) for k, v in found.items() if not changing.search(k)}
    return [_timeless(v) for v in found] if isinstance(found, list) else found


def run(seed: int, only: str = "", told: Callable[[str], None] = print) -> list[str]:
    """Faults, each with the file that was gone."""
    rng, faults = np.random.default_rng(seed), list[str]()

    def tell(gone: Path, words: str, fault: str) -> None:
        if fault:
            faults.append(f"{gone.relative_to(homes.root)} gone, vista {words}: {fault}")
            told(faults[-1])

    with (
        tempfile.TemporaryDirectory(dir=memory_folder()) as beside,
        tempfile.TemporaryDirectory(prefix="vista-missing-", dir=memory_folder()) as folder,
    ):
        homes = Homes(Path(folder), Path(beside))
        looks = dict(zip(LOOKS, homes.say(*LOOKS), strict=True))
        jobs = {}
        for words in JOBS:
            homes.whole()
            jobs[words] = homes.say(words)[0][0], homes.facts()
        homes.whole()
        for kind, paths in kinds_of(homes.root / "home").items():
            files = [path for path in paths if path.is_file()]
            if not files or not re.search(only, kind):
                continue
            gone = files[int(rng.integers(len(files)))]
            homes.whole()
            gone.unlink()
            codes, found = [], dict(zip(LOOKS, homes.say(*LOOKS), strict=True))
            for words, (code, said) in found.items():
                fault = internal(code, said)
                if code == 0 and words.split()[0] not in ALIKE and plain(said) != plain(looks[words][1]):
                    fault = f"code 0 and other values: {said[-600:]}"
                tell(gone, words, fault)
                codes += [f"{words.split()[0]} {code}"] if code != looks[words][0] else []
            for words in JOBS:
                homes.whole()
                gone.unlink()
                code, said = homes.say(words)[0]
                fault = internal(code, said)
                if code == 0 == jobs[words][0]:
                    left = homes.facts()
                    differ = [k for k, was in jobs[words][1].items() if left.get(k) != was]
                    # what was taken away, and a store or tables that do not open, which every look tells
                    shut = [k for k in ("home", "rows") if not isinstance(left.get(k), list)]
                    differ = [k for k in differ if k not in (taken(kind), *shut)]
                    fault = f"code 0, and {', '.join(differ)} differ: {said[-300:]}" if differ else fault
                tell(gone, words, fault)
                codes += [f"{words.split()[0]} {code}"] if code != jobs[words][0] else []
            told(f"{kind}: {', '.join(codes) or 'rebuilt, or needed by nothing'}")
    return faults


def internal(code: int, said: str) -> str:
    return f"code {code}: {said}" if code == 1 or "Traceback" in said or "internal error" in said else ""


def taken(kind: str) -> str:
    """The fact that goes with the file, whatever is done."""
    return {"model/bundle.json": "model", "vista.toml": "settings"}.get(kind, "")


def main() -> None:
    given = asked(__doc__, seed=1, only=("", "only kinds of names that this expression finds"))
    faults = run(given.seed, given.only)
    print(f"{len(faults)} faults")
    raise SystemExit(bool(faults))
