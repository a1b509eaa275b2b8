"""Why a user's summary is as it is: clocks, where the record lies, what it holds, what a ranking reads of it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from cache_store.store import Store
    from vista.bundle import Bundle
    from vista.data.tables.warehouse import Warehouse

HISTORY = 1_000_000
"""Events of a user that are read, the newest."""


def record(store: Store, user: Any) -> dict[str, Any]:
    """Status, clocks, and the place of a user's record; of the generation that holds it, not the newest above."""
    from cache_store import Status

    found = store.lookup([user])
    place = store.places([user])[0]
    state = store.states([user])[0]
    there = place is not None
    return {
        "user": user,
        "status": Status(int(found.status[0])).name,
        "live": store.manifest.generation,
        "events": int(found.event_count[0]),
        "last_event_ms": int(found.last_event_ms[0]) if there else None,
        "summarized_ms": int(found.summarized_ms[0]) if there else None,
        "published_ms": store.manifest.published_ms,
        "generation": place[0].parent.name if place else None,
        "file": str(place[0]) if place else None,
        "offset": place[1] if place else None,
        "state_bytes": None if state is None else len(state),
        "tokens": {
            name: float(np.sqrt((found.tokens[0, rows].astype(np.float64) ** 2).mean()))
            for name, rows in numbers(store).items()
        } if there else {},
    }  # fmt: skip


def numbers(store: Store) -> dict[str, slice]:
    """Rows of a record's tokens by group, of those groups that are numbers; the others are bits."""
    schema = store.manifest.schema
    return {g.name: schema.slices[g.name] for g in schema.groups if g.codec != "int64"}


def held(store: Store, bundle: Bundle, user: Any, most: int = 10) -> dict[str, Any]:
    """Items and clusters that weigh most in the record, by name; empty for a model without exact tokens."""
    import torch

    tokens = bundle.model.summarizer.tokens
    found = store.lookup([user])
    if not tokens.enabled or store.places([user])[0] is None:
        return {"items": [], "clusters": []}
    slices = store.manifest.schema.slices
    addressed = np.concatenate([found.tokens[:, slices[name]] for name in tokens.rows], 1)
    read = tokens.unpack(torch.from_numpy(addressed))
    weight = read.mass[0, :, tokens.deciding]
    order = weight.argsort(descending=True)[:most]
    order = order[weight[order] > 0]
    items = read.item[0, order].tolist()
    rows = [
        {"item": item, "name": name, "masses": read.mass[0, k].tolist()}
        for item, name, k in zip(items, bundle.names(items), order.tolist(), strict=True)
    ]
    clusters = []
    if read.cluster.shape[1]:
        total = read.cluster[0, :, tokens.deciding]
        top = total.argsort(descending=True)[:most]
        clusters = [{"cluster": int(k), "masses": read.cluster[0, k].tolist()} for k in top if total[k] > 0]
    return {
        "items": rows,
        "clusters": clusters,
        "kept": int((read.mass[0].amax(-1) > 0).sum()),
        "half_lives_events": [None if h == float("inf") else h for h in tokens.half_lives],
    }


def history(tables: Warehouse, bundle: Bundle | None, user: Any) -> dict[str, Any]:
    """What the tables have of a user: how much, how new, which items most often."""
    from tools import histories

    events = histories.newest(tables, [user], HISTORY)
    if not len(events):
        return {"events": 0, "items": []}
    counted = Counter(events.item.tolist()).most_common(10)
    names = [None] * len(counted) if bundle is None else bundle.names([item for item, _ in counted])
    return {
        "events": len(events),
        "first_ms": int(events.time[0]),
        "last_ms": int(events.time[-1]),
        "distinct_items": len(np.unique(events.item)),
        "items": [{"item": i, "name": n, "times": t} for (i, t), n in zip(counted, names, strict=True)],
    }


def item(
    tables: Warehouse, store: Store, bundle: Bundle, index: Any, user: Any, wanted: int, now_ms: int
) -> dict[str, Any]:
    """What a ranking reads for an item: its own past with the user, its score with and without the summary."""
    import torch

    from tools import histories
    from vista.serving.recommender import MAX_RECENT, Recommender

    events = histories.newest(tables, [user], HISTORY)
    touches = events.time[events.item == wanted]
    recent = histories.newest(tables, [user], MAX_RECENT)
    asked = np.asarray([user], dtype=object if tables.user_kind == "string" else np.int64)
    scores: dict[str, Any] = {}
    place = None
    for name, lookup in (("with_summary", store.lookup), ("without_summary", None)):
        serve = Recommender(lookup, bundle.model, index, fingerprint=bundle.fingerprint)
        ctx, _ = serve.context(asked, recent, now_ms)
        with torch.inference_mode():
            logits = bundle.model.ranker.rank(ctx, torch.tensor([wanted]), np.array([0, 1]))
        scores[name] = dict(zip(bundle.meta.actions, torch.sigmoid(logits[0].float()).tolist(), strict=False))
        if name == "with_summary":
            most = min(1_000, len(index))
            ranked = serve.recommend(asked, recent, now_ms, most, candidates=most).item.tolist()
            place = ranked.index(wanted) + 1 if wanted in ranked else None
    held_mass = [row for row in held(store, bundle, user, most=1 << 20)["items"] if row["item"] == wanted]
    return {
        "item": wanted,
        "name": bundle.names([wanted])[0],
        "touched": len(touches),
        "last_touch_ms": int(touches[-1]) if len(touches) else None,
        "in_the_summary": held_mass[0]["masses"] if held_mass else None,
        "in_the_recent_events": bool((recent.item == wanted).any()),
        "probability": scores,
        "place": place,
    }
