"""Law 10: no training row sees its own future.

Also: slates out of tables and what reaches the loss, tests/vista/training/test_examples.py and test_training.py.
"""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from known_stores import KnownStore


@settings(max_examples=12)
@given(
    published=st.lists(st.tuples(st.integers(0, 50), st.booleans()), min_size=1, max_size=6),
    rows=st.lists(st.tuples(st.integers(0, 6), st.integers(-5, 60)), min_size=1, max_size=20),
)
def test_law_10_no_row_sees_its_own_future(tmp_path_factory, published, rows):
    known = KnownStore(tmp_path_factory.mktemp("asof") / "s")
    order = []
    for version, (watermark, delta) in enumerate(published, 1):
        users = {u: version for u in range(version)} if delta else {u: version for u in range(5)}
        kind = "delta" if delta and order else "full"
        order.append(known.publish(users, kind, watermark, states=False))
    users = [u for u, _ in rows]
    times = [t for _, t in rows]
    with known.open() as store:
        found = store.lookup(users, as_of=times)
        for row, (user, time) in enumerate(rows):
            eligible = [n for n in order if known.watermarks[n] <= time]  # brute force over what is kept
            # None was published by then: the latest watermark, and of equals the oldest, before late arrivals.
            name = max(eligible, key=lambda n: (known.watermarks[n], -order.index(n)), default="")
            assert found.generation[row] == name
            truth = known.truth.get(name, {})
            one = store.lookup([user], as_of=time)
            assert one.generation == name
            known.check(one, [user], truth)
            assert (found.tokens[row] == one.tokens[0]).all() and found.status[row] == one.status[0]
            assert store.lookup_raw([user], as_of=time).status[0] == one.status[0]
