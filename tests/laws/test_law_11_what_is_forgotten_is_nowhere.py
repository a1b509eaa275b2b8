"""Law 11: what is forgotten is nowhere below the home: tables, generations, states, dead letters; and stays away.

Also: while runs, compactions and pulls are under way, tests/cache_store/change/test_forgetting.py and
tests/cache_store/remote/test_remote.py; with kills, tests/drills/test_histories.py.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from small_worlds import START, World, all_events, broken_model, save_bundle

from beam_jobs.errors import OptionsError
from beam_jobs.generation import refresh, summarize
from beam_jobs.ingest import job as ingest
from beam_jobs.ingest.options import IngestOptions
from beam_jobs.run.engines import HERE
from beam_jobs.tables import compact, forget
from beam_jobs.tables.forget import ForgetOptions
from tools.drills.expected_rows import row_files, users_in

NAMES = ("wanda-who-leaves", "otto-who-stays", "third")
LOST = 10**9
"""An item without an embedding: who touched it is a dead letter."""


def log(path: Path, rows: list[tuple[str, int | None, int]]) -> str:
    """A log of (user, time, item)."""
    users, times, items = zip(*rows, strict=True)
    columns = {"user_id": users, "timestamp_ms": pa.array(times, pa.int64()), "item_id": items}
    pq.write_table(pa.table({**columns, "action": ["0"] * len(rows)}), path)
    return str(path)


def holding(folder: Path, name: str) -> list[Path]:
    """Files below a folder with a user's name among their bytes or, should they be packed, their rows."""
    files = [p for p in folder.rglob("*") if p.is_file() and name.encode() in p.read_bytes()]
    return files + [p for p in row_files(folder) if name in users_in(p)]


steps = st.tuples(st.sampled_from(["ingest", "ill", "refresh", "compact", "fold"]), st.integers(0, 2**16))


@settings(max_examples=1)
@given(history=st.lists(steps, max_size=4))
@example(history=[("refresh", 0), ("ingest", 1), ("ill", 2), ("refresh", 2), ("fold", 0)])
def test_law_11_after_any_history_no_byte_of_a_forgotten_user_is_left_below_the_home(
    tmp_path_factory, history
):
    path = tmp_path_factory.mktemp("law")
    made = save_bundle(path / "model", broken_model(LOST), user_kind="string")
    world, logs, refreshed = World(path / "home", made, kind="string"), [], 0
    world.path.mkdir()

    def ingested(rows: list[tuple[str, int | None, int]]) -> int:
        logs.append(rows)
        run = world.path / "runs" / f"ingest-{len(logs)}"
        files = (log(path / f"{len(logs)}.parquet", rows),)
        return ingest.run(
            IngestOptions(files, str(world.path / "tables"), str(run), num_buckets=2), [HERE]
        ).exit_code

    def refreshing():
        nonlocal refreshed
        refreshed += 1
        run = f"runs/generation-{refreshed}"
        if refreshed == 1:
            return summarize.run(world.summarize(run=run), [HERE])
        return refresh.run(world.refresh(run=run), [HERE])

    for kind, seed in [("ingest", 3), *history, ("refresh", 0)]:
        rng = np.random.default_rng(seed)
        if kind == "ingest":
            ingested([(n, START + int(rng.integers(10**8)), int(rng.integers(400))) for n in NAMES * 5])
        elif kind == "ill":  # a dead letter of the log, and one of the next refresh
            ingested([(NAMES[0], START + 2 * 10**8 + seed, LOST), (NAMES[0], None, 1), (NAMES[1], START, 1)])
        elif kind == "refresh":
            refreshing()
        elif kind == "compact":
            run = str(world.path / "runs" / f"compact-{seed}")
            compact.run(
                compact.CompactOptions(str(world.path / "tables"), run, most=1, progress=False), [HERE]
            )
        elif refreshed:
            world.store().compact()
    assert holding(world.path, NAMES[0])
    gone = [NAMES[0]], str(world.path / "tables"), [str(world.path / "store")], [str(world.path / "runs")]
    assert forget.run(ForgetOptions(*gone)).tables["history"].rows > 0
    assert holding(world.path, NAMES[0]) == []
    with world.store() as store:
        assert store.lookup(list(NAMES)).status.tolist() == [2, 0, 0] and store.states(NAMES[:1]) == [None]
    # It does not come back with a log that has grown, and the others go on.
    ingested([*(row for row in logs[0]), (NAMES[1], START + 10**9, 5)])
    assert refreshing().counts["users"] == 1
    assert sorted(all_events(world)[0].tolist()) == sorted(NAMES[1:])
    assert holding(world.path, NAMES[0]) == []
    again = forget.run(ForgetOptions(*gone))
    assert again.tables["history"].rows == 0 and not again.letters


def test_there_must_be_someone_to_forget_and_somewhere_to_look(home):
    with pytest.raises(OptionsError):
        forget.run(ForgetOptions([], str(home.path / "tables")))
    with pytest.raises(OptionsError):
        forget.run(ForgetOptions([1]))
