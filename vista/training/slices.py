"""Where a model ranks well: its AUC by length of the history, age of the summary, and age of the last touch.

A slate is a request; the age of its summary is the time between the last event that the summary has seen and the
request, that of the last touch the time since its user last touched the item engaged with, in what the summary and
the recent events hold (``new``: never).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vista.training import metrics
from vista.training.batches import Batch

HOUR_MS = 3_600_000
LENGTHS = (100, 300, 1_000, 3_000, 10_000, 30_000, 100_000)
"""Events; bounds of the slices of a history."""
HOURS = (1, 6, 24, 72, 168, 720, 2_160)
FEW = 5
"""Slates of which no figure is made."""


@dataclass
class SlateFacts:
    """What is noted of each slate that is judged: arrays by batch, [K] each."""

    length: list[np.ndarray] = field(default_factory=list)
    summary_ms: list[np.ndarray] = field(default_factory=list)
    touch_ms: list[np.ndarray] = field(default_factory=list)

    def noting(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches, noted as they pass."""
        for batch in batches:
            self.length.append(np.asarray(batch.cut, np.int64))
            self.summary_ms.append(np.asarray(batch.now_ms - batch.last_event_ms, np.int64))
            self.touch_ms.append(_touch_ms(batch))
            yield batch


def _touch_ms(batch: Batch) -> np.ndarray:
    """int64 [K]: since the newest touch of any item engaged with; -1 where there was none."""
    found = np.full(len(batch), -1, np.int64)
    for k in range(len(batch)):
        rows = slice(batch.offsets[k], batch.offsets[k + 1])
        wanted = batch.item[rows][batch.action[rows] != 0]
        window, recent = batch.events.user(int(batch.user_of[k])), batch.recent.user(k)
        now, cut = int(batch.now_ms[k]), int(batch.cut[k])
        times = [
            window.time[:cut][np.isin(window.item[:cut], wanted)],
            recent.time[np.isin(recent.item, wanted)],
        ]
        last = max((int(t.max()) for t in times if len(t)), default=None)
        if last is not None:
            found[k] = max(now - last, 0)
    return found


def sliced(facts: SlateFacts, score: np.ndarray, engaged: np.ndarray, offsets: np.ndarray, owner: np.ndarray,
           draws: int, seed: int) -> dict[str, list[dict[str, Any]]]:  # fmt: skip
    """AUC with its 95 % interval over users, by slice.

    Args:
        score: float [B].
        engaged: bool [B].
        offsets: int64 [K + 1].
        owner: int64 [K].

    Returns:
        ``history_events``, ``summary_age``, ``last_touch``: rows of ``slice``, ``requests``, ``auc``, ``low``,
        ``high``, ``mrr``; slices of fewer than :data:`FEW` requests are left out.
    """
    per = metrics.slate_metrics(score, engaged, offsets, (1,))
    group, auc, mrr = per["group"].astype(np.int64), per["auc"], per["mrr"]
    length, summary, touch = (np.concatenate(part)[group] if part else np.zeros(0, np.int64)
                              for part in (facts.length, facts.summary_ms, facts.touch_ms))  # fmt: skip

    def rows(which: np.ndarray, names: list[str]) -> list[dict[str, Any]]:
        found = []
        for n, name in enumerate(names):
            mine = (which == n) & ~np.isnan(auc)
            if mine.sum() < FEW:
                continue
            value, low, high = metrics.bootstrap(owner[group[mine]], auc[mine], draws=draws, seed=seed)
            found.append({"slice": name, "requests": int(mine.sum()), "auc": float(value), "low": float(low),
                          "high": float(high), "mrr": float(mrr[mine].mean())})  # fmt: skip
        return found

    hours = [_hours(h) for h in HOURS]
    ages = [f"under {hours[0]}", *(f"{a} to {b}" for a, b in zip(hours, hours[1:], strict=False)),
            f"over {hours[-1]}"]  # fmt: skip
    bounds = np.array(HOURS) * HOUR_MS
    lengths = [f"under {LENGTHS[0]:,}", *(f"{a:,} to {b:,}" for a, b in zip(LENGTHS, LENGTHS[1:], strict=False)),
               f"over {LENGTHS[-1]:,}"]  # fmt: skip
    by_touch = np.where(touch < 0, len(ages), np.searchsorted(bounds, touch, "right"))
    return {
        "history_events": rows(np.searchsorted(LENGTHS, length, "right"), lengths),
        "summary_age": rows(np.searchsorted(bounds, summary, "right"), ages),
        "last_touch": rows(by_touch, [*ages, "new"]),
    }


def _hours(hours: int) -> str:
    return f"{hours} h" if hours < 72 else f"{hours // 24} d"
