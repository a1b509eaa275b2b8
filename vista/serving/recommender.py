"""Retrieve, then rank, over one context: users in, ranked items with per-action probabilities out.

    lookup(users) ─▶ context (once) ─▶ query ─▶ index: ids + vectors ─▶ rank over the same context ─▶ top k

The two halves can run in two processes: :meth:`Recommender.retrieve` gives a :class:`Retrieved`, whose
context another process takes from a :class:`vista.serving.kv_pool.KVPool` and hands to :meth:`Recommender.rank`.

Summaries are passed in: ``lookup`` is any callable, ``cache_store.Store.lookup`` for one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vista.data.events import Events
from vista.data.logs.weights import guessed
from vista.data.recent import select_recent
from vista.embedding.catalogue_column import ItemTable
from vista.errors import ConfigError, DataError
from vista.jagged import offsets_of, owners_of, places_of
from vista.ops import crossing
from vista.ops.upload import uploaded
from vista.serving.captured import Captured
from vista.serving.context_graph import ContextGraph
from vista.serving.forked import settle
from vista.serving.index import ItemIndex
from vista.stage2.context_kv import ContextKV, Origin

if TYPE_CHECKING:
    from vista.model import VistaModel

Users = np.ndarray | Sequence[int | str]
MAX_RECENT = 1_024
"""Raw events read beside a summary, at most: stage 2's cost grows with their square."""


MISSING = 2
"""Least status of a lookup that comes without a user's own tokens: missing, then corrupt."""


class Summaries(Protocol):
    """What a lookup returns for U users, in their order.

    Attributes:
        tokens: group name to float32 [U, S_g, D], or one [U, S, D] with the groups side by side in the
            order of ``Summarizer.groups``.
        status: uint8 [U]: FRESH 0, STALE 1, MISSING 2, CORRUPT 3.
        last_event_ms: int64 [U].
        generation: its name, or None.
    """

    @property
    def tokens(self) -> Any: ...
    @property
    def status(self) -> Any: ...
    @property
    def last_event_ms(self) -> Any: ...
    @property
    def generation(self) -> Any: ...


@dataclass(frozen=True)
class Retrieved:
    """Candidates of U users and the context they were retrieved with.

    Attributes:
        ctx: the context, ready for ranking.
        item: int64 [B], candidates grouped by user, best first.
        vectors: float32 [B, D], as stored in the index.
        score: float32 [B], inner product with the best query.
        offsets: int64 [U + 1].
        status: uint8 [U] of the lookup.
    """

    ctx: ContextKV
    item: NDArray[np.int64]
    vectors: NDArray[np.float32]
    score: NDArray[np.float32]
    offsets: NDArray[np.int64]
    status: NDArray[np.uint8]


@dataclass(frozen=True)
class Recommendations:
    """Ranked items of U users, M in all.

    Attributes:
        users: as asked.
        offsets: int64 [U + 1]; the items of user u are rows ``offsets[u]:offsets[u + 1]``, best first.
        item: int64 [M].
        score: float32 [M], what they are ordered by: the weighted sum of the probabilities.
        probability: float32 [M, A], one per action of the model.
        actions: names of the A actions.
        summarized: bool [U]; False marks users served from their recent events alone.
        status: uint8 [U] of the lookup.
        generation: of the summaries.
    """

    users: Users
    offsets: NDArray[np.int64]
    item: NDArray[np.int64]
    score: NDArray[np.float32]
    probability: NDArray[np.float32]
    actions: tuple[str, ...]
    summarized: NDArray[np.bool_]
    status: NDArray[np.uint8]
    generation: str | None

    def of(self, u: int) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]:
        """Items [m], scores [m] and probabilities [m, A] of the u-th user."""
        rows = slice(self.offsets[u], self.offsets[u + 1])
        return self.item[rows], self.score[rows], self.probability[rows]


class Recommender:
    """Stage 2 in service. Keeps no state of users between calls; safe to share between threads.

    Args:
        lookup: users to :class:`Summaries`. None serves everyone from recent events alone.
        model: in evaluation mode; its device is where the work is done.
        index: item index made by the same model.
        fingerprint: of the model's bundle; an index, a context or (through the store) summaries of another
            model are then refused.
        action_weights: action name to weight in the score, 0 for those not named; guessed by default
            (vista/data/logs/weights.py).
        recent: raw events read beside the summary, at most :data:`MAX_RECENT`; the model's own number by
            default. More is allowed: the model knows events by age, not by place.
        cross: form of the crossing, ``vista.ops.crossing.fast`` or, on a GPU, ``flex``; ``vista bench gpu`` says which
            is faster there.
        recent_pool: events, newest first, among which those are chosen (newest of each item first); the same
            number as in training (``ExampleConfig.recent_pool``), so that serving sees what training saw.

    Attributes:
        step: on a GPU the ranking as CUDA graphs (``vista.serving.captured``), with the index's vectors beside the
            model; elsewhere None.
        context_step: likewise the context.

    Raises:
        ConfigError: an action the model does not have, a weight that is not finite, or ``recent`` out of range.
        FingerprintMismatch: the index is of another model.
    """

    def __init__(
        self,
        lookup: Callable[[Users], Summaries] | None,
        model: VistaModel,
        index: ItemIndex,
        *,
        fingerprint: str | None = None,
        action_weights: Mapping[str, float] | None = None,
        recent: int | None = None,
        recent_pool: int = 128,
        cross: Callable[..., Tensor] = crossing.fast,
    ) -> None:
        index.expect(fingerprint)
        self.model, self.index, self.fingerprint = model, index, fingerprint
        self._lookup = lookup
        self.actions = model.config.actions
        unknown = sorted(set(action_weights or {}) - set(self.actions))
        if unknown:
            raise ConfigError(f"action_weights: expected names among {self.actions}, found {unknown}")
        weights = guessed(self.actions) if action_weights is None else action_weights
        self.weights = np.array([weights.get(a, 0.0) for a in self.actions], np.float32)
        if not np.isfinite(self.weights).all():
            raise ConfigError(f"action_weights: expected finite numbers, found {dict(weights)}")
        self.recent = model.config.ranker.recent if recent is None else recent
        self.recent_pool = recent_pool
        if not 0 <= self.recent <= MAX_RECENT:
            raise ConfigError(f"recent: expected 0 to {MAX_RECENT}, found {self.recent}")
        self._cross = cross
        device = next(model.items.parameters()).device
        self._resident = ItemTable((index.width,), torch.float32).to(device)
        self.step: Captured[Tensor] | None = None
        self.context_step: ContextGraph | None = None
        if device.type == "cuda":
            self._resident.set(index.items, index.vectors())
            self.step, self.context_step = Captured(self._logits), ContextGraph(model.ranker, self.recent)

    def recommend(
        self,
        users: Users,
        recent: Events,
        now_ms: int | np.ndarray,
        k: int = 10,
        *,
        candidates: int = 600,
        exclude_seen: bool = False,
    ) -> Recommendations:
        """The k best items for each of U users.

        Args:
            users: int64 [U] or U strings.
            recent: their newest events, U histories in contract order; any length, may be empty.
            now_ms: time of the request, one for all or int64 [U]. Events after it are left out: the request
                cannot know them.
            k: items per user; fewer come back where fewer candidates were found.
            candidates: retrieved per user and ranked.
            exclude_seen: leave out every item among the user's ``recent`` events as passed.

        Raises:
            DataError: ``recent``, ``now_ms`` or the lookup's answer are not of U users, or ``k`` or
                ``candidates`` is negative.
        """
        found = self.retrieve(users, recent, now_ms, candidates=candidates, exclude_seen=exclude_seen)
        return self.rank(users, found, k)

    @torch.inference_mode()
    def context(self, users: Users, recent: Events, now_ms: int | np.ndarray) -> tuple[ContextKV, np.ndarray]:
        """Context of U users, and the status of their summaries (uint8 [U])."""
        settle()
        expect_users(users)
        if recent.users != len(users):
            raise DataError(f"recent: expected one history per user ({len(users)}), found {recent.users}")
        if np.asarray(now_ms).dtype.kind not in "iuf" or not np.isfinite(now_ms).all():
            raise DataError(f"now_ms: expected milliseconds since 1970 as numbers, found {now_ms!r:.80}")
        if np.shape(now_ms) not in ((), (len(users),)):
            raise DataError(f"now_ms: expected one time or {len(users)}, found shape {np.shape(now_ms)}")
        now = np.broadcast_to(np.asarray(now_ms, np.int64), len(users)).copy()
        tokens, status, last, generation = {}, np.full(len(users), 2, np.uint8), None, None
        if self._lookup is not None:
            found = self._lookup(users)
            tokens, generation = self._grouped(found.tokens), found.generation
            status, last = np.asarray(found.status, np.uint8), found.last_event_ms
            if status.shape != (len(users),) or (last is not None and np.shape(last) != (len(users),)):
                raise DataError(
                    f"lookup: expected status and last_event_ms of {len(users)} users, found shapes "
                    f"{status.shape} and {np.shape(last)}"
                )
        given = tokens, status < MISSING, self._recent(_known_at(recent, now)), now, last
        name = None if generation is None else str(generation)
        origin: Origin = {"owner": users, "generation": name, "fingerprint": self.fingerprint}
        make = self.model.ranker.context if self.context_step is None or not len(users) else self.context_step
        return make(*given, **origin), status

    def _recent(self, events: Events) -> Events:
        """As in training: R of the newest ``recent_pool``, distinct items first; all plain where R covers them."""
        pool = select_recent(events, max(self.recent, self.recent_pool), distinct=False)
        return select_recent(pool, self.recent) if self.recent_pool > self.recent else pool

    def _grouped(self, tokens: Any) -> dict[str, Tensor]:
        if isinstance(tokens, Mapping):
            return {name: torch.as_tensor(x) for name, x in tokens.items()}
        whole = torch.as_tensor(tokens)
        sizes = {name: size for name, size, *_ in self.model.summarizer.groups()}
        if whole.ndim != 3 or whole.shape[1] != sum(sizes.values()):
            raise DataError(
                f"lookup: expected tokens [U, {sum(sizes.values())}, D] of groups {sizes}, "
                f"found {tuple(whole.shape)}; make summaries with this model (`vista summarize`)"
            )
        return dict(zip(sizes, whole.split(list(sizes.values()), 1), strict=True))

    def retrieve(
        self,
        users: Users,
        recent: Events,
        now_ms: int | np.ndarray,
        *,
        candidates: int = 600,
        exclude_seen: bool = False,
    ) -> Retrieved:
        """First half of :meth:`recommend`: the context, and at most ``candidates`` items per user."""
        ctx, status = self.context(users, recent, now_ms)
        recent = _known_at(recent, now_ms)
        more = 0
        if exclude_seen:
            seen = max((len(np.unique(recent.user(u).item)) for u in range(len(users))), default=0)
            more = min(seen, max(len(self.index) - candidates, 0))
        if candidates < 0:
            raise DataError(f"candidates: expected 0 or more per user, found {candidates}")
        query = self.model.ranker.query(ctx)
        found = self.index.search(query, candidates + more, fingerprint=self.fingerprint)
        keep = np.arange(found.ids.shape[1]) < found.counts[:, None]
        if exclude_seen:
            for u in range(len(users)):
                keep[u] &= ~np.isin(found.ids[u], recent.user(u).item)
            keep &= np.cumsum(keep, 1) <= candidates
        offsets = offsets_of(keep.sum(1))
        return Retrieved(ctx, found.ids[keep], found.vectors[keep], found.scores[keep], offsets, status)

    @torch.inference_mode()
    def rank(self, users: Users, found: Retrieved, k: int) -> Recommendations:
        """Second half of :meth:`recommend`. ``found.ctx`` may come from another process' pool.

        Raises:
            FingerprintMismatch: the context was made by another model.
            DataError: ``k`` is negative, or ``found`` is not of these users.
        """
        settle()
        expect_users(users)
        found.ctx.expect(self.fingerprint)
        if k < 0:
            raise DataError(f"k: expected 0 or more items per user, found {k}")
        if len(users) != found.ctx.users:
            raise DataError(f"users: expected the {found.ctx.users} of the context, found {len(users)}")
        if self.step is None:
            vectors = torch.from_numpy(found.vectors)
            logits = self.model.ranker.rank(found.ctx, found.item, found.offsets, vectors, self._cross)
        else:
            logits = self._by_graph(found, self.step)
        probability = torch.sigmoid(logits.float()).cpu().numpy()
        score = probability @ self.weights
        counts = np.diff(found.offsets)
        user = owners_of(counts)
        order = np.lexsort([-score, user])  # stable: ties stay in retrieval order
        kept = np.minimum(counts, k)
        rank_in_user = places_of(counts)
        order = order[rank_in_user < np.repeat(kept, counts)]
        rows = found.item[order], score[order], probability[order], self.actions
        status = found.ctx.summarized.cpu().numpy(), found.status, found.ctx.generation
        return Recommendations(users, offsets_of(kept), *rows, *status)

    def _by_graph(self, found: Retrieved, step: Captured[Tensor]) -> Tensor:
        """Logits [B, A] on the device: the items' vectors are there, so their ids are all that has to come."""
        (item,) = uploaded([found.item], self._resident.values.device)
        plan = functools.partial(crossing.Plan.of, found.offsets, item.device)
        return step(found.offsets.tobytes(), plan, item=item, **found.ctx.tensors())

    def _logits(self, plan: crossing.Plan, item: Tensor, **context: Any) -> Tensor:
        vectors = self._resident.values[self._resident(item)[0]]
        return self.model.ranker.rank(ContextKV(**context), item, plan, vectors, self._cross)


def expect_users(users: object) -> None:
    """Refuse one text where a list of users is expected: its letters are no users.

    Raises:
        DataError
    """
    if isinstance(users, (str, bytes, bytearray)) or not hasattr(users, "__len__"):
        raise DataError(
            f"users: expected a list or an array of ids, found one {type(users).__name__}; put a single user into a "
            f"list"
        )
    if isinstance(users, np.ndarray) and np.any(getattr(users, "mask", False)):
        raise DataError(f"users: expected a user in every row, found {users!r:.80}")


def _known_at(events: Events, now_ms: int | np.ndarray) -> Events:
    """Events that are not after their user's request."""
    times = np.broadcast_to(np.asarray(now_ms, np.int64), events.users)
    known = events.time <= np.repeat(times, events.lengths)
    if known.all():
        return events
    before = np.concatenate([[0], np.cumsum(known)])  # histories are in order of time
    starts = events.offsets[:-1]
    return events.slices(starts, starts + before[events.offsets[1:]] - before[starts])
