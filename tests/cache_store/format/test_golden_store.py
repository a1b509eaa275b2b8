"""The stores of format 1 beside their script, read by this version and by a reader written from docs/format.md."""

from __future__ import annotations

import base64
import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import lmdb
import numpy as np
import pytest
import xxhash

from cache_store import Store
from cache_store.format.keys import bucket_of, key_bytes

GOLDEN = Path(__file__).parents[2] / "golden"
KINDS = ["store-1", "store-1-int64", "store-2", "store-3"]


@pytest.fixture(params=KINDS)
def golden(request, tmp_path):
    path = tmp_path / request.param
    shutil.copytree(GOLDEN / request.param, path)
    return path, json.loads((GOLDEN / f"{request.param}.expected.json").read_text())


def test_the_golden_store_reads_as_it_was_written(golden, kernel):
    path, expected = golden
    for line, truth in expected.items():
        store = Store.open(path, line=line)
        assert (store.manifest.digest, store.manifest.generation) == (truth["digest"], truth["generation"])
        users = [row["user"] for row in truth["rows"]]
        found, states = store.lookup(users), store.states(users)
        for i, row in enumerate(truth["rows"]):
            facts = [
                int(c[i]) for c in (found.status, found.event_count, found.last_event_ms, found.summarized_ms)
            ]
            assert facts == row["facts"]
            assert (states[i] is not None) == (found.status[i] == 0)
            for name, (first, digest) in row["groups"].items():
                block = found.tokens[i, store.manifest.schema.slices[name]]
                assert block.reshape(-1)[:4].tolist() == first
                assert xxhash.xxh3_64_hexdigest(block.tobytes()) == digest
    assert Store(path).verify().ok and Store(path).verify().records > 0


def test_the_golden_store_can_be_continued(golden):
    path, _ = golden
    store = Store.open(path)
    before = store.lookup([row["user"] for row in golden[1]["main"]["rows"]])
    assert store.compact() == "00000004"
    after = store.lookup([row["user"] for row in golden[1]["main"]["rows"]])
    np.testing.assert_array_equal(before.tokens, after.tokens)


def test_the_script_still_makes_the_same_store(tmp_path):
    command = [sys.executable, str(GOLDEN / "make_golden.py"), str(tmp_path / "store-1")]
    subprocess.run(command, check=True, cwd=GOLDEN.parents[1])
    for kind in KINDS:
        ours, theirs = (tmp_path / f"{kind}.expected.json"), (GOLDEN / f"{kind}.expected.json")
        assert json.loads(ours.read_text()) == json.loads(theirs.read_text())
        for path in sorted((GOLDEN / kind).rglob("*")):
            if path.is_file() and path.suffix != ".parquet" and path.name not in ("manifest.json", "READY"):
                assert (tmp_path / path.relative_to(GOLDEN)).read_bytes() == path.read_bytes(), path


def _plain_reader(store: Path, line: str, user: int | str) -> tuple[dict[str, np.ndarray], bytes] | None:
    """A reader in the words of docs/format.md: LMDB, JSON, struct; nothing of cache_store but the bucket of a user."""
    pointer = store / ("CURRENT" if line == "main" else f"lines/{line}")
    name: str | None = pointer.read_text().split()[0]
    key = key_bytes(user)
    while name is not None:
        folder = store / "generations" / name
        manifest = json.loads((folder / "manifest.json").read_text())
        k, n = int(bucket_of([user], manifest["num_shards"])[0]), manifest["num_shards"]
        revision = _revision(manifest, k)
        stem = f"shard-{k:05d}-of-{n:05d}" + (f".r{revision}" if revision else "")
        env = lmdb.open(str(folder / f"{stem}.mdb"), subdir=False, readonly=True, lock=False)
        with env.begin() as txn:
            record = txn.get(key)
        env.close()
        name = manifest["parent"]
        if record is None:
            continue
        check, payload, key_hash, second, model, *_ = words = struct.unpack("<8Q", record[:64])
        assert key_hash == xxhash.xxh64_intdigest(key)
        assert second == (xxhash.xxh3_64_intdigest(key) if isinstance(user, str) else 0)
        assert model == xxhash.xxh3_64_intdigest(manifest["fingerprint"].encode())
        assert payload == xxhash.xxh3_64_intdigest(record[64:])
        h, mask = 0, (1 << 64) - 1
        for word in words[1:]:
            z = (h + word + 0x9E3779B97F4A7C15) & mask
            z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
            z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
            h = z ^ (z >> 31)
        assert check == h and record[56] == 1
        if record[57] & 1:
            return None
        assert len(record) == manifest["schema"]["record_bytes"]
        fields = {
            what: np.frombuffer(record, dtype, int(np.prod(shape)), at).reshape(shape)
            for what, dtype, shape, at in manifest["schema"]["layout"]
        }
        groups = {g["name"]: g for g in manifest["schema"]["groups"]}
        return {g: _plain_decode(groups[g], fields) for g in groups}, record
    return None


def _revision(manifest: dict, shard: int) -> int:
    if "packed_shards" not in manifest["features"]:
        return manifest["shards"][shard]["revision"]
    return struct.unpack_from("<I", base64.b64decode(manifest["packed_shards"]), 160 * shard + 24)[0]


def _plain_decode(group: dict, fields: dict[str, np.ndarray]) -> np.ndarray:
    name, codec, size = group["name"], group["codec"], group["tokens"] * group["width"]
    if codec in ("float32", "float16"):
        values = fields[f"{name}.values"].astype(np.float32).reshape(-1)
    elif codec == "bfloat16":
        values = (fields[f"{name}.values"].astype("<u4") << 16).view("<f4").reshape(-1)
    elif codec == "int8":
        values = (fields[f"{name}.codes"].astype("f4") * fields[f"{name}.scale"][:, None]).reshape(-1)
    elif codec == "int4":
        packed = fields[f"{name}.codes"]
        codes = np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), 32).astype("f4")
        scale, offset = (fields[f"{name}.{f}"].astype("f4")[:, None] for f in ("scale", "offset"))
        values = (codes * scale + offset).reshape(-1)[:size]
    elif codec == "int64":
        values = fields[f"{name}.values"].view("<f4")[:size]
    else:
        codes = fields[f"{name}.codes"].reshape(-1).astype(np.float64)
        values = np.where(codes == 0, 0, 2.0 ** ((codes - 96) / 8)).astype("f4")
    return values.reshape(group["tokens"], group["width"])


def test_a_reader_written_from_the_format_page_agrees_bit_for_bit(golden):
    path, expected = golden
    for line, truth in expected.items():
        store = Store.open(path, line=line)
        users = [row["user"] for row in truth["rows"]]
        found = store.lookup(users)
        for i, user in enumerate(users):
            plain = _plain_reader(path, line, user)
            assert (plain is None) == (found.status[i] == 2)
            if plain is not None:
                for name, rows in store.manifest.schema.slices.items():
                    assert plain[0][name].tobytes() == found.tokens[i, rows].tobytes(), (user, name)
