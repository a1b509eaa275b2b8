"""Law 1: what is read from the store equals what the model computes.

Also: decoding within each codec's stated error, tests/cache_store/format/test_codecs.py; in torch bit for bit,
tests/cache_store/torch/test_torch_feature.py.
"""

from __future__ import annotations

import numpy as np
from small_worlds import World, all_events, assert_close, stacked

from vista import bundle


def test_law_1_cached_equals_computed(home: World):
    users, events = all_events(home)
    computed = stacked(bundle.load(home.bundle).model.summarizer.summarize(events).tokens)
    order = np.random.default_rng(0).permutation(np.repeat(np.arange(len(users)), 2))
    with home.store() as store:
        found = store.lookup(users[order])
    assert (found.status == 0).all()
    assert_close(found.tokens, computed[order])
    np.testing.assert_array_equal(found.event_count, events.lengths[order])
    np.testing.assert_array_equal(found.last_event_ms, events.time[events.offsets[1:] - 1][order])
