"""``vista status``: what is there, what is live, how old it is."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from tools import console
from tools.home import Home
from tools.options import HOME, HomeOption, JsonOption, ModelOption, StoreOption, WarehouseOption

SOME = 3


def command(
    home: HomeOption = HOME,
    warehouse: WarehouseOption = None,
    model: ModelOption = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Tables, model and store at a glance; every line of the store with its live generation."""
    at = Home(home)
    found: dict[str, Any] = {
        "warehouse": _warehouse(at.tables(warehouse), store or at.store),
        "model": _model(model or at.model),
        "store": _store(store or at.store),
    }
    if json:
        return console.json_line(found)
    console.fields("warehouse", found["warehouse"] or {"": "none; `vista ingest` makes one"})
    model_facts = {k: v for k, v in (found["model"] or {}).items() if not k.startswith("action.")}
    console.fields("model", model_facts or {"": "none; `vista train` makes one"})
    if not found["store"]:
        return console.fields("store", {"": "none; `vista summarize` makes one"})
    rows = [list(row.values()) for row in found["store"]["generations"]]
    columns = list(found["store"]["generations"][0]) if rows else []
    console.table(
        f"store {found['store']['path']}, read by {found['store']['read by']}: generations", columns, rows
    )
    users = found["store"]["some users"]
    rows = [(name, live, " ".join(map(str, users[name]))) for name, live in found["store"]["lines"].items()]
    console.table("lines", ("line", "live generation", "some of its users"), rows)


def _warehouse(path: Any, store: Path) -> dict[str, Any] | None:
    from cache_store import Store
    from vista.data.tables.compaction import horizon, most_files
    from vista.data.tables.warehouse import Warehouse

    tables = Warehouse(path)
    if not tables.exists():
        return None
    tables.open()
    files = [f for bucket in tables.bucket_files().values() for f in bucket]
    kept = Store(store).generations() if (store / "FORMAT").exists() else []
    most, due = most_files(tables, horizon(tables, [m.table_snapshot for m in kept]))
    return {
        "path": tables.name,
        "snapshot": None if tables.snapshot() is None else str(tables.snapshot()),
        "buckets": tables.num_buckets,
        "users are": tables.user_kind,
        "events": sum(f.rows for f in files),
        "files": len(files),
        "most files of a bucket": f"{most}; {due} buckets due for `vista compact tables`" if due else most,
        "bytes": sum(f.bytes for f in files),
        "items": len(tables.read_items()),
        "actions": ", ".join(tables.actions),
        "surfaces": ", ".join(tables.surfaces),
    }


def _model(path: Any) -> dict[str, Any] | None:
    from vista import bundle

    if not (path / "bundle.json").exists():
        return None
    meta, fingerprint = bundle.read_meta(path)
    from vista.training.verdict import verdict

    return {"path": str(path), "fingerprint": fingerprint, "verdict": verdict(meta.metrics), **meta.metrics}


def _store(path: Any) -> dict[str, Any] | None:
    from cache_store import Store
    from cache_store.format import lines

    if not (path / "FORMAT").exists():
        return None
    store = Store(path)
    now = time.time() * 1000
    return {
        "path": str(path),
        "read by": store.kernel,
        "some users": _some_users(path, store.layout.line_names()),
        "lines": {name: lines.live(store.layout, name).live for name in store.layout.line_names()},
        "generations": [
            {
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
                "age h": round((now - m.published_ms) / 3_600_000, 2),
            }
            for m in store.generations()
        ],
    }


def _some_users(path: Any, names: list[str]) -> dict[str, list[Any]]:
    """A few users of the live generation of each line."""
    from cache_store import Store
    from cache_store.errors import StoreError

    found: dict[str, list[Any]] = {}
    for name in names:
        try:
            with Store.open(path, line=name, verify=False) as store:
                users: list[Any] = []
                for bucket in range(store.format.num_shards):
                    users += store.users(bucket)[:SOME].tolist()
                    if len(users) >= SOME:
                        break
                found[name] = users[:SOME]
        except StoreError as error:
            found[name] = [str(error)]
    return found
