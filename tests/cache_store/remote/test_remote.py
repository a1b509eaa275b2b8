"""Push and pull: what arrives is what was sent, whole, or nothing went live."""

from __future__ import annotations

import multiprocessing
import uuid

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_store import Status, Store, key_bytes
from cache_store.errors import Damaged, FingerprintMismatch, GenerationUnknown, SchemaError, StoreError
from cache_store.format.keys import hash_of
from cache_store.remote.copy import pull, push, sweep
from cache_store.remote.files import RemoteError, RemoteFiles
from cache_store.testing import Truth

TRUTH = Truth(num_users=30)


@pytest.fixture(params=["memory", "file"])
def url(request, tmp_path):
    if request.param == "file":
        yield f"file://{tmp_path}/remote"
        return
    name = f"memory://{uuid.uuid4().hex}"
    yield name
    fsspec.filesystem("memory").rm(name.removeprefix("memory://"), recursive=True)


def origin(tmp_path, versions=(1000, 1001, 1002)):
    """A store with a full generation and deltas over it; its path and the generations."""
    store = TRUTH.create(tmp_path / "origin")
    names = []
    for v in versions:
        base = None if v % 1000 == 0 else v - 1
        names.append(
            TRUTH.publish(
                store, f"run-{v}", v, parent=names[-1] if base else None, base=base, table_snapshot=v
            )
        )
    return store, names


def replica(tmp_path, name="replica"):
    return TRUTH.create(tmp_path / name)


def objects(url):
    fs, root = fsspec.core.url_to_fs(url)
    return {path: fs.cat_file(path) for path in sorted(fs.find(root))}


@pytest.mark.parametrize("left", ["FORMAT", ".FORMAT.84e782450e55.tmp"])
@pytest.mark.parametrize("bytes_left", [0, 7, None])
def test_a_first_push_that_was_killed_while_it_wrote_the_facts_is_made_again(url, tmp_path, left, bytes_left):
    store, _ = origin(tmp_path, (1000,))
    fs, root = fsspec.core.url_to_fs(url)
    fs.makedirs(root, exist_ok=True)
    fs.pipe_file(f"{root}/{left}", store.layout.format.read_bytes()[:bytes_left])
    push(store, None, url)
    target = replica(tmp_path)
    pull(url, target)
    TRUTH.check_all(Store.open(target.layout.root), 1000)


@pytest.mark.parametrize(
    "name, content", [("FORMAT", b""), ("FORMAT", b"theirs"), ("notes.tmp", b""), (".tmp", b"x")]
)
def test_a_url_with_files_of_somebody_else_is_refused_and_left_as_it_is(url, tmp_path, name, content):
    store, _ = origin(tmp_path, (1000,))
    fs, root = fsspec.core.url_to_fs(url)
    fs.makedirs(root, exist_ok=True)
    fs.pipe_file(f"{root}/{name}", content)
    fs.pipe_file(f"{root}/theirs", b"kept")
    before = objects(url)
    with pytest.raises(SchemaError, match="URL of its own"):
        push(store, None, url)
    assert objects(url) == before


def test_a_chain_pushed_and_pulled_reads_the_same_and_has_the_same_content_digest(url, tmp_path):
    store, names = origin(tmp_path)
    sent = push(store, None, url)
    target = replica(tmp_path)
    got = pull(url, target)
    with Store.open(target.layout.root) as reader:
        TRUTH.check_all(reader, 1002)
        digests = [m.digest for m in Store.open(store.layout.root).generations()]
        assert [m.digest for m in reader.generations()] == digests
        assert reader.manifest.table_snapshot == 1002 and reader.manifest.watermark_ms == 1002
        assert reader.verify().ok
    assert (sent.generation, sent.copied, sent.found) == (names[-1], 24, 0)
    assert (got.copied, got.found, got.folder, got.chain) == (24, 0, sent.folder, sent.chain)
    assert got.bytes == sent.bytes > 0
    assert not list(target.layout.staging.iterdir())


def test_a_second_push_or_pull_copies_only_what_is_new(url, tmp_path):
    store, names = origin(tmp_path, (1000, 1001))
    push(store, None, url)
    before = objects(url)
    assert push(store, None, url).copied == 0
    assert objects(url) == before
    target = replica(tmp_path)
    pull(url, target)
    live = target.refresh()
    assert (again := pull(url, target)).copied == 0 and again.generation == live
    TRUTH.publish(store, "more", 1002, parent=names[-1], base=1001)
    assert push(store, None, url).copied == 8
    assert pull(url, target).copied == 8
    TRUTH.check_all(Store.open(target.layout.root), 1002)
    # At home everything is known already, whoever pushed it.
    assert pull(url, store).copied == 0
    assert len(store.generations()) == 3


def test_a_pulled_line_follows_the_remote_line_forwards_and_back(url, tmp_path):
    store, names = origin(tmp_path, (1000, 2000))
    target = replica(tmp_path)
    push(store, None, url)
    pull(url, target)
    Store.open(store.layout.root).rollback()
    push(store, None, url)
    pull(url, target)
    TRUTH.check_all(Store.open(target.layout.root), 1000)
    pull(url, target, "shadow", generation=names[1])
    TRUTH.check_all(Store.open(target.layout.root, line="shadow"), 2000)
    TRUTH.check_all(Store.open(target.layout.root), 1000)
    push(store, names[1], url, line="next")
    assert pull(url, target, remote_line="next").copied == 0
    TRUTH.check_all(Store.open(target.layout.root), 2000)


def test_an_unfinished_push_is_never_taken_for_a_generation(url, tmp_path):
    store, _ = origin(tmp_path)
    push(store, None, url)
    fs, root = fsspec.core.url_to_fs(url)
    target = replica(tmp_path)
    for path in [p for p in fs.find(root) if p.endswith("READY")]:
        kept = fs.cat_file(path)
        fs.rm(path)
        with pytest.raises(RemoteError, match="vista push"):
            pull(url, target)
        assert target.generations() == []
        fs.pipe_file(path, kept)
    pull(url, target)


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32), kind=st.sampled_from(["memory", "file"]))
def test_no_damage_on_the_remote_side_goes_live(tmp_path_factory, seed, kind):
    tmp_path = tmp_path_factory.mktemp("damage")
    url = f"memory://{tmp_path.name}" if kind == "memory" else f"file://{tmp_path}/remote"
    store, _ = origin(tmp_path, (1000, 1001))
    push(store, None, url)
    fs, root = fsspec.core.url_to_fs(url)
    rng = np.random.default_rng(seed)
    paths = sorted(fs.find(root))
    path = paths[rng.integers(len(paths))]
    kept = fs.cat_file(path)
    what = rng.integers(5)
    if what == 0:
        at = int(rng.integers(len(kept)))
        changed = kept[:at] + bytes([kept[at] ^ (1 << int(rng.integers(8)))]) + kept[at + 1 :]
    elif what == 1:
        changed = kept[: rng.integers(len(kept))]
    elif what == 2:
        changed = kept + b"\0" * int(rng.integers(1, 5000))
    elif what == 3:
        other = paths[rng.integers(len(paths))]
        changed = fs.cat_file(other)
    else:
        changed = None
    if changed is None:
        fs.rm(path)
    else:
        fs.pipe_file(path, changed)
    target = replica(tmp_path)
    if changed == kept:
        pull(url, target)
    else:
        with pytest.raises(StoreError, match="vista|URL of its own"):
            pull(url, target)
        assert not target.layout.pointer("main").exists()
    fs.pipe_file(path, kept)
    pull(url, target)
    TRUTH.check_all(Store.open(target.layout.root), 1001)
    # A push repairs what it finds damaged below a missing READY.
    if (
        changed is not None
        and "/generations/" in path
        and not path.endswith(("READY", "PARENT", "manifest.json"))
    ):
        fs.pipe_file(path, changed)
        fs.rm(f"{path.rpartition('/')[0]}/READY")
        assert push(store, None, url).copied == (0 if changed == kept else 1)
        assert fs.cat_file(path) == kept


def test_a_pull_goes_on_with_the_bytes_it_has_and_distrusts_them(url, tmp_path):
    store, _ = origin(tmp_path, (1000,))
    folder = push(store, None, url).folder
    target = replica(tmp_path)
    staging = target.stage(f"pull-{folder}")
    source = store.layout.generation("00000001")
    whole, half, wrong = sorted(p.name for p in source.iterdir() if p.suffix == ".mdb")[:3]
    (staging / whole).write_bytes((source / whole).read_bytes())
    (staging / f".{half}.part").write_bytes((source / half).read_bytes()[:5000])
    (staging / f".{wrong}.part").write_bytes(b"x" * 5000)
    (staging / "foreign.mdb").write_bytes(b"x")
    report = pull(url, target, jobs=1)
    assert (report.copied, report.found) == (7, 1)
    TRUTH.check_all(Store.open(target.layout.root), 1000)
    assert sorted(p.name for p in target.layout.generation("00000001").iterdir()) == sorted(
        p.name for p in source.iterdir()
    )


def test_a_local_file_that_is_damaged_is_not_pushed(url, tmp_path):
    store, names = origin(tmp_path, (1000,))
    path = next(store.layout.generation(names[0]).glob("shard*.mdb"))
    raw = bytearray(path.read_bytes())
    raw[9000] ^= 1
    path.write_bytes(raw)
    with pytest.raises(Damaged, match="vista verify"):
        push(store, None, url)
    with pytest.raises(RemoteError, match="never pushed"):
        pull(url, replica(tmp_path))


def _pull(url, path, out):
    out.send(pull(url, Store(path)).generation)


def test_pulls_of_several_processes_into_one_store_make_one_generation_each(tmp_path):
    store, _ = origin(tmp_path)
    url = f"file://{tmp_path}/remote"
    push(store, None, url)
    target = replica(tmp_path)
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe(duplex=False) for _ in range(4)]
    children = [context.Process(target=_pull, args=(url, target.layout.root, out)) for _, out in pipes]
    for child, (_, out) in zip(children, pipes, strict=True):
        child.start()
        out.close()  # so that a child that dies ends its pipe
    for child in children:
        child.join(120)
    assert [child.exitcode for child in children] == [0] * 4
    assert len({found.recv() for found, _ in pipes}) == 1
    assert len(target.generations()) == 3
    TRUTH.check_all(Store.open(target.layout.root), 1002)
    assert target.verify().ok


def test_stores_with_other_facts_and_other_models_are_refused(url, tmp_path):
    store, _ = origin(tmp_path, (1000,))
    with pytest.raises(RemoteError, match="vista push"):
        pull(url, replica(tmp_path, "a"))
    push(store, None, url)
    with pytest.raises(SchemaError, match="FORMAT"):
        pull(url, Store.create(tmp_path / "b", num_shards=3))
    with pytest.raises(SchemaError, match="FORMAT"):
        push(Store.create(tmp_path / "c", num_shards=2, user_kind="string"), None, url)
    with pytest.raises(FingerprintMismatch):
        pull(url, replica(tmp_path, "d"), fingerprint="another")
    with pytest.raises(GenerationUnknown):
        pull(url, replica(tmp_path, "e"), generation="00000009")
    with pytest.raises(GenerationUnknown):
        push(store, "00000009", url)
    with pytest.raises(RemoteError):
        push(store, None, "nosuchprotocol://x")


def test_what_was_forgotten_leaves_the_remote_side_with_the_next_push_and_sweep(url, tmp_path):
    store, names = origin(tmp_path)
    push(store, None, url)
    written = TRUTH.written(1002)
    user = int(np.flatnonzero((written == 1000) & (TRUTH.written(1001) == 1000))[0])
    secret = TRUTH.tokens(np.array([user]), np.array([1000]))["seeds"].astype(np.float16).tobytes()
    assert any(secret in data for data in objects(url).values())
    store.forget(TRUTH.users[[user]])
    push(store, None, url)
    doomed = sweep(url)
    assert len(doomed) == 3  # a generation's folder names all that lies below it
    state = TRUTH.state(user, 1000)
    assert not any(secret in data or state in data for data in objects(url).values())
    target = replica(tmp_path)
    pull(url, target)
    gone = np.zeros(30, bool)
    gone[user] = True
    TRUTH.check_all(Store.open(target.layout.root), 1002, gone)
    assert sweep(url) == []


def test_a_forget_while_a_pull_is_copying_is_kept_by_what_the_pull_enters(url, tmp_path, monkeypatch):
    store, _ = origin(tmp_path, (1000,))
    push(store, None, url)
    target, gone, download = replica(tmp_path), np.arange(30) < 4, RemoteFiles.download

    def then_forget(*args):
        download(*args)
        monkeypatch.setattr(RemoteFiles, "download", download)
        target.forget(TRUTH.users[gone])

    monkeypatch.setattr(RemoteFiles, "download", then_forget)
    pull(url, target, jobs=1)
    with Store.open(target.layout.root) as reader:
        TRUTH.check_all(reader, 1000, gone)
        assert (reader.lookup(TRUTH.users[gone]).status == Status.MISSING).all()


@pytest.mark.parametrize("strings", [False, True], ids=["int64", "string"])
def test_law_11_a_pull_from_a_copy_older_than_a_forget_brings_nobody_back(tmp_path, strings):
    truth, url = Truth(num_users=30, strings=strings), f"file://{tmp_path}/remote"
    store = truth.create(tmp_path / "origin")
    letters = pa.table({"user": [str(u) for u in truth.users.tolist()] + ["-"]})
    pq.write_table(letters, store.stage("a") / "dead-letters.parquet")
    full = truth.publish(store, "a", 1000)
    truth.publish(store, "b", 1001, parent=full, base=1000)
    push(store, None, url)
    gone = np.arange(30) >= 10  # of these no string id begins another
    assert (gone & truth.removed(1001)).any() and (gone & truth.changed(1001)).any()
    target = truth.create(tmp_path / "replica")
    for place in (target, store):
        place.forget(truth.users[gone])
        report = pull(url, place)
        assert report.left_out > gone.sum()
        with Store.open(place.layout.root) as reader:
            truth.check_all(reader, 1001, gone)
            for as_of in (None, 1000):
                assert (reader.lookup(truth.users[gone], as_of=as_of).status == Status.MISSING).all()
        assert place.verify().ok and pull(url, place).copied == 0
        content = [p.read_bytes() for p in place.layout.root.rglob("*") if p.is_file()]
        for i in np.flatnonzero(gone).tolist():
            user = truth.users[i]
            traces = [key_bytes(user), int(hash_of(truth.users[[i]])[0]).to_bytes(8, "little")]
            traces += [truth.state(i, v) for v in (1000, 1001)]
            assert not any(trace in data for trace in traces for data in content), user
        kept = [p for p in place.layout.generations.rglob("dead-letters.parquet")]
        names = {name for p in kept for name in pq.read_table(p)["user"].to_pylist()}
        assert names == {str(u) for u in truth.users[~gone]} | {"-"}


def test_a_user_summarised_again_after_being_forgotten_is_pulled(url, tmp_path):
    store, _ = origin(tmp_path, (1000, 1001))
    push(store, None, url)
    back = np.flatnonzero(TRUTH.changed(1001) & (TRUTH.written(1000) == 1000))
    target = TRUTH.create(tmp_path / "replica")
    Store(target.layout.root, clock=lambda: 1000).forget(TRUTH.users[back])
    pull(url, target)
    with Store.open(target.layout.root) as reader:
        TRUTH.check_all(reader, 1001)
        assert (reader.lookup(TRUTH.users[back], as_of=1000).status == Status.MISSING).all()


def test_a_damaged_note_of_the_forgotten_stops_pull_and_forget_and_is_named_by_verify(url, tmp_path):
    store, _ = origin(tmp_path, (1000,))
    push(store, None, url)
    target = replica(tmp_path)
    target.forget(TRUTH.users[:2])
    path = target.layout.forgotten
    raw = path.read_bytes()
    for damaged in (raw[:-3], raw[:40], b"", raw.replace(b" 1 ", b" 2 "), b"\xff" + raw):
        path.write_bytes(damaged)
        for work in (lambda: pull(url, target), lambda: target.forget(TRUTH.users[2:3])):
            with pytest.raises(Damaged, match="FORGOTTEN.*vista forget"):
                work()
        assert [p.file for p in target.verify().problems] == ["FORGOTTEN"]
    path.write_bytes(raw)
    pull(url, target)
    assert (Store.open(target.layout.root).lookup(TRUTH.users[:2]).status == Status.MISSING).all()
