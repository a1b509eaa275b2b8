"""A folder in which log files appear.

A file is taken once it is whole: ``paths.logs_below`` names it (so not where it begins with ``.`` or ``_``, or ends
with ``.tmp``), and it was not written to for ``SETTLED_S`` seconds: by its date, or, where that lies ahead of this
host's clock, by looking. Writers do well to write elsewhere and rename.
Which files were taken is known by the tables' ledger, so there is no position.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from beam_jobs.errors import OptionsError
from beam_jobs.follow.sources import Arrived
from vista.data import paths

SETTLED_S = 0.5


class Folder:
    """Log files below ``path``, oldest first."""

    def __init__(self, path: str):
        self.path, self.name = Path(path), "folder"
        if not self.path.is_dir():
            raise OptionsError(f"{path}: expected a folder, found none; make it, or see vista follow --help")
        self._taken: set[tuple[str, int, int]] = set()
        self._ahead: dict[tuple[str, int, int], float] = {}

    def read(self, after: str, most: int, wait_s: float) -> Arrived | None:
        """Files that were not given before; of a file that has grown, all of it. ``most`` does not cut files."""
        end = time.monotonic() + wait_s
        while True:
            found = self._settled()
            if found:
                self._taken.update(found)
                oldest = min(time.time_ns(), *(mtime for _, _, mtime in found)) // 1_000_000
                return Arrived("", files=[name for name, _, _ in found], arrived_ms=oldest)
            if time.monotonic() >= end:
                return None
            time.sleep(min(0.1, wait_s))

    def _settled(self) -> list[tuple[str, int, int]]:
        now, looked, found = time.time_ns(), time.monotonic(), []
        before, self._ahead = self._ahead, {}
        for path in paths.logs_below(str(self.path)):
            try:
                fact = os.stat(path)
            except FileNotFoundError:
                continue
            entry = (path, fact.st_size, fact.st_mtime_ns)
            if entry in self._taken:
                continue
            age = (now - fact.st_mtime_ns) / 1e9
            if age < 0:
                self._ahead[entry] = before.get(entry, looked)
                age = looked - self._ahead[entry]
            if age > SETTLED_S:
                found.append(entry)
        return sorted(found, key=lambda f: (f[2], f[0]))
