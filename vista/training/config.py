"""What a training run is: one frozen configuration, part of its checkpoint and of the bundle it makes."""

from __future__ import annotations

from dataclasses import dataclass, field

from vista.config import ModelConfig, _check
from vista.training.examples import ExampleConfig
from vista.training.loader import LoaderConfig
from vista.training.objective import ObjectiveConfig

EPOCHS = 4
"""Passes where no limit is given. Whether they were enough is told at the end of every run."""


@dataclass(frozen=True)
class TrainingConfig:
    """One training run.

    Attributes:
        model, examples, loader, objective: of the parts.
        max_steps, max_epochs, max_seconds: the run ends at whichever comes first; 0 is no limit, one is
        needed.
        lr, lr_embedding: peak learning rates of AdamW, of the item tables and of everything else.
        weight_decay: on matrices other than item tables.
        warmup: steps to the peak; then a cosine to a tenth at the end of the run, by the nearest of its limits.
        clip: largest norm of the gradient.
        validation_share: newest share of events whose slates are held out.
        fit_share: oldest share of the training period to which clusters by co-occurrence are fitted. Training asks
            about requests after it, else it would ask what the clusters have seen. Of no effect where items have
            content vectors or there are no clusters.
        validation_slates: slates of the held-out period that are scored.
        validate_every, checkpoint_every, log_every: in steps; 0 means only at the end (no checkpoints).
        device: ``auto`` takes a GPU where there is one.
        precision: ``auto`` is bfloat16 autocast on a GPU.
        embedding_update: ``all`` rows of the item tables at every step, as AdamW does, or those that were ``touched``
            (SparseAdam): then a step costs nothing for the rest of a large table, whose moments do not fade meanwhile.
        compile: layers are compiled (torch.compile) where that works; where not, a warning says why.
        seed: of everything drawn in training; weights are drawn from ``model.seed``.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    examples: ExampleConfig = field(default_factory=ExampleConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    max_steps: int = 0
    max_epochs: int = 0
    max_seconds: float = 0.0
    lr: float = 2e-3
    lr_embedding: float = 5e-3
    weight_decay: float = 0.01
    warmup: int = 50
    clip: float = 1.0
    validation_share: float = 0.1
    fit_share: float = 0.5
    validation_slates: int = 2_000
    validate_every: int = 0
    checkpoint_every: int = 200
    log_every: int = 10
    device: str = "auto"
    precision: str = "auto"
    embedding_update: str = "all"
    compile: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        limits = ("max_steps", "max_epochs", "max_seconds")
        for name in (
            *limits,
            "weight_decay",
            "warmup",
            "validation_slates",
            "validate_every",
            "checkpoint_every",
        ):
            _check(getattr(self, name) >= 0, f"training.{name}", "0 or more", getattr(self, name))
        for name in ("lr", "lr_embedding", "clip", "log_every"):
            _check(getattr(self, name) > 0, f"training.{name}", "more than 0", getattr(self, name))
        _check(0 <= self.validation_share < 1, "training.validation_share", "0 to 1", self.validation_share)
        _check(0 < self.fit_share < 1, "training.fit_share", "between 0 and 1", self.fit_share)
        _check(
            self.precision in ("auto", "float32", "bfloat16"),
            "training.precision",
            "auto, float32 or bfloat16",
            self.precision,
        )
        _check(
            self.embedding_update in ("all", "touched"),
            "training.embedding_update",
            "all or touched",
            self.embedding_update,
        )
        weights = self.objective.actions
        _check(
            not weights or len(weights) == len(self.model.actions),
            "objective.actions",
            f"one weight per action {self.model.actions}",
            weights,
        )

    @property
    def epochs(self) -> int:
        """Passes over the training period after which the run ends; 0 is no limit."""
        return self.max_epochs or (0 if self.max_steps or self.max_seconds else EPOCHS)
