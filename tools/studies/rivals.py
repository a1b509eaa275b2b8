"""The rivals of the study by name, and what each takes of a store."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tools.studies.contexts import BASE, Variant
from vista import config

QUICK = ("recent", "full", "tokens", "ours")
WHOLE = (
    "recent", "full", "ours", "tokens", "ours_8KiB", "raw_32KiB", "raw_8KiB", "sketch", "twin", "sdim", "oracle",
)  # fmt: skip
SIZES = (2, 4, 8, 16, 32, 64)
CURVE = tuple(f"{of}_{kib}KiB" for of in ("ours", "tokens", "raw") for kib in SIZES)
"""The record, its sequence alone, and raw events, in so many bytes."""

_WIDTH, _FEW = 64, 32
_SEQUENCE = {"sequence": 768, "places": 256}


def _record(kib: int) -> dict[str, Any]:
    """A record of so many KiB: in 32 the default, in more all of its clusters, in fewer the heaviest; the rest are
    items."""
    size = kib * 1_024
    if kib == 32:
        return {}
    entry, told = (_bytes({"items": i, "clusters_told": n}) for i, n in ((1, 0), (0, 1)))
    counters = _bytes({"items": 0, "clusters_told": 0})
    if kib > 32:
        return {"items": (size - counters) // (entry - counters), "clusters_told": 0}
    # items have the larger part: where things repeat, fewer items cost more than fewer clusters
    items = size * 11 // 20 // (entry - counters)
    return {"items": items, "clusters_told": (size - items * (entry - counters)) // told}


def _bytes(options: dict[str, Any]) -> int:
    return replace(BASE.tokens, **options).bytes


def variants(window: int, event_bytes: float) -> dict[str, Variant]:
    """Every rival; ``event_bytes`` is what a raw event takes under zstd."""
    found = [
        Variant("recent", "none", 0),
        Variant("full", "raw", int(window * event_bytes), {"events": window}),
        Variant("oracle", "touches", 0),
        # 480 means of unit vectors in int8 with three masses of a byte: 32,640 bytes
        Variant("sketch", "sketch", 480 * (_WIDTH + 4), {"places": 480}),
        Variant("twin", "twin", 480 * (_WIDTH + 4), {"count": 480}),
        Variant("sdim", "sdim", 60 * 8 * (_WIDTH + 4), {"groups": 60, "bits": 3}),
        Variant("ours", "record", _bytes({})),
        Variant("tokens", "record", _bytes({}), {"alone": 1} | _SEQUENCE),
    ]
    for name, options in {"learned": {"distil": 1.0}, "heaviest": {}}.items():
        found.append(Variant(name, "record", _FEW * (_WIDTH + 4), {name: _FEW} | _SEQUENCE | options))
    for size, (items, told) in config.SIZES.items():
        options = {"items": items, "clusters_told": told}
        found.append(Variant(f"ours_{size}", "record", _bytes(options), options))
    for kib in SIZES:
        options = _record(kib)
        held, alone = _bytes(options), options | {"alone": 1} | _SEQUENCE
        found.append(Variant(f"ours_{kib}KiB", "record", held, options))
        found.append(Variant(f"tokens_{kib}KiB", "record", held, alone))
        events = min(window, int(kib * 1_024 / event_bytes))
        found.append(Variant(f"raw_{kib}KiB", "raw", int(events * event_bytes), {"events": events}))
    return {v.name: v for v in found}
