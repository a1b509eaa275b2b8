"""``vista compact``: fold a chain of deltas into one full generation."""

from __future__ import annotations

from tools import console
from tools.home import Home
from tools.options import HOME, HomeOption, JsonOption, LineOption, StoreOption


def command(
    home: HomeOption = HOME, store: StoreOption = None, line: LineOption = "main", json: JsonOption = False
) -> None:
    """Fold the live chain of a line into one full generation and make it live."""
    from cache_store import Store

    with Store.open(store or Home(home).store, line=line) as opened, console.status("compacting"):
        before = opened.manifest
        name = opened.compact()
        after = opened.manifest
    found = {
        "line": line,
        "generation": name,
        "from": before.generation,
        "deltas folded": before.depth,
        "users": after.records,
        "bytes": after.bytes,
    }
    console.json_line(found) if json else console.fields("compacted", found)
