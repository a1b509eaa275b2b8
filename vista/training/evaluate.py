"""``evaluate``: how well a model ranks slates and retrieves items in a period it has not seen.

Ranking is judged on the candidates of the slate: the impressions where they were logged, else the request's
items beside items drawn by popularity within the surface; the known rate of the draw is then taken from the
logits, as in the loss. Retrieval is judged on the whole catalogue, nothing
sampled. Slates are those at or after the time split, with summaries and recent events cut as serving would
have seen them. Intervals are bootstraps over users. Beside every figure stands what it takes no model to get: a
constant score, and popularity in the training period; and :func:`verdict` says in words which of them it beats.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vista.bundle import Bundle, load
from vista.config import from_dict
from vista.data.tables.warehouse import Warehouse
from vista.errors import DataError
from vista.jagged import offsets_of, owners_of
from vista.model import VistaModel
from vista.training import metrics
from vista.training.batches import Batch, Visit, collate
from vista.training.examples import ExampleConfig, PopularItems
from vista.training.loader import PieceSource, WarehouseSource, grouped, visit_stream
from vista.training.losses import action_labels
from vista.training.personal import Alike, partners
from vista.training.slices import SlateFacts, sliced
from vista.training.survey import Catalogue, survey
from vista.training.verdict import verdict

KS = (1, 3, 10)
RETRIEVED = (10, 100)
NEGATIVES = 100
"""Candidates drawn per slate where no impressions were logged."""


@dataclass(frozen=True)
class Measure:
    """A metric with its 95 % interval over users; None where it is a single number over all rows."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """What was measured.

    Attributes:
        measures: by name: ``ranking.*`` over slates, ``retrieval.*`` over engaged items, ``action.NAME.*``
            over candidates; ``baseline.constant.*`` and ``baseline.popularity.*`` as the first two;
            ``ranking.gain``, AUC less the better baseline's; ``ranking.candidates``, per slate; ``summary.swapped``,
            AUC less that with another user's summary, and ``summary.seeds.*`` (vista/training/personal.py).
        slates, users, candidates, items: how much of what.
        sampled: candidates were partly drawn, because no impressions were logged.
        slices: AUC by history length, age of the summary and of the last touch (``vista.training.slices``).
    """

    measures: dict[str, Measure]
    slates: int
    users: int
    candidates: int
    items: int
    sampled: bool
    slices: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def flat(self) -> dict[str, float]:
        """Name to value alone; with ``ranking.gain`` and ``summary.swapped`` also their ``.low`` and ``.high``."""
        found = {name: m.value for name, m in self.measures.items()}
        for name in ("ranking.gain", "summary.swapped"):
            gain = self.measures.get(name)
            if gain is not None and gain.low is not None and gain.high is not None:
                found |= {f"{name}.low": gain.low, f"{name}.high": gain.high}
        return found

    def as_dict(self) -> dict[str, Any]:
        """JSON-able; what could not be computed is null."""

        def number(x: float | None) -> float | None:
            return None if x is None or not np.isfinite(x) else float(x)

        found = {
            name: {"value": number(m.value), "low": number(m.low), "high": number(m.high)}
            for name, m in self.measures.items()
        }
        counts = {n: getattr(self, n) for n in ("slates", "users", "candidates", "items", "sampled")}
        return {"verdict": verdict(self.flat()), "measures": found, **counts, "slices": self.slices}


@dataclass(frozen=True)
class Scored:
    """Predictions on held-out slates.

    Attributes:
        owner: int64 [K].
        offsets: int64 [K + 1].
        probability: float32 [B, A], of the slate as it was drawn.
        action: int32 [B].
        shown: bool [B].
        rank: float64 [P], retrieval rank of each engaged item in the whole catalogue.
        rank_slate: int64 [P].
        weight: float32 [B], see ``Batch.weights``.
        item: int64 [B].
        swapped: float32 [B], the slate's scores with another user's summary; not a number where there is no other.
        alike: float64 [2], :meth:`vista.training.personal.Alike.measures` of seed tokens.
    """

    owner: np.ndarray
    offsets: np.ndarray
    probability: np.ndarray
    action: np.ndarray
    shown: np.ndarray
    rank: np.ndarray
    rank_slate: np.ndarray
    weight: np.ndarray
    item: np.ndarray
    swapped: np.ndarray
    alike: np.ndarray


def held_out(
    source: PieceSource,
    examples: ExampleConfig,
    recent: int,
    popular: PopularItems | None,
    after_ms: int,
    slates: int,
    per_user: int,
    seed: int = 0,
) -> Iterator[Visit]:
    """Visits at or after ``after_ms``: at most ``per_user`` slates of a user, ``slates`` in all.

    Buckets come in random order; users are in buckets by hash, so a prefix of buckets is a sample of users.
    """
    order = np.random.default_rng([seed, 11]).permutation(source.buckets())
    stream = visit_stream(
        source, [int(b) for b in order], examples, recent, popular, (seed, 12), after_ms=after_ms
    )
    given = 0
    for _, visits in itertools.groupby(stream, key=lambda v: v.owner):
        taken = 0
        for visit in visits:
            room = min(per_user - taken, slates - given)
            if room <= 0:
                break
            if len(visit.slates) > room:
                visit = dataclasses.replace(visit, slates=visit.slates.take(np.arange(room)))
            taken += len(visit.slates)
            given += len(visit.slates)
            yield visit
        if given >= slates:
            return


@torch.inference_mode()
def score(
    model: VistaModel, batches: Iterator[Batch], items: np.ndarray, keep_unengaged: float = 1.0
) -> Scored:
    """Predictions of ``model`` (in evaluation mode) for every batch; retrieval among ``items`` (int64
    [I])."""
    device = next(model.parameters()).device
    table = torch.cat(
        [model.items.vector(torch.from_numpy(part).to(device)) for part in _blocks(items, 65_536)]
    )
    owner, sizes, probability, action, shown, rank, rank_slate, weight, item, swapped = (
        [] for _ in range(10)
    )
    done, alike = 0, Alike()
    for batch in batches:
        tokens = model.summarizer.prefixes(batch.events, batch.cut, batch.user_of, exact=True)
        ctx = model.ranker.context(tokens, None, batch.recent, batch.now_ms, batch.last_event_ms)
        logits = model.ranker.rank(ctx, torch.from_numpy(batch.item).to(device), batch.offsets)
        drawn = torch.from_numpy(batch.log_rate).to(device)[:, None]
        probability.append(torch.sigmoid(logits.float() - drawn).cpu().numpy())
        owner.append(batch.owner[batch.user_of])
        other = partners(owner[-1])
        theirs = {name: x[torch.from_numpy(other).to(device)] for name, x in tokens.items()}
        ctx_ = model.ranker.context(theirs, None, batch.recent, batch.now_ms, batch.last_event_ms)
        logits = model.ranker.rank(ctx_, torch.from_numpy(batch.item).to(device), batch.offsets)
        told = (batch.cut > 0) & (batch.cut[other] > 0) & (owner[-1] != owner[-1][other])
        scores = torch.sigmoid(logits.float() - drawn).sum(1).cpu().numpy()
        swapped.append(np.where(np.repeat(told, np.diff(batch.offsets)), scores, np.nan))
        if "seeds" in tokens:
            alike.add(tokens["seeds"])
        sizes.append(np.diff(batch.offsets))
        action.append(batch.action)
        shown.append(batch.shown)
        weight.append(batch.weights(keep_unengaged))
        item.append(batch.item)
        slate = owners_of(np.diff(batch.offsets))
        engaged = np.flatnonzero(batch.action != 0)
        rank.append(_retrieval_ranks(ctx.query, table, items, batch.item[engaged], slate[engaged]))
        rank_slate.append(slate[engaged] + done)
        done += len(batch)

    def join(parts: list[np.ndarray], dtype: Any, shape: tuple[int, ...] = (0,)) -> np.ndarray:
        return np.concatenate(parts) if parts else np.zeros(shape, dtype)

    offsets = offsets_of(join(sizes, np.int64))
    return Scored(
        join(owner, np.int64),
        offsets,
        join(probability, np.float32, (0, len(model.config.actions))),
        join(action, np.int32),
        join(shown, bool),
        join(rank, np.float64),
        join(rank_slate, np.int64),
        join(weight, np.float32),
        join(item, np.int64),
        join(swapped, np.float32),
        alike.measures(),
    )


def _blocks(values: np.ndarray, size: int) -> list[np.ndarray]:
    return [values[i : i + size] for i in range(0, max(len(values), 1), size)]


def _retrieval_ranks(
    query: torch.Tensor, table: torch.Tensor, items: np.ndarray, positive: np.ndarray, slate: np.ndarray
) -> np.ndarray:
    """float64 [P]: rank of each positive among all items that its slate did not engage with; ties count half.

    Items outside the catalogue rank last: an index would never return them. So do all items of a query that is
    not a number.
    """
    ranks = np.full(len(positive), float(len(items) + 1))
    place = np.minimum(np.searchsorted(items, positive), len(items) - 1)
    known = items[place] == positive
    for k in np.unique(slate[known]):
        rows = np.flatnonzero((slate == k) & known)
        scores = (table @ query[k].T).amax(1)  # [I], the best of Q queries
        if torch.isnan(scores).any():
            continue  # nothing is greater than NaN: every item would be the first
        own = scores[torch.from_numpy(place[rows]).to(table.device)]
        better = (scores[None] > own[:, None]).sum(1).double()
        ties = (scores[None] == own[:, None]).sum(1).double() - 1
        among_better = (own[None] > own[:, None]).sum(1).double()
        among_ties = (own[None] == own[:, None]).sum(1).double() - 1
        ranks[rows] = (1 + better - among_better + (ties - among_ties) / 2).cpu().numpy()
    return ranks


def measures(
    scored: Scored,
    actions: tuple[str, ...],
    draws: int = 1_000,
    seed: int = 0,
    thin: float = 1.0,
    catalogue: Catalogue | None = None,
) -> dict[str, Measure]:
    """All metrics of the predictions; a slate's score is the sum of its action probabilities, as in
    serving. With the ``catalogue`` also those of the baselines."""
    found: dict[str, Measure] = {}
    engaged = scored.action != 0

    def ranking(score: np.ndarray, prefix: str, all_of: bool) -> dict[str, np.ndarray]:
        per = metrics.slate_metrics(score, engaged, scored.offsets, KS)
        users = scored.owner[per["group"]]
        for name, values in per.items():
            ok = ~np.isnan(values)
            if name != "group" and ok.any() and (all_of or name in ("mrr", "auc")):
                found[prefix + name] = Measure(
                    *metrics.bootstrap(users[ok], values[ok], draws=draws, seed=seed)
                )
        return per

    engagement = scored.probability.sum(1)
    per = ranking(engagement, "ranking.", True)
    found["ranking.gauc"] = Measure(metrics.gauc(engagement, engaged, scored.offsets))
    judged = np.diff(scored.offsets)[per["group"]]
    found["ranking.candidates"] = Measure(float(judged.mean()) if len(judged) else float("nan"))
    constant = ranking(np.zeros(len(engaged)), "baseline.constant.ranking.", False)
    popularity = None if catalogue is None else catalogue.popularity()
    if popularity is not None:
        # Drawn candidates come by popularity: what is left of it, once the rate of the draw is known, is nothing.
        popular = ranking(popularity(scored.item), "baseline.popularity.ranking.", False)
        best = max((constant, popular), key=lambda side: np.nan_to_num(side["auc"]).sum())
        ok = ~np.isnan(per["auc"])
        if ok.any():
            users = scored.owner[per["group"]][ok]
            gain = per["auc"][ok] - best["auc"][ok]
            found["ranking.gain"] = Measure(*metrics.bootstrap(users, gain, draws=draws, seed=seed))
    found |= _personal(scored, per, draws, seed)
    if len(scored.rank):
        users = scored.owner[scored.rank_slate]
        sides = {"": scored.rank}
        if popularity is not None and catalogue is not None:
            whole = np.sort(popularity(catalogue.item))
            own = popularity(scored.item[engaged])
            above, at = (np.searchsorted(whole, own, side) for side in ("left", "right"))
            sides["baseline.popularity."] = 1 + len(whole) - at + (at - above - 1).clip(0) / 2
        for prefix, rank in sides.items():
            tables = {"mrr": 1 / rank} | {f"recall@{k}": (rank <= k) * 1.0 for k in RETRIEVED}
            for name, values in tables.items():
                found[f"{prefix}retrieval.{name}"] = Measure(
                    *metrics.bootstrap(users, values, draws=draws, seed=seed)
                )
    kept = scored.shown | (np.random.default_rng([seed, 13]).random(len(scored.shown)) < thin)
    labels = action_labels(torch.from_numpy(scored.action), len(actions)).numpy()
    for a, name in enumerate(actions):
        p, y, w = scored.probability[kept, a], labels[kept, a], scored.weight[kept]
        found[f"action.{name}.auc"] = Measure(metrics.auc(p, y))
        found[f"action.{name}.normalised_entropy"] = Measure(metrics.normalised_entropy(p, y, w))
        found[f"action.{name}.calibration"] = Measure(metrics.calibration(p, y, w))
        found[f"action.{name}.calibration_error"] = Measure(metrics.calibration_error(p, y, weights=w))
    return found


def _personal(scored: Scored, per: dict[str, np.ndarray], draws: int, seed: int) -> dict[str, Measure]:
    """``summary.*`` of :class:`Evaluation`; ``per``: the slates' own metrics."""
    found = {}
    slate = owners_of(np.diff(scored.offsets))
    told = np.bincount(slate, np.isnan(scored.swapped), len(scored.owner))[per["group"]] == 0
    told &= ~np.isnan(per["auc"])
    if told.any():
        other = metrics.slate_metrics(np.nan_to_num(scored.swapped), scored.action != 0, scored.offsets, ())
        users, lost = scored.owner[per["group"]][told], (per["auc"] - other["auc"])[told]
        found["summary.swapped"] = Measure(*metrics.bootstrap(users, lost, draws=draws, seed=seed))
    for name, value in zip(("personal_share", "effective_rank"), scored.alike.tolist(), strict=True):
        if np.isfinite(value):
            found[f"summary.seeds.{name}"] = Measure(value)
    return found


def evaluate_model(
    model: VistaModel,
    source: PieceSource,
    examples: ExampleConfig,
    catalogue: Catalogue,
    *,
    slates: int = 2_000,
    per_user: int = 16,
    seed: int = 0,
    draws: int = 200,
) -> Evaluation:
    """Metrics of ``model`` (in evaluation mode) on slates held out: at or after the catalogue's split.

    Args:
        slates, per_user: most slates in all and of one user.

    Raises:
        DataError: there is no slate in that period.
    """
    after = catalogue.split_ms
    if after is None:
        raise DataError("evaluation: expected a time split, found none; give `vista evaluate` --after")
    recent = model.config.ranker.recent
    judged = dataclasses.replace(examples, negatives=max(examples.negatives, NEGATIVES))
    visits = held_out(source, judged, recent, catalogue.popular(), after, slates, per_user, seed)
    batches = (collate(group, recent, judged.recent_pool) for group in grouped(visits, 256, 131_072))
    facts = SlateFacts()
    scored = score(model, facts.noting(batches), catalogue.item, judged.keep_unengaged)
    if not len(scored.owner):
        raise DataError(
            f"evaluation: expected slates at or after {after} ms of users with {examples.min_history} "
            "earlier events "
            "or more, found none; give `vista evaluate` an earlier --after"
        )
    return Evaluation(
        measures(scored, model.config.actions, draws, seed, examples.negatives / judged.negatives, catalogue),
        len(scored.owner),
        len(np.unique(scored.owner)),
        len(scored.action),
        len(catalogue.item),
        bool((~scored.shown).any()),
        sliced(
            facts, scored.probability.sum(1), scored.action != 0, scored.offsets, scored.owner, draws, seed
        ),
    )


def evaluate(
    bundle: Bundle | str | Path,
    warehouse: Warehouse,
    *,
    after_ms: int | None = None,
    slates: int = 5_000,
    per_user: int = 16,
    max_history: int | None = None,
    seed: int = 0,
    draws: int = 1_000,
) -> dict[str, Any]:
    """What ``vista evaluate`` reports: :meth:`Evaluation.as_dict` and what it was measured on.

    Args:
        after_ms: begin of the period judged; by default where the bundle's training held out (slates it
            trained on are never judged then).
        max_history: events a summary may read back; None is what the bundle was trained with.

    Raises:
        BundleError, DataError: see their texts.
    """
    loaded = bundle if isinstance(bundle, Bundle) else load(bundle)
    training = loaded.meta.training
    examples = from_dict(ExampleConfig, training["examples"]) if "examples" in training else ExampleConfig()
    if max_history:
        examples = dataclasses.replace(examples, max_history=max_history)
    after = training.get("split_ms") if after_ms is None else after_ms
    if loaded.meta.user_kind != warehouse.user_kind:
        raise DataError(
            f"{warehouse.name}: expected users of kind {loaded.meta.user_kind} as in the bundle, found "
            f"{warehouse.user_kind}; train on this warehouse with `vista train`"
        )
    source = WarehouseSource.of(warehouse)
    catalogue = survey(source, 0.1, seed, split_ms=after, sample_events=0)
    found = evaluate_model(
        loaded.model,
        source,
        examples,
        catalogue,
        slates=slates,
        per_user=per_user,
        seed=seed,
        draws=draws,
    )
    return {
        **found.as_dict(),
        "fingerprint": loaded.fingerprint,
        "after_ms": catalogue.split_ms,
        "snapshot": warehouse.snapshot(),
    }
