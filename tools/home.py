"""Where things lie unless an option says otherwise.

HOME/
  warehouse/   the tables
  model/       the bundle (and model.training/ beside it)
  model/2/     the next one, of a second training, and so on
  store/       the cache store
  index/       the item index of the model
  runs/        one directory per run of a job
  vista.toml   options that hold for this home (tools/settings.py)

Of several bundles the live one is that whose summaries the store serves: `vista summarize` takes the newest, and as it
is published, promoted or rolled back, every other verb follows. Nothing has to be flipped, so nothing can disagree.
"""

from __future__ import annotations

import secrets
import time
from pathlib import Path

from vista.small_text import small_json

HOME = Path("vista-home")
"""Where none is given."""


class Home:
    """Paths below one folder, but for those that were named one by one."""

    def __init__(
        self, root: Path = HOME, *, warehouse: str | None = None, model: Path | None = None, store: Path | None = None
    ) -> None:  # fmt: skip
        self.root, self.warehouse = root, root / "warehouse"
        self.index, self.runs = root / "index", root / "runs"
        self.store = store or root / "store"
        self.named_warehouse, self.named_model, self.named_store = warehouse, model, store

    @property
    def models(self) -> list[Path]:
        """Bundles, oldest first: ``model`` itself, then ``model/2``, ``model/3``, ..."""
        first = self.root / "model"
        numbered = [p for p in first.glob("[0-9]*") if p.name.isdecimal() and holds_bundle(p)]
        own = [first] if holds_bundle(first) else []
        return own + sorted(numbered, key=lambda p: int(p.name))

    @property
    def model(self) -> Path:
        """The live bundle: the newest of those whose summaries the store serves; the newest where it serves none."""
        found = [] if self.named_model else self.models
        mark = self._served() if len(found) > 1 else None
        return next((p for p in reversed(found) if mark and fingerprint_of(p) == mark), self.newest_model)

    @property
    def newest_model(self) -> Path:
        """The bundle that was trained last."""
        return self.named_model or (self.models or [self.root / "model"])[-1]

    @property
    def next_model(self) -> Path:
        """Where the next training puts its bundle."""
        if self.named_model is not None:
            return self.named_model
        first, last = self.root / "model", self.newest_model
        if last == first:
            return first / "2" if self.models else first
        return first / str(int(last.name) + 1)

    def _served(self) -> str | None:
        """Fingerprint of the live generation of the store's main line; None where there is none."""
        from cache_store import Store
        from cache_store.errors import StoreError

        if not (self.store / "FORMAT").exists():
            return None
        try:
            with Store.open(self.store) as store:
                return store.manifest.fingerprint
        except StoreError:
            return None  # whoever opens it next says what is wrong

    @property
    def tables(self) -> str | dict[str, str]:
        """Where the tables are: the folder named, the catalog's properties in the .json file named, or ``warehouse``.

        Raises:
            DataError: the file does not hold names and values.
        """
        given = self.named_warehouse
        if given is None or not given.endswith(".json"):
            return given or str(self.warehouse)
        from vista.errors import DataError

        try:
            found = small_json(Path(given))
            if not found or any(not isinstance(value, str) for value in found.values()):
                raise ValueError(repr(found))
        except (OSError, ValueError, AttributeError) as error:
            raise DataError(
                f"{given}: expected the properties of a PyIceberg catalog, names and values, all text; found {error}. "
                f"docs/data.md has an example; try it with `vista status --warehouse {given}`"
            ) from error
        return dict(found)

    def new_run(self, verb: str) -> Path:
        """A run directory of its own: ``runs/VERB-YYYYmmdd-HHMMSS-XXXX`` (UTC; hex digits that no other run of the
        second has)."""
        return self.runs / f"{verb}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"


def holds_bundle(folder: Path) -> bool:
    """Whether a bundle lies there, be it one that lost a file: whoever opens it says which."""
    return any((folder / name).exists() for name in ("bundle.json", "weights.safetensors"))


def fingerprint_of(bundle: Path) -> str | None:
    try:
        return small_json(bundle / "bundle.json").get("fingerprint")
    except (OSError, ValueError, AttributeError):
        return None  # a damaged bundle is nobody's; loading it says why
