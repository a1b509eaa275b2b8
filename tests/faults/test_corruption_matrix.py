"""Whatever byte is damaged, nobody is served a wrong value as FRESH, and ``verify`` says what and where.

More: ``python -m tools.faults.corruption --trials 20000 --seed 1``.
"""

from __future__ import annotations

import pytest

from tools.faults import corruption

CLASSES = {
    "FORMAT", "pointer", "manifest.json", "READY", "index header", "index body", "LMDB meta pages", "LMDB tree pages",
    "record header", "payload", "tombstone", "state",
}  # fmt: skip


@pytest.mark.parametrize("seed", [1, 2])
def test_no_damage_is_served_as_fresh_or_goes_unseen_by_verify(seed, tmp_path):
    tally = corruption.run(1000, seed, deep_every=5)
    print(corruption.table(tally))
    assert set(tally.trials) == CLASSES
    assert set(tally.ways) == set(corruption.WAYS)
    assert tally.outcomes["payload"]["corrupt"] > 0 and "unseen" not in tally.outcomes["manifest.json"]
    assert set(tally.outcomes["index body"]) & {"refused"}


def test_a_file_cut_under_a_reader_that_has_it_mapped_is_the_one_damage_that_kills_it(tmp_path):
    assert corruption.cut_while_mapped(tmp_path / "s") in ("SIGBUS", "Damaged")
