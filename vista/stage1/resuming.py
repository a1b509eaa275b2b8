"""New events joined to what a state keeps of the old ones, before any of them is encoded."""

from __future__ import annotations

import numpy as np

from vista.data.events import COLUMNS, ORDER, Events
from vista.embedding.encoders import NO_TIME
from vista.errors import DataError
from vista.jagged import offsets_of, owners_of
from vista.stage1.state import UserState, event_key


def joined(events: Events, given: list[UserState | None]) -> tuple[Events, np.ndarray]:
    """Each user's tail and new events as one run, in order and without copies; and who is late, bool [U].

    Events at or before the state's boundary are left out: a copy of the boundary event silently, others make
    their user late.
    """
    late = np.zeros(events.users, bool)
    if not any(state is not None for state in given):
        return events, late
    keep = np.ones(len(events), bool)
    owner = owners_of(events.lengths)
    boundary = np.array([s.boundary[0] if s and s.boundary else NO_TIME for s in given], np.int64)
    older = events.time < boundary[owner]
    late[owner[older]] = True
    keep[older] = False
    for row in np.flatnonzero(events.time == boundary[owner]).tolist():
        key, folded = event_key(events, row), given[owner[row]].boundary
        late[owner[row]] |= key < folded
        keep[row] = key > folded
    if not keep.all():
        events = _take(events, keep)
    tails = [state.tail if state is not None else Events.empty(1) for state in given]
    held = Events.concat(tails)
    found = Events.append(held, events)
    both = (held.lengths > 0) & (events.lengths > 0)
    newest = held.time[np.maximum(held.offsets[1:] - 1, 0)[both]]
    if bool((events.time[events.offsets[:-1][both]] <= newest).any()):
        found = found.sorted()
        same = np.ones(len(found), bool)
        for name in ORDER:
            column = getattr(found, name)
            same[1:] &= column[1:] == column[:-1]
        same[found.offsets[:-1][found.lengths > 0]] = False
        found = _take(found, ~same) if same.any() else found
    return found, late


def capped(events: Events, given: list[UserState | None], cap: int) -> tuple[Events, np.ndarray]:
    """Users without a state cut to their newest ``cap`` events; and whose state now covers over twice that."""
    fresh = np.array([state is None for state in given], bool)
    total = events.lengths + np.array([state.count if state else 0 for state in given], np.int64)
    start = np.where(fresh, np.maximum(events.offsets[1:] - cap, events.offsets[:-1]), events.offsets[:-1])
    if bool((start > events.offsets[:-1]).any()):
        events = events.slices(start, events.offsets[1:])
    return events, ~fresh & (total > 2 * cap)


def _take(events: Events, keep: np.ndarray) -> Events:
    """Rows where ``keep``, same users."""
    kept = offsets_of(keep)
    lengths = np.diff(kept[events.offsets])
    return Events.of(lengths, **{name: getattr(events, name)[keep] for name in COLUMNS})


def check_order(events: Events) -> None:
    """Raise DataError unless every user's events ascend in time."""
    back = events.time[1:] < events.time[:-1]
    starts = events.offsets[1:-1]
    starts = starts[(starts > 0) & (starts < len(events))]
    back[starts - 1] = False
    if back.any():
        row = int(np.flatnonzero(back)[0]) + 1
        raise DataError(
            f"events: expected ascending time within a user, found row {row} before row {row - 1}; "
            "put histories in contract order (Events.sorted), or make the tables with vista ingest"
        )
