"""Both stages as one module: what is trained together, saved together and fingerprinted together."""

from __future__ import annotations

import torch
from torch import nn

from vista.config import ModelConfig
from vista.embedding.encoders import EventEncoder, ItemEncoder
from vista.stage1.slots import SlotMemory
from vista.stage1.summarizer import Summarizer
from vista.stage2.ranker import Ranker


class VistaModel(nn.Module):
    """Items, events and slots, which both stages share; stage 1; stage 2.

    Weights are drawn from ``config.seed`` alone: the same configuration gives the same model, whatever was
    drawn before.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(config.seed)
            self.items = ItemEncoder(config)
            self.events = EventEncoder(config, self.items)
            self.slots = SlotMemory(config)
            self.summarizer = Summarizer(config, self.events, self.slots)
            self.ranker = Ranker(config, self.items, self.events, self.slots)
        # stage 2 borrows the shared parts: they are parameters of the model once, and saved once
        for name in ("items", "events", "slots"):
            if name in self.ranker._modules:
                self.ranker.__dict__[name] = self.ranker._modules.pop(name)

    @property
    def groups(self) -> list[tuple[str, int, int, str]]:
        """Token groups of a summary, (name, S_g, D, default codec): what a store's schema is made from."""
        return self.summarizer.groups()
