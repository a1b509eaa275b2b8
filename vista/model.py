"""Both stages as one module: what is trained together, saved together and fingerprinted together."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from vista.config import ModelConfig
from vista.embedding.encoders import EventEncoder, ItemEncoder
from vista.stage1.groups import GroupShape
from vista.stage1.slots import SlotMemory
from vista.stage1.summarizer import Summarizer
from vista.stage1.tokens import ExactTokens
from vista.stage2.ranker import Ranker


class VistaModel(nn.Module):
    """Items, events, slots and exact tokens, which both stages share; stage 1; stage 2.

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
            self.tokens = ExactTokens(config)
            self.summarizer = Summarizer(config, self.events, self.slots, self.tokens)
            self.ranker = Ranker(config, self.items, self.events, self.slots, self.tokens)

    @property
    def groups(self) -> list[GroupShape]:
        """Token groups of a summary, (name, S_g, D, default codec): what a store's schema is made from."""
        return self.summarizer.groups()

    @property
    def clusters(self) -> int:
        """Clusters of items that the model counts by; 0 for none."""
        tokens, slots = self.config.tokens, self.config.slots
        return (tokens.clusters if tokens.enabled else 0) or (slots.clusters if slots.enabled else 0)

    def set_clusters(self, items: np.ndarray, cluster: np.ndarray) -> None:
        """Clusters of the catalogue (int64 [M], int [M] below ``clusters``) for whatever counts by them.

        Raises:
            DataError: a cluster out of range, or an item twice.
        """
        if self.config.slots.enabled and self.config.slots.clusters:
            self.slots.set_clusters(items, cluster)
        if self.config.tokens.enabled and self.config.tokens.clusters:
            self.tokens.set_clusters(items, cluster, self.items)
