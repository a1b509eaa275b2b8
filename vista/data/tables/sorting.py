"""Order and identity of rows: sort by user and then by columns, time first; find duplicates.

Events sort by ``vista.data.events.ORDER``, impressions by :data:`IMPRESSION_ORDER`. A row's user is given
as ``rank``, its user's place in key order, so that int64 and string users sort alike.
Sorting packs rank and time into one 64-bit key and looks at the other columns only where that key ties.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from vista.data.events import ORDER

IMPRESSION_ORDER: tuple[str, ...] = ("time", "request", "position", "item", "action")
"""Sort key of impressions within a user, most significant first."""


def _packed(rank: np.ndarray, time: np.ndarray) -> np.ndarray | None:
    """int64 [N] that orders as (rank, time), or None where it does not fit."""
    low, high = int(time.min()), int(time.max())
    bits = (high - low).bit_length()
    if int(rank.max()).bit_length() + bits > 63:
        return None
    return (rank << bits) | (time - low)


def order(
    rank: np.ndarray, columns: Mapping[str, np.ndarray], presorted: bool = False, names: Sequence[str] = ORDER
) -> np.ndarray | None:
    """The permutation that sorts rows, or None where they are in order.

    Args:
        rank: int64 [N], 0 or more.
        columns: the columns of ``names``, [N] each.
        presorted: the rows are a few sorted runs one after the other; decides the algorithm, not the result
            (rows that tie in every column are equal).
        names: sort key, most significant first; the first is ``time``.
    """
    n = len(rank)
    if n < 2:
        return None
    key = _packed(rank, columns["time"])
    if key is not None:
        step = key[1:] >= key[:-1]
        index = None if step.all() else np.argsort(key, kind="stable" if presorted else None)
        sorted_key = key if index is None else key[index]
        tied = sorted_key[1:] == sorted_key[:-1]
    else:
        index = np.lexsort((columns["time"], rank))
        r, t = rank[index], columns["time"][index]
        tied = (r[1:] == r[:-1]) & (t[1:] == t[:-1])
    fix = _order_of_ties(tied, columns, index, names[1:])
    if fix is not None:
        rows, by = fix
        index = np.arange(n) if index is None else index
        index[rows] = index[by]
    return index


def _order_of_ties(
    tied: np.ndarray, columns: Mapping[str, np.ndarray], index: np.ndarray | None, names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray] | None:
    """(places, which places' rows go there) that puts rows of each tie in order of ``names``; None where they are."""
    if not names or not tied.any():
        return None
    # Rows that take part in a tie, and the number of their tie.
    member = np.zeros(len(tied) + 1, bool)
    member[1:] = tied
    member[:-1] |= tied
    rows = np.flatnonzero(member)
    starts = np.ones(len(rows), bool)
    starts[1:] = ~tied[rows[1:] - 1]
    group = np.cumsum(starts) - 1
    places = rows if index is None else index[rows]
    values = [columns[name][places] for name in names]
    same = ~starts[1:]
    sorted_so_far = True
    for column in values:
        step = column[1:] < column[:-1]
        if (same & step).any():
            sorted_so_far = False
            break
        same &= column[1:] == column[:-1]
    if sorted_so_far:
        return None
    local = np.lexsort((*reversed(values), group))
    return rows, rows[local]


def repeats(rank: np.ndarray, columns: Mapping[str, np.ndarray], names: Sequence[str] = ORDER) -> np.ndarray:
    """bool [N] of sorted rows: the row equals the one before it in user and in every column."""
    same = np.zeros(len(rank), bool)
    if len(rank) < 2:
        return same
    equal = columns["item"][1:] == columns["item"][:-1]
    if equal.any():
        equal &= rank[1:] == rank[:-1]
        for name in names:
            if name != "item" and equal.any():
                equal &= columns[name][1:] == columns[name][:-1]
    same[1:] = equal
    return same


def present(
    rank: np.ndarray,
    columns: Mapping[str, np.ndarray],
    old_rank: np.ndarray,
    old: Mapping[str, np.ndarray],
    names: Sequence[str] = ORDER,
) -> np.ndarray:
    """bool [N]: the row is among the ``old`` rows [M]. Neither side need be sorted."""
    n = len(rank)
    if not n or not len(old_rank):
        return np.zeros(n, bool)
    both = {name: np.concatenate([old[name], columns[name]]) for name in names}
    ranks = np.concatenate([old_rank, rank])
    is_new = np.concatenate([np.zeros(len(old_rank), bool), np.ones(n, bool)])
    # Equal rows become neighbours; a run of equal rows is known if any of them is old.
    index = order(ranks, both, names=names)
    index = np.arange(len(ranks)) if index is None else index
    run = np.cumsum(~repeats(ranks[index], {name: c[index] for name, c in both.items()}, names)) - 1
    known = np.zeros(run[-1] + 1, bool)
    known[run[~is_new[index]]] = True
    found = np.zeros(len(ranks), bool)
    found[index] = known[run]
    return found[is_new]
