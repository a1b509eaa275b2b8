"""Checkpoints of a run: replaced in one step, and gone on from by the same run alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from vista.config import ModelConfig, from_before, from_dict, to_dict
from vista.errors import ConfigError
from vista.training.config import TrainingConfig
from vista.training.examples import ExampleConfig
from vista.training.trainer import Trainer


def save(path: Path, state: dict[str, Any]) -> None:
    """Replace a checkpoint in one step; a crash leaves the old one."""
    building = path.with_suffix(".building")
    try:
        with open(building, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(building, path)
    finally:
        building.unlink(missing_ok=True)


def resume(trainer: Trainer, path: Path, run: dict[str, Any]) -> None:
    """Go on from a checkpoint of the same run, if there is one.

    Raises:
        ConfigError: it belongs to another configuration or other tables, cannot be read, or is damaged.
    """
    if not path.exists():
        return
    try:
        state = torch.load(path, map_location=trainer.device, weights_only=True)
        found = state["run"]
        if not isinstance(found, dict):
            raise TypeError(f"a run of type {type(found).__name__}")
        # fields that came after the checkpoint was made have their defaults
        if isinstance(found.get("config"), dict):
            found["config"] = _whole(found["config"])
    except PermissionError as error:
        raise ConfigError(
            f"{path}: expected a checkpoint that this user may read, found {error.strerror}; "
            "change its mode or owner, or give `vista train` another --model"
        ) from error
    except (
        Exception
    ) as error:  # whatever is in the file: torch, zipfile and pickle each have errors of their own
        raise _damaged(path, error) from error
    if found != run:
        changed = sorted(k for k in run if found.get(k) != run[k])
        raise ConfigError(
            f"{path}: expected a checkpoint of this run, found one with another {', '.join(changed)}; give "
            "`vista train` "
            f"another --model, or delete {path.parent} to start over"
        )
    try:
        trainer.restore(state)
    except Exception as error:
        raise _damaged(path, error) from error


def _whole(config: dict[str, Any]) -> dict[str, Any]:
    """A run's configuration with the fields that it did not know yet, as they are meant where they are absent."""
    whole = {**to_dict(TrainingConfig()), **config}
    whole["examples"] = {**to_dict(ExampleConfig()), **whole["examples"]}
    whole["model"] = to_dict(from_dict(ModelConfig, from_before(whole["model"])))
    return whole


def _damaged(path: Path, error: Exception) -> ConfigError:
    told = " ".join(str(error).split())[:200] or type(error).__name__
    size = path.stat().st_size
    return ConfigError(
        f"{path}: expected a checkpoint of training, found {size:,} bytes that are none ({told}); "
        f"delete {path} and run `vista train` again: it starts over"
    )
