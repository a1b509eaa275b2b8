"""Law 7: a reader never sees half a generation.

Also: readers in other processes and threads, under kills, power cuts and a publisher without pause,
tests/drills/test_crash_drills.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from known_stores import KnownStore

from tools.drills.drill import memory_folder

USERS = list(range(6))
STEPS = ("fsync", "rename", "replace", "unlink", "mkdir", "link")


@contextmanager
def between_steps(look: Callable[[], None]) -> Iterator[None]:
    """A look before every call that changes what a file system shows."""
    looking = False

    def stepping(step):
        def looked(*args, **options):
            nonlocal looking
            if not looking:  # else it is of a reader's own lease
                looking = True
                look()
                looking = False
            return step(*args, **options)

        return looked

    with pytest.MonkeyPatch.context() as patch:
        for name in STEPS:
            patch.setattr(os, name, stepping(getattr(os, name)))
        yield


versions = st.dictionaries(st.sampled_from(USERS), st.integers(1, 9) | st.none(), min_size=1)


works = st.tuples(st.sampled_from(["full", "delta", "compact", "prune"]), versions)


@settings(max_examples=3)
@given(works=st.lists(works, min_size=1, max_size=3))
@example(works=[("delta", {0: None, 1: 9}), ("compact", {}), ("full", {2: 3}), ("prune", {})])
def test_law_7_between_any_two_steps_every_reader_sees_one_generation_whole(works):
    with TemporaryDirectory(dir=memory_folder()) as folder:
        look_on(KnownStore(Path(folder) / "store"), works)


def look_on(known: KnownStore, works: list[tuple[str, dict[int, int | None]]]) -> None:
    live = first = known.publish({0: 1, 1: 1, 2: 1})
    stays, follows = known.open(), known.open()
    for kind, versions in works:
        before, seen = live, []

        def look(seen=seen):
            follows.refresh()
            with known.open() as fresh:
                seen.append([reader.lookup(USERS) for reader in (stays, follows, fresh)])

        with between_steps(look):
            if kind == "prune":
                known.admin.prune(keep=1)
            elif kind == "compact":
                live = known.open().compact()
                known.truth[live] = known.truth[before]
            else:
                live = known.publish({u: v for u, v in versions.items() if v or kind == "delta"}, kind)
        look()
        for looked in seen:
            assert looked[0].generation == first and looked[1].generation == looked[2].generation
            for found in looked:
                assert found.generation in {first, before, live}
                known.check(found, USERS, known.truth[found.generation])
        order = [looked[2].generation for looked in seen]
        assert order == sorted(order, key=[before, live].index) and order[-1] == live
