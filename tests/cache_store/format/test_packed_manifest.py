"""Manifests of many shards hold one table instead of an object a shard, and say the same."""

from __future__ import annotations

import base64
import json
import struct

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from known_stores import KnownStore

from cache_store.change import publish
from cache_store.errors import Damaged, FormatUnknown
from cache_store.format import manifest as manifests
from cache_store.format.manifest import Manifest
from cache_store.format.packed import ROW, PackedShards
from cache_store.format.receipt import FileFact, ShardReceipt
from cache_store.remote.copy import pull, push, store_like

FILES = [(kind, end) for kind in ("shard", "state") for end in (".mdb", ".idx")]


def lived(path, name: str) -> KnownStore:
    """A store through publication, delta, fold and forgetting."""
    known = KnownStore(path / name, num_shards=3)
    known.publish({u: 1 for u in range(30)})
    known.publish({u: 2 for u in range(0, 30, 4)} | {7: None}, "delta")
    known.publish({u: 3 for u in range(28, 33)}, "delta")
    known.open().forget([5, 28])
    known.open().compact(2)
    return known


def test_a_packed_manifest_says_what_one_of_objects_says(tmp_path, monkeypatch):
    plain = lived(tmp_path, "plain")
    monkeypatch.setattr(publish, "PACKED_FROM", 3)
    packed = lived(tmp_path, "packed")
    for one, other in zip(plain.open().generations(), packed.open().generations(), strict=True):
        assert isinstance(other.shards, PackedShards) and not isinstance(one.shards, PackedShards)
        assert other.digest == one.digest and other.bytes == one.bytes
        assert [(s.records, s.tombstones, s.states, s.revision) for s in other.shards] == [
            (s.records, s.tombstones, s.states, s.revision) for s in one.shards
        ]
        assert sorted(other.files) == sorted(one.files) and len(other.text()) < len(one.text()) / 2
        assert Manifest.parse(other.text(), tmp_path) == other
    url = f"file://{tmp_path}/remote"
    with packed.open() as store:
        push(store, None, url)
        assert store.verify().problems == []
        copy = store_like(url, tmp_path / "copy", clock=lambda: 1_000)
        pull(url, copy)
        assert copy.manifest.digest == store.manifest.digest and copy.verify().problems == []
        assert (copy.lookup(np.arange(33)).status == store.lookup(np.arange(33)).status).all()


def test_a_manifest_of_objects_stays_one_when_somebody_is_forgotten(tmp_path, monkeypatch):
    known = KnownStore(tmp_path / "s")
    name = known.publish({u: 1 for u in range(9)})
    monkeypatch.setattr(publish, "PACKED_FROM", 2)
    known.open().forget([3])
    assert "shards" in json.loads((known.path / "generations" / name / "manifest.json").read_text())
    assert known.open().verify().problems == []


@pytest.fixture(scope="module")
def sealed(tmp_path_factory):
    """Folder, manifest as an object and READY of a packed generation."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publish, "PACKED_FROM", 2)
        known = KnownStore(tmp_path_factory.mktemp("sealed") / "s")
        folder = known.path / "generations" / known.publish({u: 1 for u in range(9)})
    return known, folder, json.loads((folder / "manifest.json").read_text())


def edited(sealed, **facts):
    known, folder, before = sealed
    text = json.dumps({**before, **facts}, indent=1) + "\n"
    (folder / "manifest.json").write_text(text)
    (folder / "READY").write_bytes(manifests.seal(text))
    return folder


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2 * ROW.itemsize - 1), st.integers(0, 7))
def test_no_edited_bit_of_the_table_is_read_as_something_else(sealed, at, bit):
    known, folder, before = sealed
    raw = bytearray(base64.b64decode(before["packed_shards"]))
    raw[at] ^= 1 << bit
    edited(sealed, packed_shards=base64.b64encode(raw).decode())
    try:
        with known.open() as store:
            known.check(store.lookup(range(9)), range(9), {u: 1 for u in range(9)})
    except Damaged:
        pass


@pytest.mark.parametrize("wrong", ["", "*", "QUJD", 7, None, ["a"]])
def test_a_table_that_is_none_is_told_by_field(sealed, wrong):
    with pytest.raises(Damaged, match=r"manifest\.json: field packed_shards"):
        manifests.read(edited(sealed, packed_shards=wrong))


def test_the_table_is_as_the_format_says(sealed):
    """Read in the words of docs/format.md."""
    folder, before = edited(sealed), sealed[2]
    rows = base64.b64decode(before["packed_shards"])
    for k, row in enumerate(struct.iter_unpack("<3Q2I16s16s4Q16s16s16s16s", rows)):
        records, tombstones, states, revision, with_states, content, state_content, *files = row
        (receipt,) = (s for s in manifests.read(folder).shards if s.shard == k)
        assert (records, tombstones, states, revision, with_states) == (
            receipt.records, receipt.tombstones, receipt.states, 0, 1
        )  # fmt: skip
        assert (content.hex(), state_content.hex()) == (receipt.content, receipt.state_content)
        for n, name in enumerate([f"{kind}-0000{k}-of-00002{end}" for kind, end in FILES]):
            data = (folder / name).read_bytes()
            assert (files[n], files[4 + n].hex()) == (len(data), xxhash.xxh3_128_hexdigest(data))


def test_a_reader_that_does_not_know_the_form_refuses_it(sealed, monkeypatch):
    monkeypatch.setattr(manifests, "FEATURES", frozenset())
    with pytest.raises(FormatUnknown, match="packed_shards"):
        manifests.read(edited(sealed))


def test_fifty_thousand_shards_have_216_characters_each():
    shards = 50_000
    receipts = [
        ShardReceipt(
            k, shards, "model", {}, 65_536, 0, 65_536, "a" * 32, "b" * 32,
            {f"{kind}-{k:05d}-of-{shards:05d}{end}": FileFact(1 << 30, f"{k:032x}") for kind, end in FILES},
        )
        for k in range(shards)
    ]  # fmt: skip
    packed = PackedShards.of(receipts)
    text = packed.text()
    assert len(text) <= 216 * shards
    again = PackedShards.parse(text, shards, "model", {})
    assert again[7] == receipts[7] and again[-1] == receipts[-1] and again.total("records") == 65_536 * shards
