"""What the drills have found, one small test each."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from cache_store import Status, Store, forget
from cache_store import manifest as manifests
from cache_store.errors import Damaged
from cache_store.keys import from_keys
from tools.faults.truth import Truth

TRUTH = Truth(num_users=20)


def published(path):
    store = TRUTH.create(path)
    TRUTH.publish(store, "run", 1000)
    return store, np.flatnonzero(TRUTH.written(1000) >= 0)


def test_a_user_named_twice_is_forgotten_once(tmp_path):
    store, there = published(tmp_path / "s")
    store.forget(TRUTH.users[there[[0, 0, 1]]])
    assert store.verify().ok
    assert store.manifest.forgotten == 2


def test_a_reader_that_first_reads_states_after_a_forget_finds_them(tmp_path):
    store, there = published(tmp_path / "s")
    with Store.open(tmp_path / "s") as reader, reader.pin() as pinned:
        store.forget(TRUTH.users[there[:1]])
        gone = np.zeros(20, bool)
        gone[there[0]] = True
        for view in (pinned, reader):
            TRUTH.check_states(view.states(TRUTH.users), np.arange(20), 1000, gone)
            assert view.states(TRUTH.users[there[:1]]) == [None]


def test_a_manifest_read_while_forget_seals_it_anew_is_whole(tmp_path, monkeypatch):
    store, there = published(tmp_path / "s")
    read_seal = manifests.read_seal

    def then_forget(folder):
        ready = read_seal(folder)
        monkeypatch.setattr(manifests, "read_seal", read_seal)
        store.forget(TRUTH.users[there[:1]])
        return ready

    monkeypatch.setattr(manifests, "read_seal", then_forget)
    assert manifests.read(store.layout.generation("00000001")).forgotten == 1


@pytest.mark.parametrize("again", [Store.forget, lambda store, _: store.prune()])
def test_a_reader_that_opened_while_a_forget_was_cut_short_moves_on_when_it_is_finished(
    tmp_path, monkeypatch, again
):
    store, there = published(tmp_path / "s")
    gone = np.zeros(20, bool)
    gone[there[0]] = True
    readers, write = [], forget.write_file

    def cut(path, raw):
        if path.name == "READY" and readers:
            raise KeyboardInterrupt  # the manifest is the new one, READY states both
        write(path, raw)
        if path.name == "READY":
            readers.append(Store.open(tmp_path / "s"))  # on the old manifest

    with monkeypatch.context() as patch:
        patch.setattr(forget, "write_file", cut)
        with pytest.raises(KeyboardInterrupt):
            store.forget(TRUTH.users[there[:1]])
    again(store, TRUTH.users[there[:1]])
    with readers[0] as reader:
        TRUTH.check_states(reader.states(TRUTH.users), np.arange(20), 1000, gone)
        reader.refresh()
        assert reader.lookup(TRUTH.users[there[:1]]).status[0] == Status.MISSING


def test_a_damaged_record_spoils_no_batch_even_where_warnings_are_errors(tmp_path):
    store, there = published(tmp_path / "s")
    file, row = store.places(TRUTH.users[there[:1]])[0]
    raw = bytearray(file.read_bytes())
    start = row + 16 + 64
    raw[start : row + 16 + TRUTH.schema.record_bytes] = b"\x7f" * (TRUTH.schema.record_bytes - 64)
    file.write_bytes(raw)
    with warnings.catch_warnings(), Store.open(tmp_path / "s") as reader:
        warnings.simplefilter("error")
        status = reader.lookup(TRUTH.users[there]).status
    assert status[0] == Status.CORRUPT and (status[1:] == Status.FRESH).all()


@pytest.mark.parametrize(
    ("key", "kind"), [(b"", "string"), (b"\xff", "string"), (b"k" * 512, "string"), (b"k", "int64")]
)
def test_a_key_that_no_user_has_is_damage_and_not_a_wrong_argument(key, kind):
    with pytest.raises(Damaged, match="vista verify"):
        from_keys([key], kind)
