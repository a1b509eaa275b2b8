"""Faults seeded in the store, the state and the tables' commits, one at a time: whether a test notices.

    vista drill mutate                    # all of them, some minutes
    vista drill mutate --only pull        # those whose name begins so

Each is an edit of one place in a copy of the packages, where the tests of that room run. One that no test notices has
survived: it is named, and the exit code is 1. An edit whose place is not found any more is told as such, and counts.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tools.drills.asked import asked

ROOT = Path(__file__).parents[2]
COPIED = ("cache_store", "vista", "beam_jobs", "tools", "tests", "pyproject.toml")
SECONDS = 600


@dataclass(frozen=True)
class Mutant:
    """An edit: the first ``before`` of a file becomes ``after``; ``tests`` are to notice."""

    name: str
    file: str
    before: str
    after: str
    tests: str


FORGETTING = "tests/cache_store/change/test_forgetting.py"
FORGET = "cache_store/change/forget.py"
RESUMING = "vista/stage1/resuming.py"
STATES = "tests/vista/stage1/test_state.py"
INDEX = "cache_store/format/index.py"
CODECS = "tests/cache_store/format/test_codecs.py"
INGESTS = "tests/beam_jobs/ingest/test_ingest_beside_others.py"
MUTANTS = (
    Mutant("forgotten-clock-back", "cache_store/change/forgotten.py", "max(now_ms, self.last + 1)", "now_ms",
           FORGETTING),
    Mutant("forgotten-same-ms-record", FORGET, ">= made", "> made", FORGETTING),
    Mutant("forgotten-same-ms-orphan", FORGET, "if at >= published}", "if at > published}", FORGETTING),
    Mutant("forgotten-same-ms-letter", FORGET, "[0] >= published", "[0] > published", FORGETTING),
    Mutant("pull-sizes-alone", "cache_store/remote/copy.py", " and digest_file(path) == fact.digest", "",
           "tests/drills/test_hostile_files.py"),
    Mutant("index-shorter", INDEX, "if end != len(words):", "if end < len(words):", CODECS),
    Mutant("index-no-header", INDEX, "len(words) < HEADER_WORDS or ", "", CODECS),
    Mutant("late-at-equal-times", RESUMING, "|= key < folded", "|= False", STATES),
    Mutant("twice-at-equal-times", RESUMING, "= key > folded", "= key >= folded", STATES),
    Mutant("no-second-look", "cache_store/read/views.py",
           "if lines.live(self.layout, self.line).live != pointer.live:", "if False:",
           "tests/cache_store/read/test_reading.py"),
    Mutant("tables-same-ms", "vista/data/tables/forgotten.py", '["time"] > np.repeat', '["time"] >= np.repeat',
           INGESTS),
    Mutant("undo-leaves-the-ledger", "vista/data/tables/undoing.py", "if r != name and r not in sharing", "if True",
           INGESTS),
)  # fmt: skip


def survives(mutant: Mutant, folder: Path) -> str:
    """Why a mutant survived; "" if a test noticed. ``folder`` holds the copy, and is as before afterwards."""
    path = folder / mutant.file
    text = path.read_text()
    if mutant.before not in text:
        return f"its place is not there any more: {mutant.before!r} in {mutant.file}"
    path.write_text(text.replace(mutant.before, mutant.after, 1))
    try:
        words = [sys.executable, "-m", "pytest", "-q", "-x", "-n0", "-p", "no:cacheprovider", mutant.tests]
        environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            words, cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS
        )
        if done.returncode == 1 and "failed" in done.stdout:
            return ""
        return f"{mutant.tests} says {done.stdout.strip().splitlines()[-1:] or done.stderr[-300:]}"
    except subprocess.TimeoutExpired:
        return ""  # a hang is noticed
    finally:
        path.write_text(text)


def run(only: str = "") -> dict[str, str]:
    """Name to why it survived, of those that did."""
    survivors: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="vista-mutants-") as root:
        folder = Path(root)
        for name in COPIED:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, folder / name)
        for mutant in MUTANTS:
            if mutant.name.startswith(only):
                why = survives(mutant, folder)
                print(f"{'SURVIVED' if why else 'noticed':<9} {mutant.name}", why, flush=True)
                survivors |= {mutant.name: why} if why else {}
    return survivors


def main() -> None:
    raise SystemExit(1 if run(asked(__doc__, only=("", "names that begin so")).only) else 0)
