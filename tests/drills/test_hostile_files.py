"""What files of another party, or of nobody, do to a process: a typed error that names them, and nothing else."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xxhash
from known_stores import KnownStore

from cache_store import Store, bucket_of
from cache_store.errors import Damaged, KeyKind, LimitReached, NothingPublished, StoreError
from cache_store.read import mapping
from cache_store.remote.copy import pull, push
from cache_store.testing import STEP, Truth
from tools.drills import reseal, reseal_home, sanitize


def reseal_with(folder: Path, change) -> None:
    values = json.loads((folder / "manifest.json").read_text())
    change(values)
    reseal._sealed(folder, values)


def known(tmp_path):
    store = KnownStore(tmp_path / "s", num_shards=3)
    store.publish({u: 1 for u in range(12)})
    store.publish({u: 2 for u in range(0, 12, 2)}, "delta")
    return store


def _size(values, size):
    fact = next(iter(values["shards"][1]["files"].values()))
    fact["bytes"] = size


WRONG = {
    "negative size": lambda v: _size(v, -4096),
    "size of another type": lambda v: _size(v, "4096"),
    "size past the file": lambda v: _size(v, 1 << 45),
    "fewer shards": lambda v: v.update(shards=v["shards"][:2]),
    "more shards": lambda v: v.update(shards=[*v["shards"], v["shards"][0]]),
    "shards in another order": lambda v: v.update(shards=v["shards"][::-1]),
    "one shard for all": lambda v: v.update(shards=[v["shards"][0]] * 3),
    "its own parent": lambda v: v.update(kind="delta", parent=v["generation"], depth=1),
    "a parent that comes later": lambda v: v.update(kind="delta", parent="00000007", depth=1),
    "no width": lambda v: v["schema"]["groups"][0].update(width=0),
    "a width without end": lambda v: v["schema"]["groups"][0].update(width=1 << 60),
    "a file elsewhere": lambda v: v["extra_files"].update({"../../FORMAT": {"bytes": 1, "digest": "0" * 32}}),
    "users that are not accounted for": lambda v: v.update(expected=v["expected"] + 1),
    "a model of its own for one shard": lambda v: v["shards"][2].update(fingerprint="model-b"),
    "a number that is none": lambda v: v.update(watermark_ms=True),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_resealed_manifest_is_refused_where_it_is_opened_and_told_by_verify(kind, tmp_path):
    store = known(tmp_path)
    folder = tmp_path / "s/generations/00000001"
    reseal_with(folder, WRONG[kind])
    with pytest.raises(Damaged, match="vista (rollback|verify)"):
        store.open()
    assert any("00000001" in str(p) for p in store.admin.verify().problems)


def test_a_key_that_is_there_twice_is_refused(tmp_path):
    store = known(tmp_path)
    folder = tmp_path / "s/generations/00000002"
    text = (folder / "manifest.json").read_text().rstrip()[:-1] + ', "num_shards": 1}'
    reseal._sealed(folder, {}, text)
    with pytest.raises(Damaged, match="num_shards.*twice"):
        store.open()


def test_generations_of_a_chain_agree_and_agree_with_the_store(tmp_path):
    store = known(tmp_path)
    other = KnownStore(tmp_path / "other", num_shards=2)
    other.publish({1: 1})
    shutil.rmtree(tmp_path / "s/generations/00000001")
    shutil.copytree(tmp_path / "other/generations/00000001", tmp_path / "s/generations/00000001")
    with pytest.raises(Damaged, match="3 shards"):
        store.open()


def test_verify_asks_whether_a_user_is_in_his_bucket(tmp_path):
    store = KnownStore(tmp_path / "s", num_shards=2)
    name = store.publish({u: 1 for u in range(8)})
    folder = tmp_path / "s/generations" / name

    def exchange(values):
        first, second = values["shards"]
        pairs = dict(zip(sorted(first["files"]), sorted(second["files"]), strict=True))
        for a, b in pairs.items():
            (
                (folder / a).rename(folder / "x"),
                (folder / b).rename(folder / a),
                (folder / "x").rename(folder / b),
            )
            first["files"][a], second["files"][b] = second["files"][b], first["files"][a]
        for count in ("records", "tombstones", "states"):
            first[count], second[count] = second[count], first[count]

    reseal_with(folder, exchange)
    assert any("belongs to bucket" in p.what for p in store.admin.verify().problems)


@pytest.mark.parametrize("name", ["FORMAT", "CURRENT", "SEQUENCE", "generations/00000002/READY"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "huge", "bytes"])
def test_a_small_file_is_not_waited_for_nor_read_without_end(name, kind, tmp_path):
    store = known(tmp_path)
    path = tmp_path / "s" / name
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.write_bytes(b"\xff\x00" * 9)
        if kind == "huge":
            os.truncate(path, 20 << 30)  # sparse
    with pytest.raises(StoreError, match=path.name if name != "SEQUENCE" else "SEQUENCE"):
        Store.open(tmp_path / "s")
        Store(tmp_path / "s").compact()
        Store(tmp_path / "s").promote(generation="00000001")
        store.publish({1: 3}, "full", run="x")


@pytest.mark.parametrize("kind", ["folder", "no json", "deep", "huge", "names"])
def test_what_is_no_lease_is_set_aside_and_told(kind, tmp_path):
    store = known(tmp_path)
    path = tmp_path / "s/leases/junk.json"
    if kind == "folder":
        path.mkdir()
    elif kind == "huge":
        path.touch()
        os.truncate(path, 1 << 33)
    else:
        text = {
            "no json": "{",
            "deep": "[" * 99_999,
            "names": json.dumps({"generations": [{}], "host": "h"}),
        }[kind]
        path.write_text(text)
    assert list(store.admin.prune(dry_run=True).leases) == ["junk.json"] and path.exists()
    assert list(store.admin.prune().leases) == ["junk.json"] and not path.exists()
    assert not store.admin.prune().leases


def test_half_a_lease_of_a_killed_reader_goes_once_it_is_old(tmp_path):
    known(tmp_path)
    half = tmp_path / "s/leases/.1-x.json.tmp"
    half.touch()
    for minutes, there in ((5, True), (15, False)):
        now = half.stat().st_mtime_ns // 1_000_000 + minutes * 60_000
        Store(tmp_path / "s", clock=lambda now=now: now).prune()
        assert half.exists() == there


def test_a_lease_of_another_host_does_not_hold_for_ever(tmp_path):
    store = KnownStore(tmp_path / "s")
    names = [store.publish({1: v}) for v in range(4)]
    lease = {"expires_ms": 1 << 60, "generations": names[:1], "host": "elsewhere", "pid": 1, "started": "1"}
    path = tmp_path / "s/leases/1-x.json"
    path.write_text(json.dumps(lease))
    now = path.stat().st_mtime_ns // 1_000_000
    assert names[0] in Store(tmp_path / "s", clock=lambda: now).prune().kept
    report = Store(tmp_path / "s", clock=lambda: now + 25 * 3_600_000).prune()
    assert report.generations == names[:1] and not path.exists()


@pytest.mark.parametrize("users", ["alice", b"alice", {"alice"}, {"alice": 1}, 7, bytearray(b"a")])
def test_one_text_is_not_a_list_of_users(users, tmp_path):
    store = Store.create(tmp_path / "s", user_kind="string", num_shards=2)
    for work in (store.forget, lambda u: bucket_of(u, 2), lambda u: Store(tmp_path / "s").forget(u)):
        with pytest.raises(KeyKind, match="list"):
            work(users)


@pytest.mark.parametrize(
    "users",
    [[1, "a"], ["a", 1], [1, None], [1.5], [2**63], [2**70], [[1], [2, 3]], [1, True], ["a", ["b"]],
     np.ma.array([1, 2], mask=[False, True]), np.ma.array(["a", "b"], mask=[False, True])],
)  # fmt: skip
def test_ids_of_several_kinds_are_refused(users):
    with pytest.raises(KeyKind):
        bucket_of(users, 2)


def test_a_pointer_that_names_a_generation_twice_is_refused(tmp_path):
    known(tmp_path)
    body = "00000002\n00000001\n00000001\n"
    check = xxhash.xxh3_64_hexdigest(f"main\n{body}".encode())
    (tmp_path / "s/CURRENT").write_text(f"{body}check {check}\n")
    with pytest.raises(Damaged, match="twice"):
        Store.open(tmp_path / "s")


def test_where_nothing_can_be_gone_back_to_the_advice_leads_out(tmp_path):
    store = known(tmp_path)
    shutil.rmtree(tmp_path / "s/generations/00000001")
    with pytest.raises(StoreError, match="00000002 lies; .*vista summarize"):
        store.open()
    with pytest.raises(NothingPublished, match="vista summarize"):
        store.admin.rollback()


def test_a_remote_object_larger_than_stated_is_not_downloaded(tmp_path):
    truth = Truth(num_users=8)
    source = truth.create(tmp_path / "s")
    truth.publish(source, "a", STEP)
    url = f"file://{tmp_path / 'remote'}"
    push(source, None, url)
    big = next((tmp_path / "remote").rglob("shard-*.mdb"))
    os.truncate(big, 40 << 30)  # sparse
    target = truth.create(tmp_path / "t")
    with pytest.raises(Damaged, match="expected [0-9]+ bytes"):
        pull(url, target)
    assert not target.generations()
    assert sum(p.stat().st_size for p in (tmp_path / "t").rglob("*") if p.is_file()) < 1 << 24
    (tmp_path / "remote/CURRENT").unlink()
    (tmp_path / "remote/CURRENT").touch()
    os.truncate(tmp_path / "remote/CURRENT", 20 << 30)
    with pytest.raises(Damaged, match="CURRENT: expected at most"):
        pull(url, target)


def test_a_staged_file_of_the_right_size_and_other_bytes_does_not_go_live(tmp_path, monkeypatch):
    from cache_store.remote import copy

    truth = Truth(num_users=8)
    source = truth.create(tmp_path / "s")
    truth.publish(source, "a", STEP)
    push(source, None, f"file://{tmp_path / 'remote'}")
    opens, done = copy._opens, []

    def altered(staging, g):
        opens(staging, g)
        if not done:
            done.append(next(staging.glob("shard-*.mdb")))
            data = bytearray(done[0].read_bytes())
            data[-4_000] ^= 1
            done[0].write_bytes(bytes(data))

    monkeypatch.setattr(copy, "_opens", altered)
    target = truth.create(tmp_path / "t")
    pull(f"file://{tmp_path / 'remote'}", target)
    assert done and target.verify().ok
    with Store.open(tmp_path / "t") as reader:
        truth.check_all(reader, STEP)


def test_more_mappings_than_the_system_allows_are_told_with_the_remedy(tmp_path, monkeypatch):
    store = known(tmp_path)
    monkeypatch.setattr(mapping._libc, "mmap", lambda *_: mapping._FAILED)
    with pytest.raises(LimitReached, match="max_map_count"):
        store.open()


def test_as_of_reads_of_many_times_keep_within_the_mappings_there_are(tmp_path, monkeypatch):
    store = KnownStore(tmp_path / "s")
    names = [store.publish({1: v}, watermark=10 * v + 1) for v in range(6)]
    room, files = [3], mapping.FileRange.__init__

    def limited(self, *arguments):
        if len([g for g in reader._views._generations.values()]) > room[0]:
            raise LimitReached("full")
        files(self, *arguments)

    with store.open() as reader:
        monkeypatch.setattr(mapping.FileRange, "__init__", limited)
        found = [reader.lookup([1], as_of=10 * v + 1).generation for v in range(6)]
    assert found == names


def test_an_offset_at_the_edge_of_its_type_is_a_corrupt_row(tmp_path):
    store = known(tmp_path)
    for word in (1 << 63, (1 << 64) - 1, (1 << 63) + 5, (1 << 62) + 16):
        folder = tmp_path / f"s/generations/{store.admin.lines()['main']}"
        for path in folder.glob("shard-*.idx"):
            words = np.frombuffer(path.read_bytes(), np.uint64).copy()
            n = int(words[2])
            if n:
                words[-n:] = np.uint64(word)
                words[6] = xxhash.xxh3_64_intdigest(words[8:])
                words[7] = xxhash.xxh3_64_intdigest(words[:7])
                values = json.loads((folder / "manifest.json").read_text())
                reseal._replaced(folder, values, path, words.tobytes())
        with store.open() as reader:
            found = reader.lookup(range(0, 12, 2))
            assert (found.status == 3).all() and not found.tokens.any()


def test_edits_of_one_who_can_seal_end_in_typed_errors_or_published_values():
    report = reseal.run(60, seed=5)
    assert report.edits == 60 and report.served and report.refused
    assert not report.faults, "\n".join(report.faults)


def test_records_states_bundles_pools_and_indexes_of_one_who_can_seal_end_in_typed_errors_or_right_types():
    report = reseal_home.run(140, seed=3)
    assert len(report["kinds"]) == 7 and not report["faults"], "\n".join(report["faults"])


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no C compiler")
def test_the_compiled_part_stands_under_the_sanitizers():
    try:
        assert sanitize.run(600, seed=1)["calls"] == 600
    except subprocess.CalledProcessError:
        pytest.skip("this compiler has no sanitizers")


def test_drills_are_listed_and_hand_on_their_options():
    for words, said in (
        (["list"], "reseal"),
        (["reseal", "--help"], "--edits"),
        (["storm", "--help"], "--readers"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "tools.cli", "drill", *words], capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0 and said in done.stdout, done.stderr
