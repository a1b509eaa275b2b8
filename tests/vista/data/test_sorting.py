"""Order and identity of rows against Python's own sort of tuples."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vista.data.events import COLUMNS, ORDER
from vista.data.tables import sorting
from vista.data.tables.items import ItemCounts, added_up

EXTREME = np.array([-(2**63), -1, 0, 1, 2**40, 2**63 - 1])


def draw(seed: int, n: int, extreme: bool) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    columns = {name: rng.integers(0, 3, n).astype(dtype) for name, dtype in COLUMNS.items()}
    if extreme:
        for name in ("time", "item", "request"):
            columns[name] = rng.choice(EXTREME, n)
    return rng.integers(0, 3, n), columns


def tuples(rank: np.ndarray, columns: dict[str, np.ndarray]) -> list[tuple]:
    return list(zip(rank.tolist(), *(columns[n].tolist() for n in ORDER), strict=True))


@given(st.integers(0, 10**6), st.integers(0, 60), st.booleans(), st.booleans())
def test_order_is_that_of_tuples_and_repeats_are_equal_neighbours(seed, n, extreme, presorted):
    rank, columns = draw(seed, n, extreme)
    index = sorting.order(rank, columns, presorted)
    rows = tuples(rank, columns)
    if index is None:
        assert rows == sorted(rows)
        index = np.arange(n)
    ordered = [rows[i] for i in index]
    assert ordered == sorted(rows) and sorted(index.tolist()) == list(range(n))
    again = sorting.repeats(rank[index], {k: c[index] for k, c in columns.items()})
    assert again.tolist() == [i > 0 and ordered[i] == ordered[i - 1] for i in range(n)]


@given(st.integers(0, 10**6), st.integers(0, 40), st.integers(0, 40), st.booleans())
def test_present_is_membership_of_whole_rows(seed, n, m, extreme):
    rank, columns = draw(seed, n, extreme)
    old_rank, old = draw(seed + 1, m, extreme)
    known = set(tuples(old_rank, old))
    found = sorting.present(rank, columns, old_rank, old)
    assert found.tolist() == [row in known for row in tuples(rank, columns)]


@given(st.integers(0, 10**6), st.integers(0, 80), st.booleans())
def test_items_add_up_whatever_the_surfaces(seed, n, many):
    rng = np.random.default_rng(seed)
    item = rng.choice(EXTREME, n)
    surface = rng.integers(0, 70_000 if many else 3, n).astype(np.int32)
    events = rng.integers(1, 9, n)
    expected: dict[tuple[int, int], int] = {}
    for i, s, e in zip(item.tolist(), surface.tolist(), events.tolist(), strict=True):
        expected[i, s] = expected.get((i, s), 0) + e
    found = zip(*(c.tolist() for c in added_up(item, surface, events)), strict=True)
    assert {(i, s): e for i, s, e in found} == expected
    table = ItemCounts.of(item, surface, events, (np.array([1, 5]), np.array(["one", "five"], object)))
    assert table.item.tolist() == sorted({i for i, _ in expected} | {1, 5})
    assert table.events.sum() == events.sum() and table.name[table.item == 5].tolist() == ["five"]
    for i, s in zip(table.item.tolist(), table.surface.tolist(), strict=True):
        best = max((e for (j, _), e in expected.items() if j == i), default=0)
        assert expected.get((i, s), 0) == best
