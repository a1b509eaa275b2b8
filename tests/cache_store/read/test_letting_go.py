"""What a reader has moved on from is unmapped at once, without the help of the garbage collector."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from cache_store import Store
from cache_store.testing import Truth


def mapped(root: Path) -> set[str]:
    """Generations below a store of which this process has files mapped."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    places = [line.split(maxsplit=5)[5] for line in lines if f"{root}/generations/" in line]
    return {place.split("/generations/")[1].split("/")[0].removeprefix(".deleting-") for place in places}


@pytest.mark.parametrize("strings", [False, True], ids=["int64", "string"])
@pytest.mark.parametrize("verify", [False, True], ids=["unverified", "verified"])
def test_a_reader_that_moves_on_unmaps_what_it_read(tmp_path, strings, verify):
    truth = Truth(num_users=40, strings=strings)
    admin = truth.create(tmp_path / "s")
    name = truth.publish(admin, "full", 1000)
    now = [0]
    reader = Store.open(tmp_path / "s", verify=verify, clock=lambda: now[0])
    gc.collect()
    gc.disable()
    try:
        for version in range(1001, 1006):
            now[0] += 700
            truth.check_all(reader, version - 1)
            reader.states(truth.users)
            list(reader.changes(reader.manifest.generation))
            reader.facts(truth.users)
            name = truth.publish(admin, f"d{version}", version, parent=name, base=version - 1)
            reader.refresh()
            folded = admin.compact()
            reader.refresh()
            assert mapped(tmp_path / "s") <= {folded}, version
            truth.check_all(reader, version)
            name = folded
        with reader.pin() as pinned:
            pinned.lookup(truth.users[:3])
        del pinned
        assert mapped(tmp_path / "s") == {folded}
        reader.close()
        admin.close()
        assert mapped(tmp_path / "s") == set()
    finally:
        gc.enable()
