"""``train``: both stages in one run, from tables to a bundle.

    OUT                        the bundle, once training is done (vista/bundle.py)
    OUT.training/
      curve.jsonl              one line per logged step: losses; per validation: metrics
      checkpoint.pt            model, optimiser, position in the data, item sketch; replaced atomically

A run that was killed goes on from its checkpoint when it is started again with the same configuration and
tables, and ends with the same weights as one that was not: everything drawn depends on (seed, step or epoch)
alone, and the position in the data is part of the checkpoint. ``max_seconds`` is the one knob whose result
depends on the machine.

Under ``torchrun`` the processes share every step: buckets are dealt out, gradients summed
(vista/training/objective.py).
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from vista import bundle
from vista.config import to_dict
from vista.data.tables.warehouse import Warehouse
from vista.errors import ConfigError, DataError
from vista.model import VistaModel
from vista.training.config import TrainingConfig
from vista.training.evaluate import evaluate_model
from vista.training.loader import Loader, Source, Tables
from vista.training.log import Bar, Curve
from vista.training.objective import parallel
from vista.training.survey import Catalogue, survey
from vista.training.trainer import Position, Trainer, pick_device


@contextlib.contextmanager
def torchrun() -> Iterator[tuple[int, int]]:
    """Join the processes that ``torchrun`` started (gloo on the CPU, NCCL on GPUs); (rank, world) = (0, 1)
    without it.

    The environment variables are torchrun's own contract; they say which process this is and change no
    result.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ or dist.is_initialized():
        yield (dist.get_rank(), dist.get_world_size()) if parallel() else (0, 1)
        return
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield dist.get_rank(), dist.get_world_size()
    finally:
        dist.destroy_process_group()


def train(
    config: TrainingConfig,
    warehouse: Warehouse,
    out: str | Path,
    *,
    progress: bool | None = None,
    on_step: Callable[[int, dict[str, float]], None] | None = None,
) -> Path:
    """Train both stages on a warehouse and write a bundle.

    Args:
        out: the bundle's path; must not exist. ``OUT.training`` beside it keeps curve and checkpoint.
        progress: show a bar; None shows it on a terminal.
        on_step: called after every step with its number and losses.

    Returns:
        the bundle's path.

    Raises:
        ConfigError, DataError, BundleError: named in their texts, with what to do.
    """
    actions = warehouse.actions
    if tuple(config.model.actions) != tuple(actions):
        raise ConfigError(
            f"model.actions: expected the warehouse's {list(actions)}, found {list(config.model.actions)}; "
            "run `vista train` without actions in the configuration"
        )
    meta = bundle.Meta(
        user_kind=warehouse.user_kind,
        actions=tuple(actions),
        surfaces=tuple(warehouse.surfaces),
        table_snapshot=warehouse.snapshot(),
    )
    names = warehouse.read_items()
    return train_source(
        config,
        Tables.of(warehouse),
        out,
        meta,
        names=dict(zip(names.item.tolist(), names.name.tolist(), strict=True)),
        progress=progress,
        on_step=on_step,
    )


def train_source(
    config: TrainingConfig,
    source: Source,
    out: str | Path,
    meta: bundle.Meta | None = None,
    *,
    names: dict[int, str | None] | None = None,
    progress: bool | None = None,
    on_step: Callable[[int, dict[str, float]], None] | None = None,
) -> Path:
    """As :func:`train`, from any source (arrays in memory, say)."""
    out = Path(out)
    meta = meta or bundle.Meta(actions=tuple(config.model.actions))
    if out.exists():
        raise bundle.BundleError(
            f"{out}: expected no file or folder of that name, found one; name another by `vista train --model`"
        )
    folder = out.with_name(out.name + ".training")
    folder.mkdir(parents=True, exist_ok=True)
    with torchrun() as (rank, world):
        device = pick_device(config.device)
        if len(source.buckets()) < world:
            raise ConfigError(
                f"torchrun: expected at most as many processes as buckets ({len(source.buckets())}), found "
                f"{world}; "
                "start fewer, or ingest into more buckets (`vista ingest --buckets`)"
            )
        catalogue = survey(source, config.validation_share, config.seed)
        if not len(catalogue.item):
            raise DataError(
                "history: expected events to train on, found none; bring some in with `vista ingest`"
            )
        model = VistaModel(config.model)
        catalogue.fit(model)
        trainer = Trainer(config, model, catalogue.item, device)
        run = {
            "config": to_dict(config),
            "snapshot": meta.table_snapshot,
            "catalogue": catalogue.digest(),
            "processes": world,
        }
        checkpoint = folder / "checkpoint.pt"
        _resume(trainer, checkpoint, run)
        loader = Loader(
            source,
            config.examples,
            config.loader,
            config.model.ranker.recent,
            catalogue.popular(),
            config.seed,
            before_ms=catalogue.split_ms,
            rank=rank,
            world=world,
        )
        curve = Curve(folder / "curve.jsonl", trainer.position.step, quiet=rank != 0)
        shown = progress if rank == 0 else False
        total = config.max_steps or config.max_seconds or None
        with curve, Bar(total, _done(config, trainer.position), shown) as bar:
            for epoch, taken, batch in loader.batches(trainer.position.epoch, trainer.position.taken):
                if _ended(config, trainer.position, _most(epoch)):
                    break
                began = time.perf_counter()
                found = trainer.step(batch, epoch)
                trainer.position.epoch, trainer.position.taken = epoch, taken
                trainer.position.seconds += _most(time.perf_counter() - began)
                step = trainer.position.step
                bar.update(_done(config, trainer.position), step, found["loss"])
                if step % config.log_every == 0 or step == 1:
                    curve.add(step, trainer.position.seconds, found)
                if config.checkpoint_every and step % config.checkpoint_every == 0:
                    state = trainer.state()
                    if rank == 0:
                        _save(checkpoint, {**state, "run": run})
                if config.validate_every and step % config.validate_every == 0 and rank == 0:
                    curve.add(step, trainer.position.seconds, _validate(trainer, source, catalogue))
                if on_step is not None:
                    on_step(step, found)
            if not trainer.position.step:
                raise DataError(
                    "history: expected requests to learn from, found none before the held-out period; "
                    "ingest more events "
                    "(`vista ingest`) or lower examples.min_history or training.validation_share"
                )
            metrics = _validate(trainer, source, catalogue) if rank == 0 else {}
            if rank == 0:
                curve.add(trainer.position.step, trainer.position.seconds, metrics)
        if rank == 0:
            training = {
                **to_dict(config),
                **dataclasses.asdict(trainer.position),
                "split_ms": catalogue.split_ms,
            }
            meta = dataclasses.replace(meta, metrics=metrics, training=training)
            bundle.save(out, trainer.model, meta, catalogue.table(names))
            checkpoint.unlink(missing_ok=True)
        if parallel():
            dist.barrier()
    return out


def _ended(config: TrainingConfig, at: Position, epoch: float) -> bool:
    return bool(
        (config.max_steps and at.step >= config.max_steps)
        or (config.max_epochs and epoch >= config.max_epochs)
        or (config.max_seconds and at.seconds >= config.max_seconds)
    )


def _done(config: TrainingConfig, at: Position) -> float:
    return at.step if config.max_steps else at.seconds


def _most(value: float) -> float:
    """The largest of all processes' values, so that all of them stop at the same step."""
    if not parallel():
        return value
    found = torch.tensor([value], dtype=torch.float64)
    if dist.get_backend() == "nccl":
        found = found.cuda()
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return float(found)


def _validate(trainer: Trainer, source: Source, catalogue: Catalogue) -> dict[str, float]:
    config = trainer.config
    if catalogue.split_ms is None or not config.validation_slates:
        return {}
    trainer.model.eval()
    try:
        return evaluate_model(
            trainer.model,
            source,
            config.examples,
            catalogue,
            slates=config.validation_slates,
            seed=config.seed,
        ).flat()
    finally:
        trainer.model.train()


def _save(path: Path, state: dict[str, Any]) -> None:
    """Replace a checkpoint in one step; a crash leaves the old one."""
    building = path.with_suffix(".building")
    with open(building, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(building, path)


def _resume(trainer: Trainer, path: Path, run: dict[str, Any]) -> None:
    """Go on from a checkpoint of the same run, if there is one.

    Raises:
        ConfigError: it belongs to another configuration or other tables.
    """
    if not path.exists():
        return
    state = torch.load(path, map_location=trainer.device, weights_only=True)
    if state["run"] != run:
        changed = sorted(k for k in run if state["run"].get(k) != run[k])
        raise ConfigError(
            f"{path}: expected a checkpoint of this run, found one with another {', '.join(changed)}; give "
            "`vista train` "
            f"another --model, or delete {path.parent} to start over"
        )
    trainer.restore(state)
