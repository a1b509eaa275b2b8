from __future__ import annotations

import numpy as np
import pytest
import torch

from vista.config import EmbeddingConfig, ModelConfig
from vista.data.events import Events
from vista.embedding.encoders import NO_TIME, EventEncoder, ItemEncoder, gaps
from vista.errors import DataError

CONFIG = ModelConfig(width=16, embedding=EmbeddingConfig(tables=2, rows=512, surfaces=8))


def test_an_item_never_seen_has_a_vector_like_any_other():
    items = ItemEncoder(CONFIG)
    vectors = items.vector(torch.tensor([0, -1, 2**62, 7]))
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(4))
    assert len(torch.unique(vectors, dim=0)) == 4


def test_items_collide_in_every_table_about_as_rarely_as_rows_to_the_power_of_tables():
    items = ItemEncoder(CONFIG)
    vectors = items(torch.arange(3000)).detach()
    shared = 3000 - len(torch.unique(vectors, dim=0))
    assert shared <= 60  # 3000^2 / 2 / 512^2 = 17 expected


def test_content_of_known_items_moves_their_vectors_and_only_theirs():
    config = ModelConfig(width=16, embedding=EmbeddingConfig(rows=512, content_width=4))
    items = ItemEncoder(config)
    before = items(torch.arange(5))
    items.set_content(np.array([3, 1]), np.ones((2, 4), np.float32))
    moved = (items(torch.arange(5)) != before).any(dim=-1)
    assert moved.tolist() == [False, True, False, True, False]
    other = ItemEncoder(config)
    other.load_state_dict(items.state_dict())
    assert torch.equal(other(torch.arange(5)), items(torch.arange(5)))


def test_items_that_are_their_content_alone_have_no_share_of_the_tables_and_older_weights_know_of_none():
    config = ModelConfig(width=16, embedding=EmbeddingConfig(rows=512, content_width=4))
    items, ids = ItemEncoder(config), torch.tensor([1, 3])
    rows = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    items.set_content(np.array([1, 3]), rows, alone=np.array([True, False]))
    told = items.project(torch.from_numpy(rows))
    torch.testing.assert_close(items(ids)[0], told[0])
    assert not torch.allclose(items(ids)[1], told[1])
    items.turn = 0
    hidden = (items(torch.arange(0, 4)) == 0).all(-1)
    assert not hidden.any()
    items.turn = None
    older = ItemEncoder(config)
    older.load_state_dict({n: v for n, v in items.state_dict().items() if "alone" not in n}, strict=False)
    assert older(ids).shape == (2, 16) and not torch.allclose(older(ids)[0], told[0])


def test_content_of_another_width_is_refused():
    with pytest.raises(DataError, match="expected values of shape"):
        ItemEncoder(CONFIG).set_content(np.array([3]), np.ones((1, 4), np.float32))


def test_a_masked_event_keeps_its_item_and_hides_its_action():
    events = EventEncoder(CONFIG, ItemEncoder(CONFIG))
    one = torch.ones(1, dtype=torch.int64)
    masked = torch.tensor([True])

    def encode(item, action, masked=None):
        return events(item, action, one, one, one, masked)

    assert torch.equal(encode(one, one, masked), encode(one, 4 * one, masked))
    assert not torch.equal(encode(one, one), encode(one, 4 * one))
    assert not torch.equal(encode(one, one, masked), encode(one, one))
    assert not torch.equal(encode(one, one, masked), encode(2 * one, one, masked))


def test_an_event_depends_on_itself_and_the_gap_before_it_only():
    events = Events.of([3, 2], item=np.arange(5), time=np.array([10, 30, 70, 100, 90]))
    assert gaps(events).tolist() == [0, 20, 40, 0, 0]
    assert gaps(events, np.array([4, NO_TIME])).tolist() == [6, 20, 40, 0, 0]
    assert gaps(Events.empty(2)).tolist() == []
    assert gaps(Events.of([0, 1], item=np.ones(1), time=np.array([5])), np.array([1, 2])).tolist() == [3]
