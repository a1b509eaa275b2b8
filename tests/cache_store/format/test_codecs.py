"""Law 1, the store's part: what is cached is what was computed, to each codec's error. And keys, pages, indexes."""

from __future__ import annotations

import lmdb
import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cache_store import Group, RecordSchema, bucket_of, key_bytes
from cache_store.errors import Damaged, KeyKind, SchemaError, StoreError
from cache_store.format import index, pages
from cache_store.format.keys import as_users, from_keys, hash_of, keys_of, second_hash_of
from cache_store.format.quantize import CODECS
from cache_store.format.record import HEADER, header_check
from cache_store.read.mapping import FileRange


def round_trip(codec, tokens):
    schema = RecordSchema((Group("g", tokens.shape[1], tokens.shape[2], codec),))
    n = len(tokens)
    zeros = np.zeros(n, np.int64)
    schema.check_storable({"g": tokens}, np.arange(n))
    records = schema.encode(
        {"g": tokens}, zeros.astype(np.uint64), zeros.astype(np.uint64), 0, zeros, zeros, zeros
    )
    out = np.full(tokens.shape, np.nan, np.float32)
    schema.decode(records, out)
    return out


SHAPES = st.tuples(st.integers(0, 3), st.integers(1, 5), st.integers(1, 67))


@settings(max_examples=60)
@given(data=st.data(), shape=SHAPES, codec=st.sampled_from([c for c in CODECS if c != "log8"]))
def test_law_1_decoded_tokens_are_within_the_stated_error(kernel, data, shape, codec):
    bound = {"float16": 65504, "int4": 65504}.get(codec, 2.0**100)
    tokens = data.draw(hnp.arrays(np.float32, shape, elements=st.floats(-bound, bound, width=32)))
    out = round_trip(codec, tokens).astype(np.float64)
    error = np.abs(out - tokens)
    size = np.abs(tokens.astype(np.float64))
    if codec == "float32":
        assert (out == tokens).all()
    elif codec == "float16":
        assert (error <= np.maximum(size * 2.0**-11, 2.0**-25)).all()
        assert (out == tokens.astype(np.float16)).all()
    elif codec == "bfloat16":
        assert (error <= size * 2.0**-8 + 1e-40).all()
    elif codec == "int8":
        step = size.max(axis=2, initial=0, keepdims=True) / 127
        assert (error <= step * 0.5001 + 1e-40).all()
    else:
        size = shape[1] * shape[2]
        flat = tokens.reshape(len(tokens), size).astype(np.float64)
        pad = -size % 32
        groups = np.pad(flat, ((0, 0), (0, pad)), mode="edge").reshape(len(flat), (size + pad) // 32, 32)
        low, high = groups.min(axis=2), groups.max(axis=2)
        # Half a step, and what rounding scale and offset to float16 adds.
        slack = (high - low) / 30 + np.maximum(np.abs(low), high - low) * 2.0**-10 + 2.0**-20
        allowed = np.repeat(slack[:, :, None], 32, axis=2).reshape(len(flat), size + pad)[:, :size]
        assert (error.reshape(len(flat), size) <= allowed).all()


@given(tokens=hnp.arrays(np.float32, SHAPES, elements=st.floats(0, 9e5, width=32)))
def test_law_1_log_codes_are_exact_at_zero_and_powers_of_two_and_near_elsewhere(tokens):
    out = round_trip("log8", tokens)
    seen = tokens >= 2.0**-11.9
    assert (np.abs(out[seen] / tokens[seen] - 1) < 0.047).all()
    assert (out[~seen] <= 2.0**-11.8).all() and (out[tokens == 0] == 0).all()
    assert (round_trip("log8", out) == out).all()
    powers = 2.0 ** np.arange(-11, 20, dtype=np.float32).reshape(1, 1, -1)
    assert (round_trip("log8", powers) == powers).all()
    huge = np.full((1, 1, 2), 1e9, np.float32)
    assert (round_trip("log8", huge) == np.float32(2.0 ** (159 / 8))).all()


@pytest.mark.parametrize("codec", CODECS)
def test_every_half_and_every_code_decodes(codec, kernel):
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    values = every[np.isfinite(every)].astype(np.float32)
    values = (np.abs(values) if codec == "log8" else values)[:63488].reshape(62, 16, 64)
    out = round_trip(codec, values)
    assert np.isfinite(out).all()
    if codec in ("float32", "float16"):
        assert (out.view(np.uint32) == values.view(np.uint32)).all()  # signed zeros and denormals, too


def test_a_schema_must_make_sense():
    good = Group("a", 1, 4, "float16")
    for groups, kind in (
        ((), "int64"),
        ((good, good), "int64"),
        ((good,), "uuid"),
        ((good, Group("b", 1, 8, "int8")), "int64"),
    ):
        with pytest.raises(SchemaError, match="schema"):
            RecordSchema(groups, kind)
    for wrong in (("a b", 1, 4, "int8"), ("a", 0, 4, "int8"), ("a", 1, 4, "int3")):
        with pytest.raises(SchemaError, match="group"):
            Group(*wrong)
    schema = RecordSchema((good, Group("b", 3, 4, "int4")))
    assert RecordSchema.from_dict(schema.as_dict()) == schema
    with pytest.raises(SchemaError, match="layout"):
        RecordSchema.from_dict({**schema.as_dict(), "record_bytes": 1})


def test_a_record_of_whole_pages_wastes_nothing():
    exact = RecordSchema((Group("seeds", 255, 64, "float16"),))
    assert exact.pages == 8 and exact.waste < 0.002
    spilled = RecordSchema((Group("seeds", 256, 64, "float16"),))
    assert spilled.pages == 9 and spilled.waste > 0.1


@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=30))
def test_hashes_are_xxhash_of_the_key_bytes_and_keys_sort_as_numbers(kernel, ids):
    users = as_users(ids, "int64")
    keys = keys_of(users)
    assert keys == [key_bytes(u) for u in ids]
    assert hash_of(np.repeat(users, 2)[::2]).tolist() == [xxhash.xxh64_intdigest(k) for k in keys]
    assert hash_of(users).tolist() == [xxhash.xxh64_intdigest(k) for k in keys]
    assert sorted(ids) == [int(u) for u in from_keys(sorted(keys), "int64")]
    assert bucket_of(ids, 7).tolist() == [xxhash.xxh64_intdigest(k) % 7 for k in keys]


@given(st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=40), max_size=20))
def test_string_keys_sort_as_their_code_points(ids):
    users = as_users(ids, "string")
    keys = keys_of(users)
    assert sorted(ids) == list(from_keys(sorted(keys), "string"))
    assert hash_of(users).tolist() == [xxhash.xxh64_intdigest(k) for k in keys]


def test_the_known_answers_of_keys():
    assert (
        key_bytes(0) == b"\x80" + bytes(7)
        and key_bytes(-1) == b"\x7f" + b"\xff" * 7
        and key_bytes("ä") == b"\xc3\xa4"
    )
    assert bucket_of([0, 1, -1, 2**63 - 1], 16).tolist() == [
        xxhash.xxh64_intdigest(k) % 16
        for k in (b"\x80" + bytes(7), b"\x80" + bytes(6) + b"\1", b"\x7f" + b"\xff" * 7, b"\xff" * 8)
    ]
    for wrong in (1.5, None, b"x", True, 2**63, "", "x" * 512, "\ud800"):
        with pytest.raises(KeyKind, match="user id"):
            key_bytes(wrong)


@settings(max_examples=15)
@given(st.integers(0, 3000), st.sampled_from([8, 200, 1900, 2100, 9000]), st.booleans())
def test_walking_the_pages_agrees_with_lmdb(tmp_path_factory, n, size, text):
    path = tmp_path_factory.mktemp("lmdb") / "a.mdb"
    n = min(n, 4_000_000 // size)
    rng = np.random.default_rng(n)
    keys = sorted(
        {bytes(rng.integers(0, 256, rng.integers(1, 60) if text else 8, np.uint8)) for _ in range(n)}
    )
    values = [rng.bytes(size + (i % 3 if text else 0)) for i in range(len(keys))]
    env = lmdb.open(str(path), subdir=False, lock=False, map_size=1 << 30, sync=False)
    for start in range(0, max(len(keys), 1), 500):
        with env.begin(write=True) as txn:
            for k, v in zip(keys[start : start + 500], values[start : start + 500], strict=True):
                assert txn.put(k, v, append=True)
    env.close()
    data = FileRange([path], [path.stat().st_size]).data[: path.stat().st_size]
    found = pages.walk(data, "a")
    assert found.keys == keys
    for value, at, length in zip(values, found.offset.tolist(), found.length.tolist(), strict=True):
        assert data[at : at + length].tobytes() == value


def test_walking_damaged_pages_is_an_error_or_right_never_a_crash(tmp_path):
    path = tmp_path / "a.mdb"
    env = lmdb.open(str(path), subdir=False, lock=False, map_size=1 << 30, sync=False)
    with env.begin(write=True) as txn:
        for i in range(500):
            txn.put(i.to_bytes(8, "big"), bytes(100) if i % 2 else bytes(5000), append=True)
    env.close()
    good = np.fromfile(path, np.uint8)
    meta_and_tree = np.flatnonzero(good.reshape(-1, 4096)[:, 10] & 4 == 0)
    rng = np.random.default_rng(0)
    for _ in range(300):
        data = good.copy()
        at = int(rng.choice(meta_and_tree)) * 4096 + int(rng.integers(0, 4096))
        data[at] ^= 1 << int(rng.integers(0, 8))
        try:
            found = pages.walk(data, "a")
        except Damaged:
            continue
        assert ((found.offset >= 0) & (found.offset + found.length <= len(data))).all()


@settings(max_examples=20)
@given(st.integers(0, 2000), st.integers(1, 4), st.booleans())
def test_an_index_finds_what_it_holds_and_nothing_else(kernel, n, shards, text):
    rng = np.random.default_rng(n)
    users = as_users(
        [f"u{i}" for i in range(n)] if text else rng.permutation(10 * n + 1)[:n].tolist(),
        "string" if text else "int64",
    )
    hashes, second = hash_of(users), second_hash_of(users) if text else None
    bucket = bucket_of(users, shards) if n else np.zeros(0, np.int32)
    words, starts, shapes = [], [], []
    for k in range(shards):
        mine = np.flatnonzero(bucket == k)
        part = index.build(
            hashes[mine],
            None if second is None else second[mine],
            hashes[mine] ^ np.uint64(1),
            mine + 16,
            mine + 5,
            99,
        )
        starts.append(sum(map(len, words)))
        shapes.append(index.shape(part, "i"))
        words.append(part)
    table = index.IndexSet(np.concatenate(words), starts, shapes)
    strangers = as_users(
        [f"v{i}" for i in range(50)] if text else list(range(-50, 0)), "string" if text else "int64"
    )
    asked = np.concatenate([users, strangers])
    h, s = hash_of(asked), second_hash_of(asked) if text else None
    shard = (h % np.uint64(shards)).astype(np.int64)
    entry, check, offset = table.find(shard, h, s)
    assert (entry[n:] == -1).all() and (entry[:n] >= 0).all()
    assert (offset[:n] == np.arange(n) + 16).all()
    assert (check[:n] == h[:n] ^ np.uint64(1)).all()
    assert (table.length(shard[:n], entry[:n]) == np.arange(n) + 5).all()


def test_an_index_with_a_crowded_prefix_is_searched_to_its_end(kernel):
    hashes = (np.uint64(7) << np.uint64(50)) + np.arange(100, dtype=np.uint64)
    ones = np.ones(100, np.int64)
    words = index.build(hashes, None, hashes, np.arange(100) + 1, None, 1)
    table = index.IndexSet(words, [0], [index.shape(words, "i")])
    shard = np.zeros(101, np.int64)
    entry, _, _ = table.find(shard, np.append(hashes, hashes[-1] + np.uint64(1)), None)
    assert entry.tolist() == [*range(100), -1]
    with pytest.raises(StoreError, match="share"):
        index.build(
            np.append(hashes, hashes[:1]), None, np.append(hashes, hashes[:1]), np.append(ones, 1), None, 1
        )


def test_any_change_of_a_header_changes_its_check():
    header = np.zeros(1, HEADER)
    header["key_hash"], header["event_count"] = 12345, 7
    truth = header_check(header)[0]
    for at in range(8, 64):
        for bit in range(8):
            raw = header.view(np.uint8).copy()
            raw[at] ^= 1 << bit
            assert header_check(raw.view(HEADER))[0] != truth


def test_an_index_of_another_length_than_its_header_says_is_refused():
    hashes = np.arange(5, dtype=np.uint64)
    words = index.build(hashes, None, hashes, np.arange(5) + 16, None, 99)
    for other in (
        words[:-1],
        words[: index.HEADER_WORDS],
        words[:3],
        words[:0],
        np.append(words, words[-1:]),
    ):
        with pytest.raises(Damaged):
            index.shape(other, "shard-00000.idx")
