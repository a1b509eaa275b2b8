"""``vista recommend``: retrieve and rank for some users, over one context."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tools import console, histories, scores
from tools.log_options import WeightOption, weights
from tools.options import JsonOption, LineOption, WholeHome, parse_users
from tools.serving import open_index

if TYPE_CHECKING:
    import numpy as np

    from vista.bundle import Bundle
    from vista.data.tables.warehouse import Warehouse


def _named(bundle: Bundle, tables: Warehouse, items: np.ndarray) -> dict[int, str | None]:
    """Names of items: the catalogue's, or where that has none what the tables were told since."""
    import numpy as np

    names = dict(zip(items.tolist(), bundle.names(items), strict=True))
    without = np.array([i for i, name in names.items() if name in (None, str(i))], np.int64)
    if len(without):
        told = tables.read_items()
        at = np.minimum(np.searchsorted(told.item, without), max(len(told) - 1, 0))
        names |= {
            int(i): told.name[k]
            for i, k in zip(without, at, strict=True)
            if len(told) and told.item[k] == i and told.name[k]
        }
    return names


def command(
    users: Annotated[list[str] | None, typer.Argument(help="User ids.")] = None,
    *,
    at: WholeHome,
    line: LineOption = "main",
    k: Annotated[int, typer.Option("-k", "--top", min=1, help="Items per user.")] = 10,
    candidates: Annotated[int, typer.Option(min=1, help="Retrieved per user, then ranked.")] = 600,
    index: Annotated[str, typer.Option(help="Kind of item index: exact, hnsw or ivf.")] = "exact",
    weight: WeightOption = None,
    exclude_seen: Annotated[bool, typer.Option("--exclude-seen", help="Leave out recent items.")] = False,
    now: Annotated[
        int | None,
        typer.Option(help="Time of the request, ms.  [default: just after each user's newest event]"),
    ] = None,
    users_from: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, help="Users of a file: Parquet with user_id, or a line each."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write a row for each item to this Parquet file; for many users.")
    ] = None,
    threads: Annotated[
        int, typer.Option(min=1, help="Torch threads of this process; more is often slower.")
    ] = 1,
    json: JsonOption = False,
) -> int:
    """The best items for users: summary from the store, recent events from the tables.

    Exit code 3 where nothing is known of a user named here or of all of the file's, or where a record is corrupt.
    """
    import numpy as np
    import torch

    from cache_store import Status, Store
    from vista import bundle as bundles
    from vista.data.logs.weights import spelled
    from vista.data.logs.weights import weights as action_weights
    from vista.data.tables.warehouse import Warehouse
    from vista.serving.recommender import MAX_RECENT, Recommendations, Recommender

    torch.set_num_threads(threads)
    bundle = bundles.load(at.model, serve=True)
    tables = Warehouse(at.tables).open()
    ids = parse_users([*(users or ()), *scores.users_of(users_from)], tables.user_kind)
    if not ids:
        raise typer.BadParameter("expected users, or a file of them by --users-from")
    if len(ids) > scores.BATCH and out is None:
        text = "users are too many for a screen; write them with --out scores.parquet"
        raise typer.BadParameter(f"{len(ids):,} {text}")
    known = {a: w for a, w in tables.weights.items() if a in bundle.meta.actions}
    worth = action_weights(bundle.meta.actions, bundle.meta.weights, known, weights(weight))
    with Store.open(at.store, line=line, fingerprint=bundle.fingerprint) as opened:
        serve = Recommender(
            # A request of the past knows what was served then.
            opened.lookup if now is None else functools.partial(opened.lookup, as_of=now),
            bundle.model,
            open_index(bundle, at.index, index),
            fingerprint=bundle.fingerprint,
            action_weights=worth,
        )

        unknown: list[Any] = []
        corrupt = 0

        def answer(part: Sequence[Any]) -> Recommendations:
            nonlocal corrupt
            recent = histories.newest(tables, part, MAX_RECENT, until=now)
            ends = recent.offsets[1:] - 1
            last = np.where(recent.lengths > 0, recent.time[np.maximum(ends, 0)] + 1 if len(recent) else 0, 0)
            wall = int(time.time() * 1000)
            at_ms = np.where(last > 0, last, wall) if now is None else np.full(len(part), now)
            asked = np.asarray(part, dtype=object if tables.user_kind == "string" else np.int64)
            found = serve.recommend(asked, recent, at_ms, k, candidates=candidates, exclude_seen=exclude_seen)
            unknown.extend(asked[(recent.lengths == 0) & (found.status == Status.MISSING)].tolist())
            corrupt += int((found.status == Status.CORRUPT).sum())
            return found

        start = time.perf_counter()
        if out is not None:
            told = scores.write(out, ids, answer, bundle.names)
            seconds = time.perf_counter() - start
            total = {**told, "unknown": len(unknown), "out": str(out), "seconds": seconds, "weights": worth}
            console.told("scored", total, json)
        else:
            found = answer(ids)
        seconds = time.perf_counter() - start
    code = 3 if corrupt or len(unknown) == len(ids) or {*unknown} & {*ids[: len(users or ())]} else 0
    if unknown:
        few = ", ".join(map(str, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
        console.note(
            f"nothing is known of {len(unknown):,} of {len(ids):,} users ({few}): no summary and no event; their items "
            f"are those of anybody without a history"
        )
    if out is not None:
        return code
    names = _named(bundle, tables, found.item)
    answers: list[dict[str, Any]] = []
    for u, user in enumerate(ids):
        rows = [
            {"item": int(i), "name": names.get(int(i)), "score": float(s),
             "probability": dict(zip(found.actions, map(float, p), strict=True))}
            for i, s, p in zip(*found.of(u), strict=True)
        ]  # fmt: skip
        status = Status(int(found.status[u])).name
        answers.append({"user": user, "status": status, "known": user not in unknown, "items": rows})
    if json:
        said = {"generation": found.generation, "seconds": seconds, "weights": worth, "users": answers}
        console.json_line(said)
        return code
    for each in answers:
        table = [
            (n, row["name"] or row["item"], row["score"], *row["probability"].values())
            for n, row in enumerate(each["items"], 1)
        ]
        columns = ("", "item", "score", *(f"p({a})" for a in found.actions))
        console.table(f"user {each['user']} (summary {each['status']})", columns, table)
    console.note(f"{len(ids)} users in {seconds * 1e3:.1f} ms, summaries of generation {found.generation}")
    console.note(f"score = the sum of p(action) times: {spelled(worth)} (--weight changes it)")
    return code
