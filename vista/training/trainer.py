"""The training step, and everything a checkpoint keeps of it."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from vista.errors import ConfigError, DataError
from vista.model import VistaModel
from vista.training.batches import Batch
from vista.training.compiled import compile_layers
from vista.training.config import TrainingConfig
from vista.training.objective import Objective, gather, parallel


@dataclass
class Position:
    """Where a run stands: steps taken, the last batch's place in the data, batches of a whole epoch once known."""

    step: int = 0
    epoch: int = 0
    taken: int = 0
    seconds: float = 0.0
    batches: int = 0


def pick_device(name: str) -> torch.device:
    """The device that ``TrainingConfig.device`` names.

    Raises:
        ConfigError: a GPU was asked for and there is none, or the name is unknown.
    """
    if name == "auto":
        return (
            torch.device("cuda", torch.cuda.current_device())
            if torch.cuda.is_available()
            else torch.device("cpu")
        )
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(
            f"training.device: expected auto, cpu or cuda[:n], found {name!r}; edit the configuration and "
            "run `vista train` again"
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"training.device: expected a GPU for {name!r}, found none; use device auto or cpu with `vista "
            "train`"
        )
    return device


class Trainer:
    """The step: forward, backward, sum of gradients, clipping, update. Holds what a checkpoint holds.

    Args:
        catalogue: int64 [I], items that random negatives are drawn from.
    """

    def __init__(
        self, config: TrainingConfig, model: VistaModel, catalogue: np.ndarray, device: torch.device
    ) -> None:
        self.config, self.device = config, device
        self.model = model.to(device).train()
        self.objective = Objective(config.objective, catalogue, config.seed, config.examples.keep_unengaged)
        table, betas = model.items.weight, (0.9, 0.98)
        named = [p for p in model.parameters() if p.requires_grad]
        dense = [p for p in named if p is not table]
        rows = {"params": [table], "lr": config.lr_embedding, "peak": config.lr_embedding}
        touched = config.embedding_update == "touched"
        groups = [
            *([] if touched else [{**rows, "weight_decay": 0.0}]),
            *(
                {"params": p, "lr": config.lr, "peak": config.lr, "weight_decay": decay}
                for p, decay in (
                    ([p for p in dense if p.ndim >= 2], config.weight_decay),
                    ([p for p in dense if p.ndim < 2], 0.0),
                )
                if p
            ),
        ]
        self.optimizer = torch.optim.AdamW(groups, betas=betas, fused=True)
        self.rows = torch.optim.SparseAdam([rows], betas=betas) if touched else None
        self.parameters = dense if touched else named
        if config.compile:
            compile_layers(model)
        self.position = Position()
        wants = config.precision == "bfloat16" or (config.precision == "auto" and device.type == "cuda")
        self.precision = torch.bfloat16 if wants else torch.float32

    def rate(self, step: int, share: float) -> float:
        """Share of the peak learning rate: warm-up by steps, then a cosine to a tenth over the done ``share``."""
        warm = min(1.0, (step + 1) / max(self.config.warmup, 1))
        return warm * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * share)))

    def step(self, batch: Batch, epoch: int, share: float = 0.0) -> dict[str, float]:
        """One update; the losses of the joined batch. ``share`` of the run that is over, 0 to 1."""
        rate = self.rate(self.position.step, share)
        optimizers = [self.optimizer, *([self.rows] if self.rows else [])]
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * rate
            optimizer.zero_grad(set_to_none=True)
        # Every dense gradient of a lookup would be a whole table of zeros: sparse ones are summed, then made dense.
        self.model.items.sparse_gradients = True
        self.model.items.turn = self.position.step
        try:
            with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
                parts = self.objective(self.model, batch, self.position.step, epoch)
            parts["loss"].backward()
        finally:
            self.model.items.sparse_gradients, self.model.items.turn = False, None
        rows = self.model.items.weight
        if rows.grad is not None:
            rows.grad = rows.grad.coalesce() if self.rows else rows.grad.to_dense()
        values = torch.stack([v.detach().float() for v in parts.values()])
        if parallel():
            self._sum_gradients()
            dist.all_reduce(values)
        norm = self._clip()
        found = dict(zip(parts, values.tolist(), strict=True)) | {"gradient_norm": float(norm)}
        if not math.isfinite(found["loss"]) or not math.isfinite(found["gradient_norm"]):
            raise DataError(
                f"training: expected a finite loss at step {self.position.step}, found {found['loss']} with "
                "gradient "
                f"norm {found['gradient_norm']}; lower lr and lr_embedding and run `vista train` again: it "
                "goes on "
                "from the last checkpoint only with the same configuration, so give it another --model"
            )
        for optimizer in optimizers:
            optimizer.step()
        self.position.step += 1
        return found

    def _clip(self) -> Tensor:
        """Scale all gradients to a norm of at most ``config.clip``; the norm before."""
        rows = self.model.items.weight.grad if self.rows else None
        if rows is None:
            return torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip, error_if_nonfinite=False)
        grads = [rows.values(), *(p.grad for p in self.parameters if p.grad is not None)]
        norm = torch.nn.utils.get_total_norm(grads)
        share = (self.config.clip / (norm + 1e-6)).clamp(max=1.0)
        for grad in grads:
            grad.mul_(share)
        return norm

    def _sum_rows(self) -> None:
        """The touched rows of all processes with the sums of their gradients."""
        table = self.model.items.weight
        index = torch.zeros(0, dtype=torch.int64, device=table.device)
        values = table.new_zeros(0, table.shape[1])
        if table.grad is not None:
            index, values = table.grad.indices()[0], table.grad.values()
        with torch.no_grad():
            index, values = gather(index), gather(values)
        rows = torch.sparse_coo_tensor(index[None], values, table.shape, check_invariants=False)
        table.grad = rows.coalesce()

    def _sum_gradients(self) -> None:
        """One all-reduce over the dense parameters laid end to end (a parameter without gradient counts as
        0)."""
        if self.rows:
            self._sum_rows()
        for p in self.parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        flat = torch.cat([p.grad.reshape(-1) for p in self.parameters])  # type: ignore[union-attr]
        dist.all_reduce(flat)
        start = 0
        for p in self.parameters:
            p.grad.copy_(flat[start : start + p.numel()].view_as(p))  # type: ignore[union-attr]
            start += p.numel()

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps; every process must call it, for each has its own place in the data."""
        places = [dataclasses.asdict(self.position)]
        if parallel():
            places *= dist.get_world_size()
            dist.all_gather_object(places, dataclasses.asdict(self.position))
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            **({"rows": self.rows.state_dict()} if self.rows else {}),
            "positions": places,
            "sketch": {
                k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v
                for k, v in self.objective.sketch.state().items()
            },
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.rows:
            self.rows.load_state_dict(state["rows"])
        self.position = Position(**state["positions"][dist.get_rank() if parallel() else 0])
        sketch = state["sketch"]
        self.objective.sketch.restore({"counts": sketch["counts"].cpu().numpy(), "total": sketch["total"]})
