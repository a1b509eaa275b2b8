"""Whatever byte is damaged, nobody is served a wrong value as FRESH, and ``verify`` says what and where.

More: ``python -m tools.drills.corruption --trials 20000 --seed 1``.
"""

from __future__ import annotations

import numpy as np
import pytest

from cache_store import Store
from cache_store.errors import Damaged
from cache_store.testing import Truth
from tools.drills import corruption

CLASSES = {
    "FORMAT", "pointer", "manifest.json", "READY", "index header", "index body", "LMDB meta pages", "LMDB tree pages",
    "record header", "payload", "tombstone", "state",
}  # fmt: skip


@pytest.mark.parametrize(("seed", "kernel"), [(1, "native"), (2, "numpy")], indirect=["kernel"])
def test_no_damage_is_served_as_fresh_or_goes_unseen_by_verify(seed, kernel, tmp_path):
    tally = corruption.run(1000, seed, deep_every=5)
    print(corruption.table(tally))
    assert set(tally.trials) == CLASSES
    assert set(tally.ways) == set(corruption.WAYS)
    assert tally.outcomes["payload"]["corrupt"] > 0 and "unseen" not in tally.outcomes["manifest.json"]
    assert set(tally.outcomes["index body"]) & {"refused"}


def test_a_file_cut_under_a_reader_kills_it_only_if_it_reads_there_within_a_second(tmp_path):
    assert corruption.cut_while_mapped(tmp_path / "at once") in ("SIGBUS", "Damaged")
    assert corruption.cut_while_mapped(tmp_path / "later", later_ms=1000) == "Damaged"


def test_an_index_altered_under_a_reader_is_found_when_its_turn_comes_in_as_many_seconds_as_there_are(
    tmp_path,
):
    truth, now = Truth(num_users=24, num_shards=3), np.zeros(1, np.int64)
    publisher = truth.create(tmp_path / "s")
    full = truth.publish(publisher, "a", 1000)
    truth.publish(publisher, "b", 1001, parent=full, base=1000)
    for index in sorted((tmp_path / "s/generations").rglob("*.idx")):
        whole = index.read_bytes()
        with Store.open(tmp_path / "s", clock=lambda: int(now[0])) as reader, open(index, "r+b") as file:
            file.seek(len(whole) // 2)
            file.write(b"altered!")
            file.flush()
            with pytest.raises(Damaged, match=f"{index.name}.*vista verify"):
                for _ in range(2 * 3):
                    now[0] += 1000
                    reader.lookup(truth.users[:0])
            file.seek(0)
            file.write(whole)
            file.flush()
            truth.check_all(reader, 1001)


def test_an_index_altered_under_a_reader_is_found_when_it_moves_and_nothing_is_read_by_it_then(tmp_path):
    truth = Truth(num_users=24)
    publisher = truth.create(tmp_path / "s")
    full = truth.publish(publisher, "a", 1000)
    index = next((tmp_path / "s/generations" / full).glob("shard*.idx"))
    with Store.open(tmp_path / "s") as reader:
        truth.check_all(reader, 1000)
        whole = index.read_bytes()
        with open(index, "r+b") as file:  # the pages that the reader has mapped
            file.seek(len(whole) // 2)
            file.write(b"altered!")
        truth.publish(publisher, "b", 1001, parent=full, base=1000)
        for work in (reader.refresh, reader.refresh, lambda: reader.lookup(truth.users)):
            with pytest.raises(Damaged, match=f"{index.name}.*vista verify"):
                work()
        with open(index, "r+b") as file:
            file.write(whole)
        truth.check_all(reader, 1001)
