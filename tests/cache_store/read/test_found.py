"""What a lookup gives: groups by name, as Arrow and pandas have them, short to look at, and never markup."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from known_stores import PAGED, PAGED_TEXT, KnownStore

from cache_store import Group, Publication, RecordSchema, ShardWriter, Status, Store, Table, bucket_of
from cache_store.errors import KeyKind, MissingExtra, SchemaError
from cache_store.format.keys import as_users


@pytest.fixture(params=[PAGED, PAGED_TEXT], ids=["int64", "string"])
def known(request, tmp_path):
    known = KnownStore(tmp_path / "<b>store</b>", request.param)
    known.publish({u: u % 3 for u in range(20)})
    return known


def test_a_lookup_knows_its_users_and_its_groups(known):
    ids = known.ids([3, 99, 3, 7])
    found = known.open().lookup(ids)
    assert found.users.tolist() == ids.tolist()
    assert list(found.groups) == ["seeds", "slots"]
    assert found.groups["seeds"].shape == (4, 24, 32) and np.shares_memory(
        found.groups["slots"], found.tokens
    )
    early = known.open().lookup(ids, as_of=[1, -1, 2, 1])
    assert early.users.tolist() == ids.tolist() and early.status.tolist()[1] == Status.MISSING


def test_columns_of_arrow_and_pandas_hold_what_the_arrays_hold(known):
    found = known.open().lookup(known.ids([3, 99, 3]))
    batch = found.to_arrow()
    assert batch.column("user").to_pylist() == found.users.tolist()
    assert (batch.column("seeds").to_numpy_ndarray() == found.groups["seeds"]).all()
    assert batch.column("status").to_pylist() == found.status.tolist()
    frame = found.to_pandas()
    assert frame.index.tolist() == found.users.tolist()
    assert frame["status"].tolist() == ["FRESH", "MISSING", "FRESH"]
    assert frame["summarized"].isna().tolist() == [False, True, False]
    assert (np.stack(frame["slots"].tolist()) == found.groups["slots"]).all()
    empty = known.open().lookup(known.ids([]))
    assert empty.to_arrow().num_rows == 0 and len(empty.to_pandas()) == 0


COLUMNS = [
    lambda ids: pa.array(ids), lambda ids: pa.chunked_array([ids[:1], ids[1:]], pa.array(ids).type),
    lambda ids: pa.array(ids).dictionary_encode(), lambda ids: pa.chunked_array([pa.array(ids).dictionary_encode()]),
    lambda ids: pytest.importorskip("pandas").Series(ids), lambda ids: pa.record_batch({"u": ids}).column("u"),
]  # fmt: skip


@pytest.mark.parametrize("column", COLUMNS)
def test_a_column_of_arrow_or_pandas_is_as_good_as_an_array(known, column):
    ids = known.ids([5, 2, 5]).tolist()
    found = known.open().lookup(column(ids))
    known.check(found, [5, 2, 5], {u: u % 3 for u in range(20)})


@pytest.mark.parametrize("column", [pa.array([1, None]), pa.array(["a", None]), pa.array([1.5]), pa.array([True]),
                                    pa.array([[1]]), pa.array([1], pa.uint64())])  # fmt: skip
def test_a_column_that_holds_no_ids_is_refused(column):
    with pytest.raises(KeyKind):
        as_users(column)


def test_what_a_prompt_shows_is_short_and_what_a_notebook_shows_is_no_markup(known):
    store = known.open()
    found = store.lookup(known.ids([1, 99]))
    for thing, words in ((store, ("main", "00000001")), (store.manifest, ("00000001", "full", "20")),
                         (found, ("1 FRESH", "1 MISSING", "32 x 32"))):  # fmt: skip
        assert len(repr(thing)) < 400 and all(word in repr(thing) for word in words)
        html = thing._repr_html_()
        assert html.startswith("<table>") and "<b>" not in html and len(html) < 2_000
    assert "&lt;b&gt;" in store._repr_html_()
    assert "none opened" in repr(Store(known.path))


def table_store(path, rng):
    """A store whose records have a table of items; ids, keys and masses of its users."""
    schema = RecordSchema(
        (Group("keys", 2, 8, "int64"), Group("masses", 2, 8, "float32")), "int64",
        (Table("keys", "masses", 5, (None, 8.0), 1),),
    )  # fmt: skip
    store, users = Store.create(path, num_shards=1), np.arange(6)
    keys = np.sort(rng.choice(1 << 40, (6, 5), replace=False), axis=1)
    mass = rng.integers(0, 3, (6, 5, 2)).astype(np.float32)
    tokens = {"keys": np.zeros((6, 2, 8), np.float32), "masses": np.zeros((6, 2, 8), np.float32)}
    tokens["keys"].reshape(6, -1)[:, :10] = keys.view(np.float32)
    tokens["masses"].reshape(6, -1)[:, :10] = mass.reshape(6, -1)
    assert (bucket_of(users, 1) == 0).all()
    staging, ones = store.stage("r"), np.ones(6, np.int64)
    with ShardWriter(staging, 0, 1, schema, fingerprint="m") as writer:
        writer.add(users, tokens, ones, ones, ones)
        store.publish(staging, [writer.finish()], Publication(fingerprint="m", watermark_ms=1, expected=6))
    return Store.open(path), users, keys, mass


@pytest.mark.parametrize("count", [1, 3, 5, 9])
def test_the_heaviest_items_come_first_and_of_equal_ones_the_first(tmp_path, count):
    store, users, keys, mass = table_store(tmp_path / "s", np.random.default_rng(count))
    found = store.lookup([*users, 77])
    assert (found.groups["keys"][:6] == keys).all()
    items, log_mass, masses = found.heaviest(count)
    assert items.shape == (7, min(count, 5)) and masses.shape == (7, min(count, 5), 2)
    for u in range(6):
        order = sorted(range(5), key=lambda e: (-mass[u, e, 1], e))[:count]
        wanted = [int(keys[u, e]) if mass[u, e, 1] > 0 else -1 for e in order]
        assert items[u].tolist() == wanted
        with np.errstate(divide="ignore"):
            assert np.array_equal(log_mass[u], np.log(mass[u, order, 1]))
    assert (items[6] == -1).all() and np.isneginf(log_mass[6]).all()
    batch = found.to_arrow()
    assert (batch.column("keys").flatten().to_numpy().reshape(7, 5)[:6] == keys).all()
    assert (batch.column("masses").to_numpy_ndarray()[:6] == mass).all()


def test_records_without_a_table_have_no_heaviest(known):
    with pytest.raises(SchemaError, match="table of items"):
        known.open().lookup(known.ids([1])).heaviest(3)


def test_a_lookup_imports_neither_arrow_nor_pandas_and_says_what_to_install(known, monkeypatch):
    code = (
        "import sys, cache_store\n"
        f"found = cache_store.Store.open({str(known.path)!r}).lookup({known.ids([1]).tolist()!r})\n"
        "found.groups, repr(found), found._repr_html_()\n"
        "print([m for m in ('pyarrow', 'pandas', 'torch') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
    found = known.open().lookup(known.ids([1]))
    from cache_store.read import columns

    def absent(extra, *modules):
        raise MissingExtra(f"vista-cache[{extra}]")

    monkeypatch.setattr(columns, "needs", absent)
    with pytest.raises(MissingExtra, match="pandas"):
        found.to_pandas()
    with pytest.raises(MissingExtra, match="flight"):
        found.to_arrow()
