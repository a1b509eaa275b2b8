"""MovieLens-100K, leave one out, every item ranked: our model beside RecBole's SASRec on the same CPU budget.

The data and the rival come from RecBole's wheel, which the product does not need:

    python -m venv /tmp/recbole && /tmp/recbole/bin/pip install recbole==1.2.1 'torch>=2.8' 'pandas<3' scipy
    DATA=$(ls /tmp/recbole/lib/python*/site-packages/recbole/dataset_example/ml-100k/ml-100k.inter)
    vista study movielens -p data=$DATA -p recbole=/tmp/recbole/bin/python                      # equal CPU seconds
    vista study movielens ... -p seeds=3 -p sasrec_seconds=1000000 -p keep=/tmp/movielens    # both to convergence

A user's last rating is the test, the one before it the validation, all earlier ones train. Ratings of one second are
ordered by item id and moved 1 ms apart, so that both sides see the same order; a rating is an event whatever its
value. Both sides read the 50 newest events, take their best epoch by validation NDCG@10, and get CPU seconds of one
thread for training and validating: the same by default, or each its own; SASRec ends by RecBole's early stopping (ten
epochs without a better validation) where that comes first. All 1,682 items are ranked, nothing is sampled; ``new_``
figures leave out items that the user has rated, which nobody rates twice.

Ours is one model read in two ways: ``retrieval`` ranks by query . item vector, ``ranking`` by the ranking head over
every item. Its summary reads the whole history; SASRec reads none beyond the 50.
"""

from __future__ import annotations

import copy
import json
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import torch

from tools.bench.harness import Figure, Result
from vista.config import (
    EmbeddingConfig,
    ModelConfig,
    RankerConfig,
    SlotConfig,
    SummarizerConfig,
    TokenConfig,
    fingerprint,
)
from vista.data.events import Events
from vista.errors import DataError
from vista.model import VistaModel
from vista.training import metrics
from vista.training.batches import Visit, collate
from vista.training.config import TrainingConfig
from vista.training.examples import ExampleConfig, PopularItems, Slates
from vista.training.loader import Arrays, Loader, LoaderConfig
from vista.training.objective import ObjectiveConfig
from vista.training.survey import survey
from vista.training.trainer import Trainer, pick_device

RIVAL = Path(__file__).with_name("recbole_sasrec.py")
SASREC = {"train_batch_size": 256, "hidden_dropout_prob": 0.2, "attn_dropout_prob": 0.2}
"""What is not RecBole's default (2048, 0.5, 0.5): better within this budget, by validation."""


@dataclass(frozen=True)
class Split:
    """Leave one out.

    Attributes:
        users: int64 [U], ascending.
        items: int64 [I], ascending: the catalogue.
        events: U histories in order, times distinct within a user; the last two events are validation and test.
    """

    users: np.ndarray
    items: np.ndarray
    events: Events

    def before(self, back: int) -> Events:
        """Histories without their last ``back`` events."""
        return self.events.slices(self.events.offsets[:-1], self.events.offsets[1:] - back)

    def target(self, back: int) -> np.ndarray:
        """int64 [U], row of the ``back``-th last event."""
        return self.events.offsets[1:] - back


def read(path: str | Path) -> Split:
    """An atomic file of RecBole (tab separated, ``name:type`` headers).

    Raises:
        DataError: missing, or without user_id, item_id and timestamp.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(
            f"{path}: expected ml-100k.inter out of RecBole's wheel, found no such file; `vista bench list` names "
            "this benchmark, its docstring says how to get the file"
        )
    table = pa_csv.read_csv(path, parse_options=pa_csv.ParseOptions(delimiter="\t"))
    table = table.rename_columns([name.partition(":")[0] for name in table.column_names])
    columns = {}
    for name in ("user_id", "item_id", "timestamp"):
        if name not in table.column_names:
            raise DataError(
                f"{path}: expected a column {name}, found {table.column_names}; take ml-100k.inter"
            )
        columns[name] = table[name].cast(pa.float64()).to_numpy().astype(np.int64)
    user, item, time_ms = columns["user_id"], columns["item_id"], columns["timestamp"] * 1_000
    order = np.lexsort((item, time_ms, user))
    user, item, time_ms = user[order], item[order], time_ms[order]
    users, lengths = np.unique(user, return_counts=True)
    if lengths.min(initial=3) < 3:
        raise DataError(f"{path}: expected 3 ratings or more of every user, found {lengths.min()}")
    # ties: the k-th rating of a second comes k ms after it
    same = np.concatenate([[False], (user[1:] == user[:-1]) & (time_ms[1:] == time_ms[:-1])])
    first = np.maximum.accumulate(np.where(same, 0, np.arange(len(user))))
    time_ms = time_ms + np.arange(len(user)) - first
    return Split(users, np.unique(item), Events.of(lengths, item=item, time=time_ms))


# --- our side ------------------------------------------------------------------------------------------------


def configuration(length: int, seconds: float, seed: int) -> TrainingConfig:
    """Width and layers of the default SASRec: 64, 2 layers, 2 heads."""
    return TrainingConfig(
        model=ModelConfig(
            width=64,
            actions=("rated",),
            seed=seed,
            embedding=EmbeddingConfig(rows=4_096, surfaces=1),
            tokens=TokenConfig(items=0), slots=SlotConfig(
                buckets=512, clusters=64, half_lives_days=(float("inf"), 30.0), half_lives_events=(2_048.0, 128.0)
            ),
            summarizer=SummarizerConfig(seeds=16, chunk=64),
            ranker=RankerConfig(recent=length),
        ),
        examples=ExampleConfig(
            negatives=32, lag_jitter_events=length, recent_pool=0, slates_per_visit=4, max_history=1_024,
            min_history=1,
        ),
        loader=LoaderConfig(slates=64, events=65_536),
        objective=ObjectiveConfig(next_item=1.0, random_negatives=1_024, mask_actions=0.0, reconstruction=0.0),
        max_steps=0,
        max_seconds=seconds,
        lr=3e-3,
        lr_embedding=1e-2,
        seed=seed,
    )  # fmt: skip


@dataclass(frozen=True)
class Scores:
    """float32 [U, I] each: every user's score of every item at one target."""

    retrieval: np.ndarray
    ranking: np.ndarray | None


@dataclass
class Trained:
    """Our side after its budget: the best model by validation and how it came about."""

    model: VistaModel
    seconds: float
    steps: int
    epochs: int
    curve: list[tuple[float, float]]
    loss: list[float]


def train(split: Split, config: TrainingConfig) -> Trained:
    """Train within ``config.max_seconds`` of CPU time, validation included; the best of ten validations is kept."""
    source = Arrays(split.users, split.before(2), of=8)
    catalogue = survey(source, 0.0, config.seed)
    model = VistaModel(config.model)
    catalogue.fit(model)
    trainer = Trainer(config, model, split.items, pick_device("cpu"))
    # uniform negatives: nothing to correct when every item is ranked
    popular = PopularItems(*catalogue.rows, power=0.0)
    loader = Loader(source, config.examples, config.loader, config.model.ranker.recent, popular, config.seed)
    began, curve, losses = time.process_time(), [], []
    best, kept, due = -1.0, copy.deepcopy(model.state_dict()), config.max_seconds / 10
    for epoch, _, batch in loader.batches():
        losses.append(trainer.step(batch, epoch)["loss"])
        trainer.position.seconds = used = time.process_time() - began
        if used < due and used < config.max_seconds:
            continue
        due += config.max_seconds / 10
        model.eval()
        found = quality(score(model, split, 2, ranking=False).retrieval, split, 2)[0]["ndcg@10"]
        model.train()
        curve.append((round(used, 1), found))
        if found > best:
            best, kept = found, copy.deepcopy(model.state_dict())
        if time.process_time() - began >= config.max_seconds:
            break
    model.load_state_dict(kept)
    return Trained(model.eval(), time.process_time() - began, trainer.position.step, epoch, curve, losses)


def targets(split: Split, back: int, batch: int = 64) -> Iterator[tuple[np.ndarray, list[Visit]]]:
    """(users, their visits): one slate at the ``back``-th last event, the summary cut right before it."""
    rows = split.target(back)
    for users in np.array_split(np.arange(len(split.users)), -(-len(split.users) // batch)):
        visits = []
        for u in users:
            start, stop = int(split.events.offsets[u]), int(rows[u])
            length = np.array([stop - start], np.int64)
            empty = np.zeros(0, np.int64)
            slates = Slates(
                np.zeros(1, np.int64), split.events.time[stop : stop + 1], length, length,
                np.zeros(2, np.int64), empty, empty.astype(np.int32), empty.astype(bool), empty.astype(np.float32),
            )  # fmt: skip
            visits.append(Visit(int(u), split.events.rows(start, stop), slates))
        yield users, visits


@torch.inference_mode()
def score(model: VistaModel, split: Split, back: int, ranking: bool = True) -> Scores:
    """Every user's scores of all items by both heads; ``model`` in evaluation mode."""
    items = torch.from_numpy(split.items)
    vectors = model.items.vector(items)
    by_query, by_head = [], []
    for users, visits in targets(split, back):
        batch = collate(visits, model.config.ranker.recent)
        tokens = model.summarizer.prefixes(batch.events, batch.cut, batch.user_of, exact=True)
        ctx = model.ranker.context(tokens, None, batch.recent, batch.now_ms, batch.last_event_ms)
        by_query.append((ctx.query @ vectors.T).amax(1).numpy())
        if ranking:
            n = len(users)
            offsets = np.arange(n + 1, dtype=np.int64) * len(items)
            logits = model.ranker.rank(ctx, items.repeat(n), offsets, vectors=vectors.repeat(n, 1))
            by_head.append(logits[:, 0].view(n, -1).numpy())
    return Scores(np.concatenate(by_query), np.concatenate(by_head) if ranking else None)


# --- the rival -----------------------------------------------------------------------------------------------


def sasrec(
    split: Split, python: str, folder: Path, seconds: float, length: int, seed: int, settings: dict[str, Any]
) -> tuple[np.ndarray, dict[str, Any]]:
    """RecBole's SASRec in its own interpreter: scores [U, I] at the test event, and its report."""
    (folder / "split").mkdir(parents=True, exist_ok=True)
    events = split.events
    user = np.repeat(split.users, events.lengths)
    place = np.arange(len(events)) - np.repeat(events.offsets[:-1], events.lengths)
    lines = (
        f"{u}\t{i}\t{t}\n"
        for u, i, t in zip(user.tolist(), events.item.tolist(), place.tolist(), strict=True)
    )
    with open(folder / "split" / "split.inter", "w", encoding="utf-8") as file:
        file.write("user_id:token\titem_id:token\ttimestamp:float\n")
        file.writelines(lines)
    options = {"seconds": seconds, "length": length, "seed": seed, "settings": settings}
    (folder / "options.json").write_text(json.dumps(options))
    done = subprocess.run([python, str(RIVAL), str(folder)], capture_output=True, text=True, cwd=folder)
    if done.returncode:
        raise DataError(
            f"{python}: expected RecBole to run, found: {done.stderr[-800:]}; run `vista study movielens`"
        )
    with np.load(folder / "scores.npz") as found:
        users, items, scores = found["users"], found["items"], found["scores"]
    place = np.searchsorted(split.items, items)
    out = np.full((len(split.users), len(split.items)), -np.inf, np.float32)
    out[np.searchsorted(split.users, users)[:, None], place[None]] = scores
    return out, json.loads((folder / "report.json").read_text())


# --- judging -------------------------------------------------------------------------------------------------


def quality(
    scores: np.ndarray, split: Split, back: int, new: bool = False
) -> tuple[dict[str, float], np.ndarray]:
    """Means of hr@10, ndcg@10 and mrr over users, and the rank of each user's target, float64 [U].

    Args:
        new: items that the user rated before the target are not ranked.
    """
    scores = scores.astype(np.float64)
    users, items = scores.shape
    place = np.searchsorted(split.items, split.events.item[split.target(back)])
    if new:
        before = split.before(back)
        row = np.repeat(np.arange(users), before.lengths)
        seen = np.zeros(scores.shape, bool)
        seen[row, np.searchsorted(split.items, before.item)] = True
        seen[np.arange(users), place] = False
        scores = np.where(seen, -np.inf, scores)
    ranks = metrics.mid_ranks(scores.ravel(), np.arange(users + 1, dtype=np.int64) * items)
    rank = ranks.reshape(users, items)[np.arange(users), place]
    found = {
        "hr@10": (rank <= 10) * 1.0,
        "ndcg@10": np.where(rank <= 10, 1 / np.log2(rank + 1), 0),
        "mrr": 1 / rank,
    }
    return {name: float(v.mean()) for name, v in found.items()}, rank


def run(
    quick: bool,
    data: str | None = None,
    recbole: str | None = None,
    seconds: int = 180,
    sasrec_seconds: int | None = None,
    seeds: int = 1,
    length: int = 50,
    keep: str | None = None,
) -> Result:
    """Train both sides, judge both on the same targets.

    Args:
        data: path of ml-100k.inter.
        recbole: interpreter that has RecBole; None runs our side alone.
        seconds: CPU seconds of our side, and of SASRec unless ``sasrec_seconds`` says otherwise.
        seeds: models of ours that are trained; figures are means over them, the notes have each.
        length: events that both read.
        keep: folder for what each side ended with; a side that is there is taken from it, a stopped rival goes on.

    Raises:
        DataError: no data, or the rival does not run.
    """
    torch.set_num_threads(1)
    if data is None:
        raise DataError(
            "bench movielens: expected data=PATH of ml-100k.inter, found none; take it out of RecBole's wheel as the "
            "docstring of tools/studies/movielens.py says, then `vista study movielens -p data=PATH`"
        )
    split = read(data)
    seconds = min(seconds, 12) if quick else seconds
    rival = seconds if sasrec_seconds is None else sasrec_seconds
    result = Result(
        params=dict(seconds=seconds, sasrec_seconds=rival, seeds=seeds, length=length, sasrec=SASREC)
    )
    result.notes.append(f"{len(split.users)} users, {len(split.items)} items, {len(split.events)} ratings")
    sides: dict[str, list[np.ndarray]] = {"retrieval": [], "ranking": []}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(keep) if keep else Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for seed in range(seeds):
            scores, note = ours(split, folder, configuration(length, seconds, seed))
            for name, values in scores.items():
                sides[name].append(values)
            each = {
                name: round(quality(values, split, 1)[0]["ndcg@10"], 4) for name, values in scores.items()
            }
            result.notes.append(f"seed {seed}: test NDCG@10 {each}; {note}")
        if recbole is not None:
            rivals, told = sasrec(split, recbole, folder / "sasrec", rival, length, 0, SASREC)
            sides["sasrec"] = [rivals]
            _same_metrics(rivals, split, told)
            result.notes.append(
                f"sasrec: {told['epochs']} epochs in {told['cpu_seconds']:.0f} CPU s, {told['parameters']:,} "
                f"parameters, ended by {told['stopped']}, validation NDCG@10 {[round(v, 4) for _, v in told['curve']]}"
            )
    _figures(result, split, sides)
    return result


def ours(split: Split, folder: Path, config: TrainingConfig) -> tuple[dict[str, np.ndarray], str]:
    """Scores [U, I] of both heads at the test event and how they came about; kept in ``folder``."""
    kept = folder / f"vista-{fingerprint(config)[:12]}.npz"
    if not kept.exists():
        trained = train(split, config)
        found = score(trained.model, split, 1)
        parameters = sum(p.numel() for p in trained.model.parameters())
        note = (
            f"vista: {trained.steps} steps in {trained.seconds:.0f} CPU s, {parameters:,} parameters, "
            f"validation NDCG@10 of retrieval {[round(v, 4) for _, v in trained.curve]}"
        )
        assert found.ranking is not None
        np.savez(kept, retrieval=found.retrieval, ranking=found.ranking, note=np.array(note))
    with np.load(kept) as held:
        return {name: held[name] for name in ("retrieval", "ranking")}, str(held["note"])


def _same_metrics(scores: np.ndarray, split: Split, told: dict[str, Any]) -> None:
    """Our judge and RecBole's agree on RecBole's scores: same split, same targets, same catalogue.

    Raises:
        DataError: they do not.
    """
    found = quality(scores, split, 1)[0]
    for mine, theirs in (("hr@10", "hit@10"), ("ndcg@10", "ndcg@10")):
        if abs(found[mine] - told["own_metrics"][theirs]) > 2e-3:
            raise DataError(
                f"sasrec: expected RecBole's {theirs} {told['own_metrics'][theirs]}, found {found[mine]:.4f}: the "
                "splits differ; delete the folder given as keep and run `vista study movielens` again"
            )


def _figures(result: Result, split: Split, sides: dict[str, list[np.ndarray]]) -> None:
    """Means over a side's models, with 95 % bootstrap intervals over users."""
    rows: dict[str, dict[str, np.ndarray]] = {}
    for prefix, new in (("", False), ("new_", True)):
        for name, models in sides.items():
            ranks = [quality(scores, split, 1, new)[1] for scores in models]
            hits = {
                "hr10": np.mean([rank <= 10 for rank in ranks], axis=0),
                "ndcg10": np.mean([np.where(r <= 10, 1 / np.log2(r + 1), 0.0) for r in ranks], axis=0),
            }
            for measure, values in hits.items():
                rows.setdefault(prefix + measure, {})[name] = values
                value, low, high = metrics.bootstrap(split.users, values)
                result.figures[f"{prefix}{measure}_{name}"] = Figure(value, measure, low, high)
    if "sasrec" not in sides:
        return
    for measure, by_side in rows.items():
        for name in ("retrieval", "ranking"):
            gain = metrics.bootstrap(split.users, by_side[name] - by_side["sasrec"])
            result.figures[f"{measure}_{name}_over_sasrec"] = Figure(gain[0], measure, gain[1], gain[2])
