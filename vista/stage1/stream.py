"""Stage 1 over a whole bucket: batches of users in, summaries in key order out, at bounded memory.

Batches are joined into windows of at most ``max_events`` events. Within a window, users are packed into full
steps (``vista/stage1/packing.py``), so rate does not depend on how lengths are spread. A user that goes on beyond a
window folds its full chunks and is carried as a state plus fewer than C raw events, so a million events need
no more memory than a window. What windows hold depends only on the batches, so the same batches give the same
bytes on any worker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vista.data.events import COLUMNS, Events, UserBatch
from vista.stage1.state import UserState
from vista.stage1.summarizer import Summarizer

_OUT_BYTES = 48 << 20


@dataclass(slots=True)
class SummaryBatch:
    """Summaries of consecutive users in key order.

    Attributes:
        users: ids as they came in, [n].
        tokens: group name to float32 [n, S_g, D].
        states: to go on from; None where the model cannot resume.
        event_count: int64 [n], events of the whole history.
        last_event_ms: int64 [n], 0 for an empty history.
        late: bool [n], must be summarised again from the whole history.
    """

    users: Any
    tokens: dict[str, np.ndarray]
    states: list[UserState | None]
    event_count: np.ndarray
    last_event_ms: np.ndarray
    late: np.ndarray


def summarize_stream(
    model: Any,
    batches: Iterator[UserBatch],
    states: Callable[[Any], Sequence[UserState | None]] | None = None,
    max_events: int = 262_144,
) -> Iterator[SummaryBatch]:
    """Summaries of every user of ``batches``, in the order they come.

    Args:
        model: a ``VistaModel`` or a ``Summarizer``.
        batches: consecutive users in key order (``read_bucket``), events in contract order.
        states: the states of given users, for a refresh; None to start every user from nothing.
        max_events: events held at a time. Memory is about 40 bytes per event, plus one step of activations, plus some
            150 MiB for the summaries on their way out.

    Yields:
        one or more batches per window; a user is never split.

    Raises:
        DataError, StateError: as :meth:`vista.stage1.summarizer.Summarizer.summarize`.
    """
    summarizer: Summarizer = getattr(model, "summarizer", model)
    width = sum(tokens * d for _, tokens, d, _ in summarizer.groups())
    per_batch = max(1, _OUT_BYTES // (4 * width))
    carry: _Carry | None = None
    for window in _windows(batches, max_events):
        users = len(window.users)
        given: list[UserState | None] = list(states(window.users)) if states is not None else [None] * users
        late = np.zeros(users, bool)
        events = window.events
        if carry is not None:
            given[0], late[0] = carry.state, carry.late
            events = Events.append(Events.concat([carry.raw, Events.empty(users - 1)]), events)
        ends = users - 1 if window.continues else users
        for a in range(0, ends, per_batch):
            b = min(a + per_batch, ends)
            part = events.slices(events.offsets[a:b], events.offsets[a + 1 : b + 1])
            yield _batch(summarizer, window.users[a:b], part, given[a:b], late[a:b])
        carry = (
            _carried(summarizer, events.user(ends), given[ends], bool(late[ends]))
            if window.continues
            else None
        )


def _batch(
    summarizer: Summarizer, users: Any, events: Events, given: list[UserState | None], late: np.ndarray
) -> SummaryBatch:
    summary = summarizer.summarize(events, given)
    keys = [state.last_key if state is not None else None for state in summary.states]
    if summarizer.resumable:
        count = np.array([state.total for state in summary.states if state is not None], np.int64)
        last = np.array([key[0] if key is not None else 0 for key in keys], np.int64)
    else:
        count = events.lengths
        cap = summarizer.config.summarizer.max_events
        count = np.minimum(count, cap) if cap else count
        last = np.zeros(len(count), np.int64)
        last[count > 0] = events.time[events.offsets[1:][count > 0] - 1]
    return SummaryBatch(users, summary.tokens, summary.states, count, last, late | summary.late)


@dataclass(slots=True)
class _Carry:
    """The user that goes on beyond a window: what is folded, and raw events where folding must wait."""

    state: UserState | None
    raw: Events
    late: bool


def _carried(summarizer: Summarizer, events: Events, state: UserState | None, late: bool) -> _Carry:
    cap = summarizer.config.summarizer.max_events
    if state is None and (cap or not summarizer.resumable):
        # where the kept history starts is known only at its end; without chunks nothing can be folded at all
        n = len(events)
        return _Carry(None, events.rows(max(0, n - cap) if cap else 0, n), late)
    _, states, now_late = summarizer.advance(events, [state], np.zeros(1, bool))
    return _Carry(states[0], Events.empty(1), late or bool(now_late[0]))


def _windows(batches: Iterator[UserBatch], max_events: int) -> Iterator[UserBatch]:
    """Batches joined while they hold at most ``max_events`` events together."""
    held: list[UserBatch] = []
    size = 0
    for batch in batches:
        if not len(batch.users):
            continue
        if held and size + len(batch.events) > max_events:
            yield _join(held)
            held, size = [], 0
        held.append(batch)
        size += len(batch.events)
    if held:
        yield _join(held)


def _join(batches: list[UserBatch]) -> UserBatch:
    if len(batches) == 1:
        return batches[0]
    # the first user of a batch is the last of the one before where that one says so
    new = [np.arange(len(b.users)) > 0 for b in batches]
    for before, begins in zip([None, *batches[:-1]], new, strict=True):
        begins[0] = before is None or not before.continues
    starts = np.flatnonzero(np.concatenate(new))
    lengths = np.add.reduceat(np.concatenate([b.events.lengths for b in batches]), starts)
    columns = {name: np.concatenate([getattr(b.events, name) for b in batches]) for name in COLUMNS}
    if isinstance(batches[0].users, np.ndarray):
        users: Any = np.concatenate([b.users for b in batches])[starts]
    else:
        ids = [user for b in batches for user in b.users]
        users = [ids[i] for i in starts]
    return UserBatch(users, Events.of(lengths, **columns), batches[-1].continues)
