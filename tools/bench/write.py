"""Bulk load: one shard of encoded records against the same bytes written to one plain file with the same fsyncs.

Both sides start from the same float16-exact tokens, batch by batch, and end when everything is durable.

    ours   ``ShardWriter``: encode, check words and hashes, LMDB append, fsync, read back and check every key against
           LMDB, index, digests of both files, rename, receipt
    plain  the same records already encoded: ``write`` batch by batch, fsync the file, rename, fsync the folder

``of_plain_write`` compares bulk load proper: sealed records (what compaction, and a job that encodes on another
core, hands over) into a shard, against the plain file. ``of_plain_write_encoding`` has the encoding of float32 tokens
inside our side. ``overhead`` is the bytes of shard, index and receipt over the bytes of the records' payload and
header. fsyncs: the same number of files is synced on both sides (an empty second file stands for our index).
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from cache_store import Group, RecordSchema, ShardWriter
from cache_store.format.keys import hash_of, second_hash_of
from cache_store.format.record import as_rows, model_word
from tools.bench.harness import Figure, Result, in_turn, median, ratio, sized

BATCH = 256


@sized(records=1_024, repeats=3)
def run(quick: bool, folder: str | None = None, records: int = 8_192, repeats: int = 7) -> Result:
    """Load ``records`` records of 32 KiB (8 pages less what LMDB needs) from memory.

    Args:
        folder: where to write; a temporary folder by default.
    """
    schema = RecordSchema((Group("seeds", 255, 64, "float16"),))
    place = Path(tempfile.mkdtemp(prefix="bench-write-", dir=folder))
    users = np.arange(records, dtype=np.int64) * 7_919
    rng = np.random.default_rng(0)
    tokens = rng.standard_normal((BATCH, 255, 64), dtype=np.float32)
    facts = np.ones(BATCH, np.int64)
    batches = [slice(i, min(i + BATCH, records)) for i in range(0, records, BATCH)]

    def encoded(s: slice) -> list[Any]:
        ids, n = users[s], s.stop - s.start
        hashes, ones = (hash_of(ids), second_hash_of(ids)), facts[:n]
        return list(as_rows(schema.encode({"seeds": tokens[:n]}, *hashes, model_word("m"), ones, ones, ones)))

    sealed = [encoded(s) for s in batches]
    sizes: dict[str, int] = {}

    def shard(encode: bool) -> None:
        target = place / "shard"
        with ShardWriter(target, 0, 1, schema, fingerprint="m") as writer:
            for s, rows in zip(batches, sealed, strict=True):
                if encode:
                    n = s.stop - s.start
                    writer.add(users[s], {"seeds": tokens[:n]}, facts[:n], facts[:n], facts[:n])
                else:
                    writer.add_sealed(users[s], rows)
            writer.finish()
        sizes["ours"] = sum(p.stat().st_size for p in target.iterdir())
        shutil.rmtree(target)

    def plain() -> None:
        target = place / "plain"
        target.mkdir()
        with open(target / "part", "wb", buffering=0) as file:
            for rows in sealed:
                file.writelines(rows)
            os.fsync(file.fileno())
        for name in ("index", "receipt"):
            with open(target / name, "wb") as file:
                os.fsync(file.fileno())
        os.replace(target / "part", target / "whole")
        fd = os.open(target, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
        shutil.rmtree(target)

    try:
        seconds = in_turn(
            {"ours": lambda: shard(False), "encoding": lambda: shard(True), "plain": plain}, repeats, warmup=1
        )
    finally:
        shutil.rmtree(place, ignore_errors=True)
    volume = records * schema.record_bytes
    return Result(
        {"record_bytes": schema.record_bytes},
        {
            "of_plain_write": ratio(seconds["plain"], seconds["ours"], target=0.8),
            "of_plain_write_encoding": ratio(seconds["plain"], seconds["encoding"]),
            "overhead": Figure(sizes["ours"] / volume, target=1.02, at_least=False),
            "plain_rate": median(volume / seconds["plain"] / 1e6, "MB/s"),
            "ours_rate": median(volume / seconds["ours"] / 1e6, "MB/s"),
            "encoding_rate": median(volume / seconds["encoding"] / 1e6, "MB/s"),
        },
        ["one process, one shard; reading back for the checks is inside our side"],
    )
