"""The arithmetic of jagged batches, beside loops that say the same."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vista.jagged import lengths_between, offsets_of, owners_of, places_of, rows_of, starts_of

lengths = st.lists(st.integers(0, 5), max_size=12)


@given(lengths, st.randoms(use_true_random=False))
def test_offsets_owners_places_and_rows_say_the_same_as_loops(sizes, random):
    starts = [random.randint(0, 100) for _ in sizes]
    assert offsets_of(sizes).tolist() == [sum(sizes[:u]) for u in range(len(sizes) + 1)]
    assert owners_of(sizes).tolist() == [u for u, n in enumerate(sizes) for _ in range(n)]
    assert places_of(sizes).tolist() == [i for n in sizes for i in range(n)]
    rows = rows_of(np.array(starts, np.int64), sizes)
    assert rows.tolist() == [a + i for a, n in zip(starts, sizes, strict=True) for i in range(n)]
    assert offsets_of(sizes).dtype == owners_of(sizes).dtype == rows.dtype == np.int64


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), max_size=20))
def test_runs_begin_where_any_column_changes(pairs):
    a, b = (np.array([p[i] for p in pairs], np.int64) for i in (0, 1))
    starts = starts_of(a, b)
    assert starts.tolist() == [i for i, p in enumerate(pairs) if i == 0 or p != pairs[i - 1]]
    assert lengths_between(starts, len(pairs)).sum() == len(pairs)
