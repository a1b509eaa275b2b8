"""Law 11: what is forgotten is nowhere. And what ``verify`` says of what is damaged."""

from __future__ import annotations

import os
import re
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from known_stores import PAGED, PAGED_TEXT, SMALL, TEXT, KnownStore

from cache_store import Publication, ShardWriter, Status, Store, bucket_of, key_bytes
from cache_store.change.forget import without_forgotten
from cache_store.change.forgotten import ALWAYS, NEVER, Forgotten
from cache_store.errors import Damaged, Incomplete, StoreError
from cache_store.format.keys import as_users, hash_of
from cache_store.write.sorted_file import SortedFile

SCHEMAS = pytest.mark.parametrize(
    "schema", [SMALL, PAGED, TEXT, PAGED_TEXT], ids=["small", "paged", "text", "long"]
)


def traces(known, user, versions):
    """Byte strings that only this user's key, hash, tokens, state or dead letter contain."""
    name = known.name(user)
    value = [np.float32(v + user / 1024).tobytes() * 4 for v in versions]
    digest = int(hash_of(as_users([name]))[0]).to_bytes(8, "little")
    words = [key_bytes(name), digest, *value, f"state {user} ".encode()]
    return words if known.schema.user_kind == "int64" else [*words, name.encode()]


@SCHEMAS
def test_law_11_what_is_forgotten_is_nowhere(tmp_path, schema):
    known = KnownStore(tmp_path / "s", schema)
    known.publish({u: 1 for u in range(100, 120)})
    known.publish({103: 2, 104: None, 105: 2}, "delta", watermark=1)
    known.publish({103: None, 106: 3}, "delta", watermark=2)
    known.publish({u: 4 for u in range(100, 110)}, line="shadow")
    known.stage({103: 5, 107: 5}, run="unfinished")
    (tmp_path / "s/staging/unfinished/.shard-00000-of-00002.mdb.00.tmp").write_bytes(
        key_bytes(known.name(103))
    )
    for gone in (103, 104):
        for trace in traces(known, gone, [1, 2, 4]):
            assert any(trace in content for _, content in known.bytes_left()) or gone == 104, trace
    reader = known.open()
    digest = reader.manifest.digest
    report = reader.forget(known.ids([103, 104, 999]))
    assert report.generations == {"00000001": 2, "00000002": 2, "00000003": 1, "00000004": 2}
    assert report.states == 5 and report.staging
    for gone in (103, 104):
        for trace in traces(known, gone, [1, 2, 3, 4, 5]):
            for path, content in known.bytes_left():
                assert trace not in content, (path, trace)
    users = list(range(100, 122))
    for store, line_truth, times in (
        (reader, None, (0, 1, 2)),
        (known.open(line="shadow"), "00000004", (0,)),
    ):
        for t in times:
            truth = {
                u: v for u, v in known.truth[line_truth or f"0000000{t + 1}"].items() if u not in (103, 104)
            }
            known.check(store.lookup(known.ids(users), as_of=t), users, truth)
            assert reader.states(known.ids([103, 104])) == [None, None]
    assert reader.manifest.digest != digest and known.admin.verify().ok
    again = known.admin.forget(known.ids([103, 104]))
    assert not again.generations and not again.states and not again.staging


def test_forgetting_reaches_dead_letters_and_leaves_the_rest(tmp_path):
    known = KnownStore(tmp_path / "s")
    staging, receipts = known.stage({1: 1, 2: 1})
    pq.write_table(pa.table({"user": ["77", "78"], "reason": ["a", "b"]}), staging / "dead-letters.parquet")
    known.admin.publish(
        staging, receipts, Publication(fingerprint="model-a", watermark_ms=0, expected=4, dead_letters=2)
    )
    report = known.admin.forget([77])
    assert report.dead_letters == 1 and known.admin.verify().ok
    path = tmp_path / "s/generations/00000001/dead-letters.parquet"
    assert pq.read_table(path)["user"].to_pylist() == ["78"]
    before = sorted(path.parent.iterdir())
    for damage in (lambda: path.write_bytes(b"no table"), path.unlink):
        damage()
        with pytest.raises(Damaged, match="dead-letters.parquet"):
            known.admin.forget([1])
    assert sorted({*path.parent.iterdir(), path}) == before


def test_other_readers_keep_reading_and_drop_the_user_at_refresh(tmp_path):
    known = KnownStore(tmp_path / "s")
    known.publish({u: 1 for u in range(10)})
    reader = known.open()
    reader.lookup([3])
    known.admin.forget([3])
    known.check(reader.lookup([3, 4]), [3, 4], {3: 1, 4: 1})  # still mapped
    reader.refresh()
    known.check(reader.lookup([3, 4]), [3, 4], {4: 1})
    late = Store.open(known.path)
    assert late.states([4, 3]) == [b"state 4 1", None]


@pytest.mark.parametrize("step", range(7))
def test_forgetting_cut_short_leaves_every_generation_whole_and_is_finished_by_the_next(
    tmp_path, monkeypatch, step
):
    from cache_store.change import forget
    from cache_store.write import sorted_file

    class Cut(BaseException):
        pass

    calls = 0

    def cut(function):
        def run(*args):
            nonlocal calls
            calls += 1
            if calls > step:
                raise Cut
            return function(*args)

        return run

    known = KnownStore(tmp_path / "s")
    known.publish({u: 1 for u in range(10)})
    known.publish({u: 2 for u in range(0, 10, 2)}, "delta", watermark=1)
    with monkeypatch.context() as patch:
        patch.setattr(forget, "write_file", cut(forget.write_file))
        patch.setattr(forget, "remove", cut(forget.remove))
        patch.setattr(sorted_file.os, "replace", cut(sorted_file.os.replace))
        with pytest.raises(Cut):
            known.admin.forget([4])
    for store in (known.open(), Store.open(known.path)):
        users = [u for u in range(12) if u != 4]
        known.check(store.lookup(users), users, known.truth["00000002"])
        known.check(store.lookup(users, as_of=0), users, known.truth["00000001"])
        # An older record never comes back into view.
        assert store.lookup([4]).tokens[0, 0, 0] in (0, np.float32(2 + 4 / 1024))
    known.admin.forget([4])
    assert known.admin.verify().ok
    assert not any(trace in c for _, c in known.bytes_left() for trace in traces(known, 4, [1, 2]))


def nowhere(known, user, versions):
    return not any(trace in c for _, c in known.bytes_left() for trace in traces(known, user, versions))


@SCHEMAS
def test_a_run_under_way_does_not_bring_a_forgotten_user_back(tmp_path, schema):
    known = KnownStore(tmp_path / "s", schema)
    known.publish({u: 1 for u in range(110, 120)})
    staging = known.admin.stage("under-way")  # and its workers have read what they need
    known.admin.forget(known.ids([113, 114, 999]))
    _, receipts = known.stage({113: 2, 115: 2, 116: None, 114: None}, run="under-way")
    pq.write_table(
        pa.table({"user": [str(known.name(u)) for u in (999, 998)]}), staging / "dead-letters.parquet"
    )
    wanted = Publication(
        kind="delta", parent="00000001", fingerprint="model-a", watermark_ms=1, expected=6, dead_letters=2
    )
    name = known.admin.publish(staging, receipts, wanted).generation
    truth = {u: 1 for u in (110, 111, 112, 117, 118, 119)} | {115: 2}
    with known.open() as reader:
        users = list(range(110, 121))
        known.check(reader.lookup(known.ids(users)), users, truth)
        assert reader.manifest.generation == name and reader.manifest.forgotten == 2
    assert known.admin.verify().ok
    assert nowhere(known, 113, [1, 2]) and nowhere(known, 114, [1])
    letters = tmp_path / "s/generations" / name / "dead-letters.parquet"
    assert pq.read_table(letters)["user"].to_pylist() == [str(known.name(998))]
    known.truth[name] = truth
    known.publish({113: 3}, "delta", watermark=2)  # a run that began later may know him again
    known.check(known.open().lookup(known.ids([113])), [113], {113: 3})


def test_a_shard_taken_away_as_its_file_is_opened_is_a_typed_error(tmp_path):
    # LMDB opens a file by its name twice, and forget may take it away between the two
    with pytest.raises(Incomplete, match="vista forget.*build the shard again"):
        SortedFile(tmp_path / "gone", "records-00000-of-00001", lengths=False, second=False)


@pytest.mark.parametrize("step", ["built", ".idx", ".mdb", ".receipt.json"])
def test_a_shard_taken_away_while_it_is_finished_is_a_typed_error(tmp_path, monkeypatch, step):
    known = KnownStore(tmp_path / "s", num_shards=1)
    facts = (np.array([1]), np.array([1]), np.array([1]))
    replace = os.replace

    def forget_first(source, target):
        if str(target).endswith(step):
            monkeypatch.undo()
            known.admin.forget([1])
        replace(source, target)

    with ShardWriter(known.admin.stage("r"), 0, 1, SMALL, True, fingerprint="model-a") as writer:
        writer.add(known.ids([1]), known.tokens([1], [1]), *facts)
        monkeypatch.setattr(os, "replace", forget_first)
        if step == "built":
            known.admin.forget([1])
        with pytest.raises(Incomplete, match="vista forget.*build the shard again"):
            writer.finish()
    assert [p.name for p in (tmp_path / "s/staging/r").iterdir()] == ["BEGAN"]


@pytest.mark.parametrize("when", ["before", 0, 1])
@pytest.mark.parametrize("states_mapped", [False, True])
def test_a_compaction_under_way_does_not_bring_a_forgotten_user_back(
    tmp_path, monkeypatch, when, states_mapped
):
    from cache_store.change import compact
    from cache_store.read import views

    known = KnownStore(tmp_path / "s")
    known.publish({u: 1 for u in range(100, 120)})
    known.publish({u: 2 for u in range(100, 120, 2)}, "delta")
    gone = [next(u for u in range(100, 120) if bucket_of([u], 2) == k) for k in (0, 1)]
    resolve, fold_shard = views.Views.refresh, compact.fold_shard

    def fold_then_forget(chain, shard, staging, *rest):
        if shard == when:
            monkeypatch.setattr(compact, "fold_shard", fold_shard)
            known.admin.forget(gone)
        return fold_shard(chain, shard, staging, *rest)

    def refresh_then_forget(self):
        found = resolve(self)
        monkeypatch.setattr(views.Views, "refresh", resolve)
        known.admin.forget(gone)
        return found

    store = known.open()
    if states_mapped:
        store.states(gone)
    monkeypatch.setattr(compact, "fold_shard", fold_then_forget)
    if when == "before":
        monkeypatch.setattr(views.Views, "refresh", refresh_then_forget)
    store.compact()
    users = list(range(100, 120))
    truth = {u: v for u, v in known.truth["00000002"].items() if u not in gone}
    known.check(store.lookup(users), users, truth)
    assert store.manifest.kind == "full" and known.admin.verify().ok
    assert all(nowhere(known, user, [1, 2]) for user in gone)


def test_a_damaged_record_stays_recognisable_after_its_shard_was_rewritten(tmp_path):
    known = KnownStore(tmp_path / "s", PAGED, num_shards=1)
    known.publish({u: 1 for u in range(10)})
    flip(
        tmp_path / "s",
        "generations/00000001/shard-00000-of-00001.mdb",
        trace=(np.float32(1 + 3 / 1024)).tobytes() * 4,
    )
    known.admin.forget([5])
    assert Store.open(known.path).lookup([3, 4, 5]).status.tolist() == [
        Status.CORRUPT,
        Status.FRESH,
        Status.MISSING,
    ]


def test_an_unreadable_generation_is_named_and_the_others_are_done(tmp_path):
    known = KnownStore(tmp_path / "s")
    known.publish({1: 1, 2: 1})
    known.publish({1: 2, 2: 2})
    (tmp_path / "s/generations/00000001/READY").write_text("x")
    with pytest.raises(Damaged, match="vista prune.*00000001"):
        known.admin.forget([1])
    known.check(known.open().lookup([1, 2]), [1, 2], {2: 2})
    assert known.admin.prune(keep=1).generations == ["00000001"]  # nobody can go back to it
    known.admin.forget([1])
    assert known.admin.verify().ok


def flip(store, name, trace=None, at=None, bit=0):
    """Flip one bit of a file: at a byte, or where a byte string is first found."""
    path = store / name
    data = bytearray(path.read_bytes())
    where = data.index(trace) if trace is not None else at
    data[where] ^= 1 << bit
    path.write_bytes(data)


FILES = {
    "records": "generations/00000001/shard-00000-of-00001.mdb",
    "index": "generations/00000001/shard-00000-of-00001.idx",
    "states": "generations/00000001/state-00000-of-00001.mdb",
    "state index": "generations/00000001/state-00000-of-00001.idx",
    "manifest": "generations/00000001/manifest.json",
    "seal": "generations/00000001/READY",
    "pointer": "CURRENT",
    "format": "FORMAT",
}


@pytest.fixture(scope="module", params=["small", "paged", "text"])
def whole(request, tmp_path_factory):
    schema = {"small": SMALL, "paged": PAGED, "text": TEXT}[request.param]
    known = KnownStore(tmp_path_factory.mktemp("whole") / "s", schema, num_shards=1)
    known.publish({u: 1 for u in range(12)})
    return known


@settings(max_examples=60)
@given(file=st.sampled_from(sorted(FILES)), place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_never_gives_a_wrong_value_and_verify_finds_it(
    whole, tmp_path_factory, file, place, bit
):
    path = tmp_path_factory.mktemp("flip") / "s"
    shutil.copytree(whole.path, path)
    size = (path / FILES[file]).stat().st_size
    flip(path, FILES[file], at=int(place * size), bit=bit)
    users = list(range(14))
    try:
        store = Store.open(path, clock=lambda: 1_000, lease=False)
        found = store.lookup(whole.ids(users))
    except StoreError:
        pass
    else:
        good = [u for u in users if found.status[u] != Status.CORRUPT]
        part = store.lookup(whole.ids(good))
        whole.check(part, good, whole.truth["00000001"])
        try:
            states = store.states(whole.ids(users))
        except StoreError:
            states = []
        for u, state in enumerate(states):
            assert state in (None, f"state {u} 1".encode()) and (u < 12 or state is None)
    try:
        report = Store(path).verify()
    except StoreError:
        return
    if file == "format":
        return
    assert not report.ok
    assert all("vista " in p.remedy for p in report.problems)


def test_verify_names_shard_user_and_remedy(tmp_path):
    known = KnownStore(tmp_path / "s", PAGED, num_shards=4)
    known.publish({u: 1 for u in range(20)})
    shard = int(bucket_of([7], 4)[0])
    name = f"generations/00000001/shard-0000{shard}-of-00004.mdb"
    flip(tmp_path / "s", name, trace=np.float32(1 + 7 / 1024).tobytes() * 4)
    problems = known.admin.verify().problems
    assert {p.shard for p in problems} == {shard} and [p.user for p in problems if p.user is not None] == [7]
    assert all(p.file == name and re.search("vista (refresh|summarize|rollback)", p.remedy) for p in problems)
    assert known.open().lookup([7, 8]).status.tolist() == [Status.CORRUPT, Status.FRESH]
    cold = known.open(missing=np.ones(32, np.float32)).lookup([7])
    assert (cold.tokens == 1).all() and cold.event_count[0] == 0
    with pytest.raises(Damaged, match="user 7|vista verify"):
        known.publish({1: 2}, "delta")
        known.open().compact()


@pytest.mark.parametrize("damage", ["truncated", "missing", "swapped", "older", "foreign"])
def test_damage_to_whole_files_is_refused_or_told(tmp_path, damage):
    known = KnownStore(tmp_path / "s", PAGED, num_shards=2)
    known.publish({u: 1 for u in range(20)})
    known.publish({u: 2 for u in range(20)})
    first, second = (tmp_path / f"s/generations/0000000{k}" for k in (1, 2))
    one, two = (f"shard-0000{k}-of-00002.mdb" for k in (0, 1))
    if damage == "truncated":
        data = (second / one).read_bytes()
        (second / one).write_bytes(data[:-4096])
    elif damage == "missing":
        (second / one).unlink()
    elif damage == "swapped":
        (
            (second / one).rename(second / "x"),
            (second / two).rename(second / one),
            (second / "x").rename(second / two),
        )
    elif damage == "older":
        shutil.copyfile(first / one, second / one)  # same users, same model, same places, older tokens
    else:
        (second / "shard-00002-of-00002.mdb").write_text("who knows")
    assert not known.admin.verify().ok and "vista " in str(known.admin.verify().problems[0])
    users = list(range(20))
    try:
        found = known.open().lookup(users)
    except Damaged as error:
        assert "vista verify" in str(error) and damage in ("truncated", "missing", "swapped")
        return
    in_one = bucket_of(users, 2) == 0
    assert (
        found.status[in_one] == (Status.CORRUPT if damage in ("older", "swapped") else Status.FRESH)
    ).all()
    good = [u for u in users if found.status[u] == Status.FRESH]
    known.check(known.open().lookup(good), good, known.truth["00000002"])


def test_with_the_clock_gone_back_who_is_forgotten_now_still_counts_as_forgotten_last():
    first = Forgotten().with_users([b"a"], 1_000)
    later = first.with_users([b"b"], 10)
    assert later.when([b"a", b"b"]).tolist() == [1_000, 1_001]
    assert (later.since(first.last).when([b"b"]) == ALWAYS).all()
    assert (later.since(first.last).when([b"a"]) == NEVER).all()


@pytest.mark.parametrize(("user", "until"), [(1, 500), (7, 900), (77, 900)])
def test_whoever_was_forgotten_in_that_very_millisecond_stays_out_of_a_generation_that_comes_in(
    tmp_path, user, until
):
    known = KnownStore(tmp_path / "s", num_shards=1)
    staging = known.admin.stage("run")
    with ShardWriter(staging, 0, 1, known.schema, True, fingerprint=known.fingerprint) as writer:
        writer.add(as_users([1]), known.tokens([1], [1]), np.array([2]), np.array([11]), np.array([500]))
        writer.add_states(as_users([1]), [b"state"])
        writer.add_states(as_users([7]), [b"of nobody"])
        receipt = writer.finish().as_dict()
    pq.write_table(pa.table({"user": ["77"], "reason": ["a"]}), staging / "dead-letters.parquet")
    publication = Publication(
        fingerprint="model-a", watermark_ms=0, expected=2, dead_letters=1, published_ms=900
    )
    manifest = known.admin.publish(staging, [receipt], publication)

    def left(time):
        folder = tmp_path / f"at-{time}"
        shutil.copytree(tmp_path / "s/generations" / manifest.generation, folder)
        forgotten = Forgotten(b"s" * 16).with_users([key_bytes(user)], time)
        after, _ = without_forgotten(folder, manifest, forgotten)
        letters = sum(pq.read_table(folder / name).num_rows for name in after.extra_files)
        return after.shards[0].records, after.shards[0].states, letters

    assert left(until - 1) == (1, 2, 1)
    assert left(until) == {1: (0, 1, 1), 7: (1, 1, 1), 77: (1, 2, 0)}[user]
