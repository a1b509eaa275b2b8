"""The chain of deltas is folded by a child process while turns go on; what it built goes live between two of them.

A fold that fails is begun again. Where the chain grows to ``SLACK`` times the stated depth or size, turns wait for it,
or the next refresh folds itself and tells what is wrong.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading

from beam_jobs.run.quiet_worker import end_with, interrupts_held
from cache_store import Store
from cache_store.errors import Incomplete, PublishConflict, StoreError

SLACK = 3
ROOM = 4
"""Deltas that are together so many times as large as the full generation are folded, however few they are: turns of a
stream that lags are of nearly all users."""


class Folding:
    """What is due on one line of a store.

    Args:
        store: that there is.
        max_depth: deltas over a full generation before some are folded.
    """

    def __init__(self, store: str, line: str, max_depth: int):
        self._store, self._max_depth = Store.open(store, line=line, verify=False), max_depth
        self._child: subprocess.Popen[bytes] | None = None
        self._folds: tuple[str, int | None] = "", 0

    def advance(self) -> str | None:
        """Take live what is built, else begin what is due; what went live, in words.

        Raises:
            Damaged, StorageFull, ReadOnlyStorage
        """
        generation, newest = self._folds
        if self._child is None:
            self._begin()
        elif self._child.poll() is not None or self._due(SLACK) != 0:
            failed, self._child = self._child.wait(), None
            if failed:
                return None
            try:
                live = self._store.compact(newest, generation)
            except (PublishConflict, Incomplete):
                return None  # someone else changed what was folded: what is due now is another fold
            return f"folded {'all' if newest is None else newest} generations up to {generation} under {live}"
        return None

    def _begin(self) -> None:
        newest = self._due(1)
        if newest != 0:
            live, root = self._store.manifest.generation, str(self._store.layout.root)
            words = [str(os.getpid()), root, self._store.line, live, str(newest or "")]
            self._folds = live, newest
            with interrupts_held():  # for good: Ctrl-C is for this process, and ends both
                self._child = subprocess.Popen([sys.executable, "-m", __name__, *words])

    def _due(self, slack: int) -> int | None:
        return self._store.fold_due(slack * self._max_depth, slack * ROOM)

    def close(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.wait()
        self._store.close()


if __name__ == "__main__":
    parent, root, line, generation, newest = sys.argv[1:]
    os.nice(5)  # turns go first
    threading.Thread(target=end_with, args=(int(parent),), daemon=True).start()
    try:
        with Store.open(root, line=line) as store:
            store.build_fold(generation, int(newest) if newest else None)
    except (PublishConflict, Incomplete):
        sys.exit(1)  # someone else changed what is folded, as `vista forget` does: the parent begins again
    except StoreError as error:
        sys.exit(f"folding: {error}")
