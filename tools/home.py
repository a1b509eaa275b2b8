"""Where things lie unless an option says otherwise.

HOME/
  warehouse/   the tables        model/   the bundle (and model.training/ beside it)
  store/       the cache store   index/   the item index of the model
  runs/        one directory per run of a job
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Home:
    """Paths below one folder; ``None`` options fall back to these."""

    root: Path

    @property
    def warehouse(self) -> Path:
        return self.root / "warehouse"

    @property
    def model(self) -> Path:
        return self.root / "model"

    @property
    def store(self) -> Path:
        return self.root / "store"

    @property
    def index(self) -> Path:
        return self.root / "index"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    def new_run(self, verb: str) -> Path:
        """A run directory that does not exist yet: ``runs/VERB-YYYYmmdd-HHMMSS`` (UTC)."""
        stem = f"{verb}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"
        for n in range(1, 1_000):
            path = self.runs / (stem if n == 1 else f"{stem}-{n}")
            if not path.exists():
                return path
        raise FileExistsError(f"{self.runs / stem}: a thousand runs began in one second")
