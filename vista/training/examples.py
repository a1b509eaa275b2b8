"""Training examples: a slate of one request, with what could be known when it was shown.

A *slate* is the candidates of one request and what became of them. It comes from the impression table where
there is one (every shown item, engaged with or not); otherwise from the history: what a request engaged with,
beside items drawn by popularity within the same surface, which are assumed, not known, not to have been
wanted.

Point in time (law 10: no row sees its own future). A slate of a request that began at t sees events with time < t
only; events of its own request carry t or later, so they are never in its own history. Its summary is cut earlier
still: no event of it is younger than ``t - lag_ms``, and at least ``lag_events`` events of the history are missing
from it, because serving reads a summary that some refresh made a while ago.

A *visit* is a few consecutive slates of one user that share one pass over the history.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vista.config import _check
from vista.data.events import Events
from vista.jagged import lengths_between, offsets_of, owners_of, rows_of, starts_of


@dataclass(frozen=True)
class ExampleConfig:
    """How slates are made.

    Attributes:
        lag_ms, lag_events: least age of the summary at the slate, in milliseconds and in events of the user.
        lag_jitter_events: up to so many events more, drawn per slate: a refresh happens at any time.
        lag_jitter_ms: up to so many milliseconds more, drawn per slate; how far refreshes are apart.
        negatives: sampled candidates per positive where no impressions are given.
        max_positives: positives kept per slate, drawn; the others are not used as negatives either.
        keep_unengaged: share of impression slates without any engagement that is kept (UniPinRec keeps 10 %,
            arXiv 2606.00422, data).
        min_history: events a user must have had before a slate.
        min_pause_ms: slates are made only where the user had done nothing for so long: at the start of a visit,
            when recent events do not tell what it is about.
        slates_per_visit: slates that share one pass over the history.
        recent_pool: events before a slate among which its R recent ones are chosen, newest of each item first
            (``vista.data.recent.select_recent``); R or less takes the newest R as they are.
        max_history: events before a visit's first summary cut that its pass reads; older ones are not seen in
            training (truncated pass). At least as long as the histories you will serve is best.
    """

    lag_ms: int = 0
    lag_events: int = 0
    lag_jitter_events: int = 64
    negatives: int = 16
    max_positives: int = 4
    keep_unengaged: float = 0.1
    min_history: int = 1
    min_pause_ms: int = 0
    slates_per_visit: int = 8
    recent_pool: int = 128
    max_history: int = 4_096
    lag_jitter_ms: int = 0

    def __post_init__(self) -> None:
        for name in (
            "lag_ms",
            "lag_events",
            "lag_jitter_events",
            "lag_jitter_ms",
            "negatives",
            "min_history",
            "min_pause_ms",
            "recent_pool",
        ):
            _check(getattr(self, name) >= 0, f"examples.{name}", "0 or more", getattr(self, name))
        for name in ("max_positives", "slates_per_visit", "max_history"):
            _check(getattr(self, name) >= 1, f"examples.{name}", "1 or more", getattr(self, name))
        _check(0 <= self.keep_unengaged <= 1, "examples.keep_unengaged", "0 to 1", self.keep_unengaged)

    @property
    def lags(self) -> tuple[int, ...]:
        """Everything that says how old summaries are."""
        return self.lag_ms, self.lag_events, self.lag_jitter_events, self.lag_jitter_ms


@dataclass(frozen=True, slots=True)
class Slates:
    """K slates with B candidates, of the users of one ``Events`` batch; ascending by (user, time).

    Attributes:
        user: int64 [K], number of the user in the batch.
        time: int64 [K], milliseconds; when the request began.
        history: int64 [K]; the first so many events of the user happened before the slate.
        cut: int64 [K] <= history; the first so many events are in the summary.
        offsets: int64 [K + 1].
        item: int64 [B].
        action: int32 [B], bit mask, 0 = not engaged.
        shown: bool [B]; False: sampled, not in any log.
        log_rate: float32 [B], :meth:`PopularItems.log_rate`; 0 where the candidates come from a log.
    """

    user: np.ndarray
    time: np.ndarray
    history: np.ndarray
    cut: np.ndarray
    offsets: np.ndarray
    item: np.ndarray
    action: np.ndarray
    shown: np.ndarray
    log_rate: np.ndarray

    def __len__(self) -> int:
        return len(self.user)

    def take(self, index: np.ndarray) -> Slates:
        """The slates ``index`` (int64 [J], any order)."""
        starts, sizes = self.offsets[index], np.diff(self.offsets)[index]
        offsets, rows = offsets_of(sizes), rows_of(starts, sizes)
        return Slates(
            self.user[index],
            self.time[index],
            self.history[index],
            self.cut[index],
            offsets,
            self.item[rows],
            self.action[rows],
            self.shown[rows],
            self.log_rate[rows],
        )


class PopularItems:
    """Draws items by popularity within a surface: the stand-in for impressions that were not logged.

    Args:
        item: int64 [I].
        surface: int32 [I].
        count: [I], how often each was seen; items never seen are left out.
        power: counts are raised to it; 1 draws by popularity, 0 uniformly.
    """

    def __init__(self, item: np.ndarray, surface: np.ndarray, count: np.ndarray, power: float = 1.0) -> None:
        keep = np.flatnonzero(np.asarray(count) > 0)
        order = keep[np.lexsort((item[keep], surface[keep]))]
        self._item = np.asarray(item, np.int64)[order]
        weight = np.asarray(count, np.float64)[order] ** power
        self._mass = np.concatenate([[0.0], np.cumsum(weight)])
        self._surfaces, first = np.unique(np.asarray(surface)[order], return_index=True)
        self._low = first
        self._high = np.append(first[1:], len(order))
        # of a row: its log weight less that of an average draw from its surface
        self._items, code = np.unique(self._item, return_inverse=True)
        group = owners_of(self._high - first)
        self._code = group * len(self._items) + code
        sums = [np.bincount(group, w, minlength=len(first)) for w in (weight * np.log(weight), weight)]
        self._average = sums[0] / sums[1]
        self._log_rate = np.log(weight) - self._average[group]

    def __len__(self) -> int:
        return len(self._item)

    @property
    def items(self) -> np.ndarray:
        """int64 [I], grouped by surface."""
        return self._item

    def draw(self, surface: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """int64 [n]: one item for each of ``surface`` (int [n]). An unknown surface draws from all items."""
        if not len(self._item):
            return np.zeros(0, np.int64)
        surface = np.asarray(surface)
        place = np.minimum(np.searchsorted(self._surfaces, surface), len(self._surfaces) - 1)
        known = self._surfaces[place] == surface
        low = np.where(known, self._low[place], 0)
        high = np.where(known, self._high[place], len(self._item))
        point = self._mass[low] + rng.random(len(surface)) * (self._mass[high] - self._mass[low])
        return self._item[np.clip(np.searchsorted(self._mass, point, side="right") - 1, low, high - 1)]

    def log_rate(self, item: np.ndarray, surface: np.ndarray) -> np.ndarray:
        """float32 [n]: log of how often :meth:`draw` gives ``item`` on ``surface``, less what an average draw has.

        An item that the surface never had counts as seen there once. 0 on an unknown surface.
        """
        if not len(self._item):
            return np.zeros(len(item), np.float32)
        group = np.minimum(np.searchsorted(self._surfaces, surface), len(self._surfaces) - 1)
        code = np.minimum(np.searchsorted(self._items, item), len(self._items) - 1)
        wanted = group * len(self._items) + code
        place = np.minimum(np.searchsorted(self._code, wanted), len(self._code) - 1)
        known = (self._code[place] == wanted) & (self._items[code] == item)
        rate = np.where(known, self._log_rate[place], -self._average[group])
        return np.where(self._surfaces[group] == surface, rate, 0.0).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Requests:
    """Rows of an ``Events`` batch grouped by request.

    Attributes:
        user, request, time: int64 [K]; time is that of the request's first row.
        offsets: int64 [K + 1]; rows: int64 [offsets[-1]], row numbers in the batch.
    """

    user: np.ndarray
    request: np.ndarray
    time: np.ndarray
    offsets: np.ndarray
    rows: np.ndarray


def requests(events: Events) -> Requests:
    """Group by (user, request id); rows without a request id (0) group by (user, time). Ascending by (user,
    time)."""
    user = owners_of(events.lengths)
    named = events.request != 0
    mark = np.where(named, events.request, events.time)
    order = np.lexsort((events.time, mark, named, user))
    u, m, n = user[order], mark[order], named[order]
    starts = starts_of(u, m, n)
    sizes = lengths_between(starts, len(order))
    time = events.time[order][starts]
    by_time = np.lexsort((m[starts], time, u[starts]))
    offsets, place = offsets_of(sizes[by_time]), rows_of(starts[by_time], sizes[by_time])
    request = np.where(n, m, 0)[starts][by_time]
    return Requests(u[starts][by_time], request, time[by_time], offsets, order[place])


def events_before(events: Events, user: np.ndarray, time: np.ndarray) -> np.ndarray:
    """int64 [n]: how many events of ``user`` (int64 [n]) happened strictly before ``time`` (int64 [n]).

    One vectorised binary search over each user's ascending times.
    """
    low, high = events.offsets[user].copy(), events.offsets[user + 1].copy()
    while True:
        open_ = low < high
        if not open_.any():
            return low - events.offsets[user]
        middle = (low + high) // 2
        earlier = np.zeros(len(low), bool)
        earlier[open_] = events.time[middle[open_]] < time[open_]
        low = np.where(open_ & earlier, middle + 1, low)
        high = np.where(open_ & ~earlier, middle, high)


def build_slates(
    events: Events,
    config: ExampleConfig,
    rng: np.random.Generator,
    popular: PopularItems | None = None,
    impressions: Events | None = None,
    wanted: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
) -> Slates:
    """Slates of all users of ``events``, ascending by (user, time).

    Args:
        events: histories in contract order.
        popular: where to draw negatives; needed when ``impressions`` is None.
        impressions: shown items of the same U users (action 0 = not engaged); requests found here only.
        rng: draws lags, positives, negatives and which slates without engagement stay.
        wanted: of (user int64 [K], time int64 [K]) tells which slates to make, bool [K]; None makes all.
    """
    source = impressions if impressions is not None else events
    found = requests(source)
    time = found.time
    if impressions is not None:
        time = _began(found, requests(events))
    history = events_before(events, found.user, time)
    still = time - config.lag_ms
    if config.lag_jitter_ms:
        still = still - rng.integers(0, config.lag_jitter_ms + 1, len(time))
    cut = np.minimum(events_before(events, found.user, still), history - config.lag_events)
    cut = np.maximum(cut - rng.integers(0, config.lag_jitter_events + 1, len(cut)), 0)

    slate = owners_of(np.diff(found.offsets))
    slate, item, action, surface = _distinct(
        slate, source.item[found.rows], source.action[found.rows], source.surface[found.rows]
    )
    engaged = np.bincount(slate[action != 0], minlength=len(time)) > 0
    kept = (history >= config.min_history) & (engaged | (rng.random(len(time)) < config.keep_unengaged))
    if config.min_pause_ms and len(events):
        before = events.offsets[found.user] + history - 1
        kept &= (history == 0) | (time - events.time[np.maximum(before, 0)] >= config.min_pause_ms)
    if wanted is not None:
        kept &= wanted(found.user, time)
    shown, log_rate = np.ones(len(slate), bool), np.zeros(len(slate), np.float32)
    if impressions is None:
        chosen = _choose(slate, config.max_positives, rng) & kept[slate]
        drawn_slate, drawn_item, drawn_surface = _negatives(
            slate, item, surface, chosen, config.negatives, popular, rng
        )
        slate = np.concatenate([slate[chosen], drawn_slate])
        item = np.concatenate([item[chosen], drawn_item])
        action = np.concatenate([action[chosen], np.zeros(len(drawn_item), np.int32)])
        shown = np.arange(len(slate)) < chosen.sum()
        log_rate = np.zeros(len(slate), np.float32)
        if popular is not None:
            log_rate = popular.log_rate(item, np.concatenate([surface[chosen], drawn_surface]))
    order = np.argsort(slate, kind="stable")
    offsets = offsets_of(np.bincount(slate, minlength=len(time)))
    everything = Slates(
        found.user,
        time,
        history,
        cut,
        offsets,
        item[order],
        action[order].astype(np.int32),
        shown[order],
        log_rate[order],
    )
    index = np.flatnonzero(kept)
    return everything.take(index[np.lexsort((time[index], found.user[index]))])


def _began(shown: Requests, engaged: Requests) -> np.ndarray:
    """int64 [K]: the earlier of the impressions' time and that of the history events with the same request
    id.

    Clocks of the two logs may differ by a little; the earlier one keeps the request's own events out.
    """
    time = shown.time.copy()
    keys = np.concatenate([engaged.request, shown.request])
    _, code = np.unique(keys, return_inverse=True)
    width = int(code.max(initial=0)) + 1
    theirs = engaged.user * width + code[: len(engaged.request)]
    ours = shown.user * width + code[len(engaged.request) :]
    named = engaged.request != 0
    theirs, begun = theirs[named], engaged.time[named]
    if len(theirs):
        order = np.argsort(theirs, kind="stable")
        place = np.minimum(np.searchsorted(theirs[order], ours), len(order) - 1)
        same = (theirs[order][place] == ours) & (shown.request != 0)
        time[same] = np.minimum(time[same], begun[order][place][same])
    return time


def _distinct(
    slate: np.ndarray, item: np.ndarray, action: np.ndarray, surface: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """One row per (slate, item), in order of first appearance within the slate, with its actions joined."""
    if not len(slate):
        return slate, item, action, surface
    order = np.lexsort((item, slate))
    fresh = np.ones(len(order), bool)
    fresh[1:] = (slate[order][1:] != slate[order][:-1]) | (item[order][1:] != item[order][:-1])
    starts = np.flatnonzero(fresh)
    joined = np.bitwise_or.reduceat(action[order], starts)
    first = np.minimum.reduceat(order, starts)
    back = np.argsort(first, kind="stable")
    rows = first[back]
    return slate[rows], item[rows], joined[back], surface[rows]


def _choose(slate: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    """bool [B]: at most ``most`` rows of each slate, drawn."""
    order = np.lexsort((rng.random(len(slate)), slate))
    ordered = slate[order]
    sizes = np.bincount(ordered) if len(ordered) else np.zeros(0, np.int64)
    first = offsets_of(sizes)[:-1]
    chosen = np.zeros(len(slate), bool)
    chosen[order] = np.arange(len(ordered)) - first[ordered] < most
    return chosen


def _negatives(
    slate: np.ndarray,
    item: np.ndarray,
    surface: np.ndarray,
    chosen: np.ndarray,
    per_positive: int,
    popular: PopularItems | None,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(slate, item, surface) of distinct drawn negatives; none is among the request's own items, chosen or
    not."""
    if popular is None or not len(popular) or not per_positive:
        empty = np.zeros(0, np.int64)
        return empty, empty, empty
    want_slate, want_surface = (np.repeat(x[chosen], per_positive) for x in (slate, surface))
    drawn = popular.draw(want_surface, rng)
    every_slate = np.concatenate([slate, want_slate])
    every_item = np.concatenate([item, drawn])
    # A stable sort puts the request's own rows first: whatever equals an earlier row of its slate is dropped.
    order = np.lexsort((every_item, every_slate))
    again = np.zeros(len(order), bool)
    again[1:] = (every_slate[order][1:] == every_slate[order][:-1]) & (
        every_item[order][1:] == every_item[order][:-1]
    )
    fresh = np.ones(len(order), bool)
    fresh[order] = ~again
    kept = fresh[len(slate) :]
    return want_slate[kept], drawn[kept], want_surface[kept]
