"""Where things lie unless an option says otherwise.

HOME/
  warehouse/   the tables
  model/       the bundle (and model.training/ beside it)
  store/       the cache store
  index/       the item index of the model
  runs/        one directory per run of a job
"""

from __future__ import annotations

import json
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

    def tables(self, given: str | None) -> str | dict[str, str]:
        """Where the tables are: the folder given, the catalog's properties in the .json file given, or ``warehouse``.

        Raises:
            DataError: the file does not hold names and values.
        """
        if given is None or not given.endswith(".json"):
            return given or str(self.warehouse)
        from vista.errors import DataError

        try:
            found = json.loads(Path(given).read_text())
            if not found or any(not isinstance(value, str) for value in found.values()):
                raise ValueError(repr(found))
        except (OSError, ValueError, AttributeError) as error:
            raise DataError(
                f"{given}: expected the properties of a PyIceberg catalog, names and values, all text; found {error}. "
                f"docs/data.md has an example; try it with `vista status --warehouse {given}`"
            ) from error
        return dict(found)

    def new_run(self, verb: str) -> Path:
        """A run directory that does not exist yet: ``runs/VERB-YYYYmmdd-HHMMSS`` (UTC)."""
        stem = f"{verb}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"
        for n in range(1, 1_000):
            path = self.runs / (stem if n == 1 else f"{stem}-{n}")
            if not path.exists():
                return path
        raise FileExistsError(f"{self.runs / stem}: a thousand runs began in one second")
