"""Law 8: expected users = written + dead-lettered, or nothing is published.

Also: whom a job dead-letters and why, tests/beam_jobs/generation/test_summarize.py and test_refresh.py.
"""

from __future__ import annotations

import pytest
from known_stores import KnownStore

from cache_store.errors import Incomplete, NothingPublished


def test_law_8_what_is_expected_is_written_or_dead_lettered(tmp_path):
    known = KnownStore(tmp_path / "s")
    for expected, dead in ((4, 0), (2, 0), (3, 1)):
        with pytest.raises(Incomplete, match="unaccounted"):
            known.publish({u: 1 for u in range(3)}, expected=expected, dead_letters=dead)
    with pytest.raises(NothingPublished):
        known.open()
    known.publish({u: 1 for u in range(3)}, expected=5, dead_letters=2)
    manifest = known.open().manifest
    assert (manifest.expected, manifest.records, manifest.dead_letters) == (5, 3, 2)
    known.publish({0: None, 1: 2, 9: 2}, "delta", expected=4, dead_letters=1)
    assert (known.open().manifest.records, known.open().manifest.tombstones) == (2, 1)
