"""``vista lookup``: what the store holds for some users."""

from __future__ import annotations

import time
import zipfile
from pathlib import Path
from typing import Annotated

import typer

from tools import console
from tools.options import HomeOfStore, JsonOption, LineOption, as_ms, parse_users
from tools.outputs import replacing


def command(
    users: Annotated[list[str], typer.Argument(help="User ids.")],
    *,
    at: HomeOfStore,
    line: LineOption = "main",
    as_of: Annotated[
        int | None,
        typer.Option(help="Time in ms since 1970: read the newest kept generation that is not later."),
    ] = None,
    max_age_days: Annotated[float | None, typer.Option(min=0, help="Older summaries are STALE.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write tokens [B, S, D], status and times to this .npz file.")
    ] = None,
    json: JsonOption = False,
) -> int:
    """Summary tokens of users, with a status for each. Exit code 3 if one is missing or corrupt."""
    import numpy as np

    from cache_store import Status, Store
    from cache_store.change.compare import floats

    age = as_ms(max_age_days)
    with Store.open(at.store, line=line, max_age_ms=age) as opened:
        ids = parse_users(users, opened.format.user_kind)
        start = time.perf_counter()
        found = opened.lookup(ids, as_of=as_of)
        seconds = time.perf_counter() - start
        number = floats(opened.manifest.schema)
    values = found.tokens[:, number] if number.any() else np.zeros((len(ids), 1, 1))
    norms = np.sqrt((values.astype(np.float64) ** 2).mean((1, 2)))
    rows = [
        {
            "user": user,
            "status": Status(int(status)).name,
            "events": int(count),
            "last_event": console.when(int(last)) if count else None,
            "summarized": console.when(int(made)) if count else None,
            "token_rms": float(norm),
        }
        for user, status, count, last, made, norm in zip(
            ids, found.status, found.event_count, found.last_event_ms, found.summarized_ms, norms, strict=True
        )
    ]
    if out is not None:
        kept = ("tokens", "status", "event_count", "last_event_ms", "summarized_ms")
        with replacing(out, "--out", _ours) as file:
            np.savez(file, users=np.asarray(ids), **{name: getattr(found, name) for name in kept})
    shape = list(found.tokens.shape)
    if json:
        console.json_line({"generation": found.generation, "shape": shape, "seconds": seconds, "users": rows})
    else:
        columns = list(rows[0]) if rows else []
        title = f"generation {found.generation}, tokens {shape}, read in {seconds * 1e3:.2f} ms"
        console.table(title, columns, [[str(row["user"]), *list(row.values())[1:]] for row in rows])
    return 3 if np.isin(found.status, (Status.MISSING, Status.CORRUPT)).any() else 0


def _ours(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as file:
        return {"users.npy", "tokens.npy", "status.npy"} <= {*file.namelist()}
