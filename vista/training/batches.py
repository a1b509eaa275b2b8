"""Slates and their users' histories to batches: what one step of training reads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vista.data.events import Events
from vista.data.recent import select_recent
from vista.jagged import offsets_of, owners_of
from vista.training.examples import ExampleConfig, Slates


@dataclass(frozen=True, slots=True)
class Visit:
    """Consecutive slates of one user and the window of events they need.

    Attributes:
        owner: int, the user as a number (same number, same user).
        events: one history: the window. ``slates.history`` and ``slates.cut`` count from its start.
        slates: of this user; ``user`` is 0 throughout.
    """

    owner: int
    events: Events
    slates: Slates


def visits(
    events: Events, owners: np.ndarray, slates: Slates, config: ExampleConfig, recent: int
) -> list[Visit]:
    """Cut the slates of each user into visits of at most ``slates_per_visit`` whose windows stay bounded.

    A window begins ``max_history`` events before the first slate's summary cut (earlier if its recent events
    need it) and ends before the last slate; a visit ends early rather than spanning more than ``max_history``
    events.

    Args:
        owners: int64 [U].
        recent: R, raw events a slate reads beside its summary.
    """
    out: list[Visit] = []
    k, total = 0, len(slates)
    while k < total:
        user = int(slates.user[k])
        stop = k + 1
        while (
            stop < total
            and stop - k < config.slates_per_visit
            and slates.user[stop] == user
            and slates.history[stop] - slates.cut[k] <= config.max_history
        ):
            stop += 1
        part = slates.take(np.arange(k, stop))
        first = int(min(part.cut.min() - config.max_history, (part.history - recent).min()))
        first, last = max(first, 0), int(part.history.max())
        base = int(events.offsets[user])
        window = Slates(
            np.zeros(len(part), np.int64),
            part.time,
            part.history - first,
            part.cut - first,
            part.offsets,
            part.item,
            part.action,
            part.shown,
            part.log_rate,
        )
        out.append(Visit(int(owners[user]), events.rows(base + first, base + last), window))
        k = stop
    return out


@dataclass(frozen=True, slots=True)
class Batch:
    """What one training step eats, deduplicated: V windows, K contexts (one per slate), B candidates.

    Attributes:
        events: V windows.
        owner: int64 [V].
        user_of: int64 [K], window of each slate.
        cut: int64 [K], events of the window in the summary.
        recent: K histories of at most R events, the newest before each slate.
        now_ms: int64 [K].
        last_event_ms: int64 [K], of the summary's last event (``now_ms`` where it has none).
        offsets: int64 [K + 1].
        item: int64, action: int32, shown: bool, log_rate: float32 [B].
    """

    events: Events
    owner: np.ndarray
    user_of: np.ndarray
    cut: np.ndarray
    recent: Events
    now_ms: np.ndarray
    last_event_ms: np.ndarray
    offsets: np.ndarray
    item: np.ndarray
    action: np.ndarray
    shown: np.ndarray
    log_rate: np.ndarray

    def __len__(self) -> int:
        """K."""
        return len(self.cut)

    def weights(self, keep_unengaged: float) -> np.ndarray:
        """float32 [B]: how many logged candidates each stands for, where ``keep_unengaged`` of the logged slates
        without any engagement were kept; 1 for all others."""
        slate = np.repeat(np.arange(len(self)), np.diff(self.offsets))
        engaged = np.bincount(slate[self.action != 0], minlength=len(self)) > 0
        left_out = self.shown & ~engaged[slate]
        return np.where(left_out, 1 / max(keep_unengaged, 1e-6), 1).astype(np.float32)


def collate(group: list[Visit], recent: int, pool: int = 0) -> Batch:
    """Join visits into a batch; R = ``recent`` chosen among ``pool`` events (see ``ExampleConfig``)."""
    events = Events.concat([v.events for v in group])
    sizes = [len(v.slates) for v in group]
    user_of = owners_of(sizes)

    def join(name: str) -> np.ndarray:
        return np.concatenate([getattr(v.slates, name) for v in group])

    history, cut, time = join("history"), join("cut"), join("time")
    base = events.offsets[user_of]
    offsets = offsets_of(np.concatenate([np.diff(v.slates.offsets) for v in group]))
    before = events.slices(base + np.maximum(history - max(recent, pool), 0), base + history)
    seen = cut > 0
    last = time.copy()
    last[seen] = events.time[(base + cut - 1)[seen]]
    return Batch(
        events,
        np.array([v.owner for v in group], np.int64),
        user_of.astype(np.int64),
        cut,
        before if pool <= recent else select_recent(before, recent),
        time,
        last,
        offsets.astype(np.int64),
        join("item"),
        join("action"),
        join("shown"),
        join("log_rate"),
    )
