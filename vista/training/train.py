"""``train``: both stages in one run, from tables to a bundle.

    OUT                        the bundle, once training is done (vista/bundle.py)
    OUT.training/
      curve.jsonl              one line per logged step: losses; per validation: metrics
      checkpoint.pt            model, optimiser, position in the data, item sketch; replaced atomically
      lock                     held (flock) while a process trains here

A run that was killed goes on from its checkpoint when it is started again with the same configuration and
tables, and ends with the same weights as one that was not: everything drawn depends on (seed, step or epoch)
alone, and the position in the data is part of the checkpoint. Ctrl-C and SIGTERM end the step under way, keep a
checkpoint and stop; a second one stops at once. ``max_seconds`` is the one knob whose result depends on the machine.

Under ``torchrun`` the processes share every step: buckets are dealt out, gradients summed
(vista/training/objective.py).
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np
import torch
import torch.distributed as dist
import xxhash

from vista import bundle
from vista.config import to_dict
from vista.data.tables.content import ItemContent
from vista.data.tables.warehouse import Warehouse
from vista.embedding.content import content_rows, widths
from vista.errors import ConfigError, DataError
from vista.model import VistaModel
from vista.training.checkpoint import resume, save
from vista.training.config import TrainingConfig
from vista.training.evaluate import evaluate_model
from vista.training.loader import Loader, Part, PieceSource, WarehouseSource
from vista.training.log import Curve, Pace
from vista.training.objective import parallel
from vista.training.survey import survey
from vista.training.trainer import Position, Trainer, pick_device


class Stop:
    """Ctrl-C and SIGTERM as a wish that the loop reads between two steps; the second one is not waited for."""

    def __init__(self) -> None:
        self.asked: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():  # signals are nobody else's to take
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _frame: object) -> None:
        if self.asked is not None:
            raise KeyboardInterrupt
        self.asked = number


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
    # NCCL for what is on a GPU; what is not, the places of a checkpoint for one, goes by gloo and waits for none
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    try:
        yield dist.get_rank(), dist.get_world_size()
    finally:
        dist.destroy_process_group()


class Told(TypedDict, total=False):
    """How a run tells of itself.

    Attributes:
        progress: False shows nothing; else steps a second and the time left: a bar on a terminal, lines elsewhere.
        on_step: called after every step with its number and losses.
        on_row: called with each line of the curve: step, and the finite values (losses, metrics) that are new.
        note: takes what a person should know in words: what is done before and after the steps, a loss that falls.
    """

    progress: bool | None
    on_step: Callable[[int, dict[str, float]], None] | None
    on_row: Callable[[int, dict[str, float]], None] | None
    note: Callable[[str], None] | None


def train(
    config: TrainingConfig,
    warehouse: Warehouse,
    out: str | Path,
    **told: Unpack[Told],
) -> Path:
    """Train both stages on a warehouse and write a bundle.

    Args:
        out: the bundle's path; must not exist. ``OUT.training`` beside it keeps curve and checkpoint.
        told: how the run tells of itself.

    Returns:
        the bundle's path.

    Raises:
        ConfigError, DataError, BundleError: named in their texts, with what to do.
        KeyboardInterrupt: Ctrl-C; the text says from which step the same call goes on.
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
        weights=warehouse.weights,
    )
    names = warehouse.read_items()
    content = warehouse.read_content()
    config = with_content(config, content)
    embedding = config.model.embedding
    width = embedding.content_width - embedding.words_width
    return train_source(
        config,
        WarehouseSource.of(warehouse),
        out,
        meta,
        content=content_rows(content, width, embedding.words_width) if embedding.content_width else None,
        names=dict(zip(names.item.tolist(), names.name.tolist(), strict=True)),
        **told,
    )


def train_source(
    config: TrainingConfig,
    source: PieceSource,
    out: str | Path,
    meta: bundle.Meta | None = None,
    *,
    names: dict[int, str | None] | None = None,
    content: tuple[np.ndarray, np.ndarray] | None = None,
    **told: Unpack[Told],
) -> Path:
    """As :func:`train`, from any source (arrays in memory, say).

    Args:
        content: items int64 [M] and content rows float32 [M, W]: what an item is about
            (``vista.embedding.content``), W = ``embedding.content_width``.
        told: how the run tells of itself.
    """
    out = Path(out)
    note = told.get("note") or (lambda text: None)
    meta = meta or bundle.Meta(actions=tuple(config.model.actions))
    _check_content(config, content)
    folder = out.with_name(out.name + ".training")
    with torchrun() as (rank, world), _alone(folder, out, rank):
        if rank == 0:
            note("reading the tables, and how often which items go together")
        session = _Session(
            config, source, content, meta.table_snapshot, folder, rank, world, told.get("on_row")
        )
        session.learn(told.get("progress"), told.get("on_step"))
        if config.checkpoint_every:
            session.keep()
        if rank == 0:
            if config.validation_slates:
                note(f"judging by {config.validation_slates:,} held-out requests at most")
            metrics = session.validate()
            with session.curve:
                session.curve.add(session.at.step, session.at.seconds, metrics)
            if falls := session.curve.falling():
                note(falls)
            catalogue, model = session.catalogue, session.trainer.model
            training = {
                **to_dict(config), **dataclasses.asdict(session.at), "split_ms": catalogue.split_ms
            }  # fmt: skip
            catalogue.refit(model, content)
            meta = dataclasses.replace(meta, metrics=metrics, training=training)
            bundle.save(out, model, meta, catalogue.table(names, None if content is None else content[0]))
            session.checkpoint.unlink(missing_ok=True)
        if parallel():
            dist.barrier()
    return out


@contextlib.contextmanager
def _alone(folder: Path, out: Path, rank: int) -> Iterator[None]:
    """Keep a second run away from the same bundle; it has its end by then, or is told.

    Raises:
        BundleError: the bundle is there already, or another run is making it.
    """
    _free(out)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") if rank == 0 else contextlib.nullcontext() as lock:
        try:
            if lock is not None:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise bundle.BundleError(
                f"{folder}: expected no training under way, found one; wait for its end, or name another bundle by "
                f"`vista train --model`"
            ) from error
        _free(out)
        yield


def _free(out: Path) -> None:
    """Raises BundleError: something is there."""
    if out.exists():
        raise bundle.BundleError(
            f"{out}: expected no file or folder of that name, found one; name another by `vista train --model`"
        )


class _Session:
    """One process of a run: what it learns from, how far it is, what it keeps.

    Attributes:
        at: how far; part of the checkpoint.
    """

    def __init__(
        self,
        config: TrainingConfig,
        source: PieceSource,
        content: tuple[np.ndarray, np.ndarray] | None,
        snapshot: int | None,
        folder: Path,
        rank: int,
        world: int,
        on_row: Callable[[int, dict[str, float]], None] | None = None,
    ) -> None:
        self.config, self.source, self.rank = config, source, rank
        device = pick_device(config.device)
        if len(source.buckets()) < world:
            raise ConfigError(
                f"torchrun: expected at most as many processes as buckets ({len(source.buckets())}), found "
                f"{world}; start fewer, or ingest into more buckets (`vista ingest --buckets`)"
            )
        self.catalogue = survey(source, config.validation_share, config.seed, fit_share=config.fit_share)
        if not len(self.catalogue.item):
            raise DataError(
                "history: expected events to train on, found none; bring some in with `vista ingest`"
            )
        model = VistaModel(config.model)
        fitted = self.catalogue.fit(model, content)
        self.trainer = Trainer(config, model, self.catalogue.early_items(), device)
        self.run = {
            "config": to_dict(config),
            "snapshot": snapshot,
            "catalogue": self.catalogue.digest() + (_digest(content) if content is not None else ""),
            "processes": world,
        }
        self.checkpoint = folder / "checkpoint.pt"
        resume(self.trainer, self.checkpoint, self.run)
        self.at = self.trainer.position
        # What was fitted to a period would answer that period's questions: training asks what came after it.
        after = self.catalogue.fit_ms if fitted else None
        self.loader = Loader(
            source,
            config.examples,
            config.loader,
            config.model.ranker.recent,
            self.catalogue.popular(),
            config.seed,
            Part(after, self.catalogue.split_ms, rank, world),
        )
        batches = config.loader.slates * world
        self.expected = self.catalogue.slates(config.examples, after_fit=fitted) / batches  # of an epoch
        self.curve = Curve(folder / "curve.jsonl", self.at.step, quiet=rank != 0, also=on_row)

    def keep(self) -> None:
        """Replace the checkpoint; every process takes part."""
        state = self.trainer.state()
        if self.rank == 0:
            save(self.checkpoint, {**state, "run": self.run})

    def validate(self) -> dict[str, float]:
        """Metrics on what was held out, if there is any."""
        config, model = self.config, self.trainer.model
        if self.catalogue.split_ms is None or not config.validation_slates:
            return {}
        model.eval()
        try:
            return evaluate_model(
                model,
                self.source,
                config.examples,
                self.catalogue,
                slates=config.validation_slates,
                seed=config.seed,
            ).flat()
        finally:
            model.train()

    def learn(self, progress: bool | None, on_step: Callable[[int, dict[str, float]], None] | None) -> None:
        """All steps that are left.

        Raises:
            DataError: there is nothing to learn from. KeyboardInterrupt, SystemExit: stopped, with a checkpoint.
        """
        config, at = self.config, self.at
        shown = progress if self.rank == 0 else False
        over = share_done(config, at, self.expected)
        with self.curve, Stop() as stop, Pace(at.step, over, shown) as pace:
            for epoch, taken, batch in self.loader.batches(at.epoch, at.taken):
                if epoch > at.epoch:
                    at.batches = at.taken
                if _ended(config, at, _most(epoch)):
                    break
                began = time.perf_counter()
                found = self.trainer.step(batch, epoch, share_done(config, at, self.expected))
                at.epoch, at.taken = epoch, taken
                at.seconds += _most(time.perf_counter() - began)
                pace.update(at.step, share_done(config, at, self.expected), found["loss"])
                self._note(found)
                if on_step is not None:
                    on_step(at.step, found)
                if _most(float(stop.asked or 0)):
                    self.keep()
                    _stopped(stop.asked or signal.SIGINT, at.step, self.checkpoint)
            if not at.step:
                raise DataError(
                    "history: expected requests to learn from, found none before the held-out period; "
                    "ingest more events "
                    "(`vista ingest`) or lower examples.min_history or training.validation_share"
                )

    def _note(self, found: dict[str, float]) -> None:
        """After a step: what is due of losses, a checkpoint and metrics."""
        config, at = self.config, self.at
        if at.step % config.log_every == 0 or at.step == 1:
            self.curve.add(at.step, at.seconds, found)
        if config.checkpoint_every and at.step % config.checkpoint_every == 0:
            self.keep()
        if config.validate_every and at.step % config.validate_every == 0 and self.rank == 0:
            self.curve.add(at.step, at.seconds, self.validate())


def with_content(config: TrainingConfig, told: ItemContent) -> TrainingConfig:
    """The configuration with the width of what the tables know of items, where it does not say one itself.

    Raises:
        ConfigError: it says another.
    """
    width, words = widths(told)
    embedding = config.model.embedding
    if embedding.content_width:
        if (embedding.content_width, embedding.words_width) == (width + words, words):
            return config
        raise ConfigError(
            f"embedding.content_width, words_width: expected {width + words} and {words}, as the tables hold, found "
            f"{embedding.content_width} and {embedding.words_width}; leave both out of the configuration of `vista "
            f"train`" + ("" if width + words else ", or bring vectors in with `vista ingest --items`")
        )
    embedding = dataclasses.replace(embedding, content_width=width + words, words_width=words)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, embedding=embedding))


def _digest(content: tuple[np.ndarray, np.ndarray]) -> str:
    digest = xxhash.xxh3_128()
    for part in content:
        digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()


def _check_content(config: TrainingConfig, content: tuple[np.ndarray, np.ndarray] | None) -> None:
    expected = config.model.embedding.content_width
    found = content[1].shape[1] if content is not None and len(content[0]) else 0
    if expected != found:
        raise ConfigError(
            f"embedding.content_width: expected {found}, the width of the content vectors that were given "
            f"({'none' if not found else len(content[0])}), found {expected}; "  # type: ignore[index]
            "give the vectors to train_source(content=...), or leave it out of the configuration"
        )


def _stopped(number: int, step: int, checkpoint: Path) -> None:
    text = f"stopped after step {step}; the same command goes on from there ({checkpoint})"
    if number == signal.SIGTERM:
        raise SystemExit(128 + number)
    raise KeyboardInterrupt(text)


def share_done(config: TrainingConfig, at: Position, batches: float) -> float:
    """Share of the run that is over, 0 to 1, by whichever limit is nearest.

    Args:
        batches: of an epoch, where none is over yet: an estimate.
    """
    of_epoch = at.taken / max(at.batches or batches, 1)
    shares = [0.0]
    if config.max_steps:
        shares.append(at.step / config.max_steps)
    if config.epochs:
        shares.append((at.epoch + min(of_epoch, 1.0)) / config.epochs)
    if config.max_seconds:
        shares.append(at.seconds / config.max_seconds)
    return min(max(shares), 1.0)


def _ended(config: TrainingConfig, at: Position, epoch: float) -> bool:
    return bool(
        (config.max_steps and at.step >= config.max_steps)
        or (config.epochs and epoch >= config.epochs)
        or (config.max_seconds and at.seconds >= config.max_seconds)
    )


def _most(value: float) -> float:
    """The largest of all processes' values, so that all of them stop at the same step."""
    if not parallel():
        return value
    found = torch.tensor([value], dtype=torch.float64)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return float(found)
