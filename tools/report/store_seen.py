"""The store at a glance: lines, generations, the three clocks, damage that shows without reading every byte."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cache_store.format.manifest import Manifest
    from cache_store.store import Store

SAMPLE = 512
"""Users whose records are looked at."""


@dataclass(frozen=True)
class Damage:
    """A generation that is not whole."""

    generation: str
    what: str
    live: bool


def as_row(m: Manifest, now_ms: float) -> dict[str, Any]:
    """A generation as ``vista status`` shows it."""
    from tools import console

    return {
        "generation": m.generation,
        "kind": m.kind,
        "parent": m.parent,
        "fingerprint": m.fingerprint[:12],
        "users": m.records,
        "tombstones": m.tombstones,
        "dead letters": m.dead_letters,
        "bytes": m.bytes,
        "last event": console.when(m.watermark_ms),
        "published": console.when(m.published_ms),
        "age h": round((now_ms - m.published_ms) / 3_600_000, 2),
    }


def damage(store: Store, live: Sequence[str]) -> list[Damage]:
    """Generations whose manifest cannot be read or whose files have another size; ``vista verify`` reads the bytes."""
    from cache_store.errors import StoreError
    from cache_store.format import manifest as manifests

    found, needed = [], set(live)
    for name in reversed(store.layout.generation_names()):
        folder = store.layout.generation(name)
        try:
            manifest = manifests.read(folder)
        except StoreError as error:
            found.append(Damage(name, str(error), name in needed))
            continue
        if name in needed and manifest.parent:
            needed.add(manifest.parent)
        for file, fact in manifest.files.items():
            try:
                size = (folder / file).stat().st_size
                what = f"expected {fact.bytes} bytes, found {size}" if size != fact.bytes else ""
            except OSError as error:
                what = f"{error.strerror}"
            if what:
                found.append(Damage(name, f"{folder / file}: {what}", name in needed))
                break
    return found


def sample(store: Store, users: int = SAMPLE) -> Any:
    """Some users of the live generation, spread over a few buckets by their hash."""
    import numpy as np

    found: list[Any] = []
    for bucket in range(store.format.num_shards):
        found += np.random.default_rng(bucket).permutation(store.users(bucket))[: users - len(found)].tolist()
        if len(found) >= users:
            break
    return found


def clocks(store: Store, users: Sequence[Any]) -> dict[str, Any]:
    """The three clocks of a line's live generation, in milliseconds since 1970.

    ``newest_event_ms`` and ``published_ms`` are the generation's; ``summarized_ms`` (oldest, median, newest) is of
    the records of ``users``, since a delta leaves most records as they were.
    """
    import numpy as np

    manifest = store.manifest
    found: dict[str, Any] = {"newest_event_ms": manifest.watermark_ms, "published_ms": manifest.published_ms}
    if len(users):
        made = store.lookup_raw(list(users)).summarized_ms
        made = made[made > 0]
        if len(made):
            low, middle, high = (int(np.quantile(made, q, method="nearest")) for q in (0, 0.5, 1))
            found["summarized_ms"] = {"oldest": low, "median": middle, "newest": high, "users": len(made)}
    return found


def readers(store: Store) -> int:
    """Processes that hold a lease now."""
    from cache_store.read.leases import held

    return len(held(store.layout, int(time.time() * 1000)).names)


def full_bytes(store: Store, manifest: Manifest, users: int) -> int:
    """About what the next full generation of this line, of so many users, will take."""
    from cache_store.format.manifest import chain

    base = chain(store.layout, manifest.generation)[-1]
    return int(base.bytes / base.records * max(users, 1)) if base.records else base.bytes


def there(path: Path) -> Path:
    """A path, or the nearest folder above it that is there."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def free_bytes(path: Path) -> int:
    """Bytes left on the file system of a path that need not be there yet."""
    return shutil.disk_usage(there(path)).free
