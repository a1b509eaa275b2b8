"""Law 1: what is read from the store equals what the model computes.

Also: decoding within each codec's stated error, tests/cache_store/format/test_codecs.py; in torch bit for bit,
tests/cache_store/torch/test_torch_feature.py.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_worlds import World, all_events, assert_close, stacked

from vista import bundle


@pytest.fixture(scope="module")
def read(home: World):
    """Users, their events, the model, and the store that the job made of them."""
    with home.store() as store:
        yield *all_events(home), bundle.load(home.bundle).model, store


@given(rows=st.lists(st.integers(0, 39), min_size=1, max_size=12), strangers=st.integers(0, 2))
def test_law_1_any_record_read_is_what_the_model_computes_of_that_history(read, rows, strangers):
    users, events, model, store = read
    own = events.select(np.array(rows))
    found = store.lookup(np.concatenate([users[rows], 10**6 + np.arange(strangers)]))
    assert found.status.tolist() == [0] * len(rows) + [2] * strangers
    assert_close(found.tokens[: len(rows)], stacked(model.summarizer.summarize(own).tokens))
    np.testing.assert_array_equal(found.event_count[: len(rows)], own.lengths)
    np.testing.assert_array_equal(found.last_event_ms[: len(rows)], own.time[own.offsets[1:] - 1])
    assert not found.tokens[len(rows) :].any()
