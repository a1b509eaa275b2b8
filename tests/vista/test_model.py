from __future__ import annotations

import torch

from vista.config import EmbeddingConfig, ModelConfig, SlotConfig, TokenConfig
from vista.model import VistaModel

CONFIG = ModelConfig(
    width=16,
    embedding=EmbeddingConfig(rows=64),
    tokens=TokenConfig(items=0),
    slots=SlotConfig(rows=1, buckets=16, clusters=4),
)


def test_weights_follow_from_the_configuration_alone():
    torch.manual_seed(1)
    one = VistaModel(CONFIG).state_dict()
    torch.manual_seed(2)
    torch.randn(5)
    before = torch.random.get_rng_state()
    other = VistaModel(CONFIG).state_dict()
    assert torch.equal(before, torch.random.get_rng_state())
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_what_both_stages_share_is_saved_once():
    model = VistaModel(CONFIG)
    names = list(model.state_dict())
    assert sum(name.endswith("items.weight") for name in names) == 1
    places = [value.data_ptr() for value in model.state_dict().values() if value.numel()]
    assert len(set(places)) == len(places)
    assert model.ranker.items is model.items is model.summarizer.events.items
    assert model.ranker.slots is model.slots is model.summarizer.slots
