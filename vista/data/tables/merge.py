"""One stream out of many sorted files: k-way merge, duplicates dropped, bounded memory, users in key order.

Every file is read through a window of rows. A round takes from all windows the rows before the *cut*, the smallest
(user, time) that some file may still add to; rows that share the cut stay behind, so rows that tie in time always
meet in one round and are put in contract order whatever order they had in their file. Rows are then handed on in
batches of whole users where those fit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from vista.data.tables import sorting
from vista.data.tables.rows import HISTORY, Kind, Rows, batches_of, ranks
from vista.jagged import owners_of, starts_of

MIN_WINDOW = 2_048


class _Window:
    """The rows of one file that were read and not yet taken. Grows only while all of it ties in (user, time)."""

    def __init__(self, batches: Iterator[Rows]):
        self._batches = batches
        self.rows: Rows | None = None
        self.done = False
        self.refill()
        self._full = len(self)

    def refill(self) -> None:
        """Append the next batch of the file."""
        batch = next(self._batches, None)
        if batch is None:
            self.done = True
            return
        if self.rows is None or not len(self.rows):
            self.rows = batch
            return
        old = self.rows
        joined = {n: np.concatenate([old.columns[n], batch.columns[n]]) for n in old.columns}
        if old.users[-1] == batch.users[0]:
            lengths = np.concatenate([old.lengths, batch.lengths[1:]])
            lengths[len(old.lengths) - 1] += batch.lengths[0]
            users = np.concatenate([old.users, batch.users[1:]])
        else:
            lengths = np.concatenate([old.lengths, batch.lengths])
            users = np.concatenate([old.users, batch.users])
        self.rows = Rows(users, lengths, joined)

    def __len__(self) -> int:
        return 0 if self.rows is None else len(self.rows)

    @property
    def low(self) -> bool:
        """Less than half of a batch is left."""
        return 2 * len(self) < self._full

    def edge(self) -> tuple[Any, int]:
        """(user, time) of the last row; rows before it are complete in this file."""
        assert self.rows is not None
        return self.rows.users[-1], int(self.rows.columns["time"][-1])

    def take(self, cut: tuple[Any, int] | None) -> Rows | None:
        """Remove and return the rows before ``cut``; all rows where there is none."""
        if self.rows is None or not len(self.rows):
            return None
        rows = self.rows
        if cut is None:
            self.rows = None
            return rows
        user, time = cut
        at = int(np.searchsorted(rows.users, user))
        stop = int(rows.lengths[:at].sum())
        if at < len(rows.users) and rows.users[at] == user:
            end = stop + int(rows.lengths[at])
            stop += int(np.searchsorted(rows.columns["time"][stop:end], time))
        if stop == 0:
            return None
        self.rows = rows.slice(stop, len(rows))
        return rows.slice(0, stop)


def joined(parts: Sequence[Rows], kind: Kind, presorted: bool = True) -> tuple[Rows, int]:
    """All rows of the parts in order, each once, and how many were dropped as duplicates."""
    if len(parts) == 1:
        users, lengths, columns = parts[0].users, parts[0].lengths, parts[0].columns
        rank = owners_of(lengths)
    else:
        users, rank = ranks(parts)
        columns = {n: np.concatenate([p.columns[n] for p in parts]) for n in kind.order}
    index = sorting.order(rank, columns, presorted, kind.order)
    if index is not None:
        rank = rank[index]
        columns = {n: c[index] for n, c in columns.items()}
    again = sorting.repeats(rank, columns, kind.order)
    dropped = int(again.sum())
    if dropped:
        keep = ~again
        rank = rank[keep]
        columns = {n: c[keep] for n, c in columns.items()}
    lengths = np.bincount(rank, minlength=len(users)).astype(np.int64)
    return Rows(users, lengths, columns), dropped


def merged(streams: Sequence[Iterator[Rows]], kind: Kind) -> Iterator[tuple[Rows, int]]:
    """Merge sorted streams of row batches: (rows in order without duplicates, duplicates dropped) per round.

    A user, even a (user, time) never, may go on in the next round; rows that tie in (user, time) never do.
    """
    windows = [w for w in map(_Window, streams) if len(w)]
    while windows:
        open_edges = [w.edge() for w in windows if not w.done]
        cut = min(open_edges, key=lambda edge: (edge[0], edge[1])) if open_edges else None
        parts = [part for w in windows if (part := w.take(cut)) is not None]
        if parts:
            yield joined(parts, kind)
        for w in windows:
            # The window that set the cut has only ties left. Others are filled up in time, so that every round can
            # take much of all of them.
            if not w.done and (w.low or w.edge() == cut):
                w.refill()
        windows = [w for w in windows if len(w) or not w.done]


def rebatched(blocks: Iterable[Rows], max_rows: int) -> Iterator[tuple[Rows, bool]]:
    """The same rows in batches of at most ``max_rows``: whole users where they fit.

    Yields:
        (rows, continues): ``continues`` says that the last user goes on in the next batch. Where batches end depends
        only on the rows and ``max_rows``, not on how the blocks were cut.
    """
    pending: list[Rows] = []
    count = 0
    for block in blocks:
        if not len(block):
            continue
        pending.append(block)
        count += len(block)
        if count <= max_rows:
            continue
        rest = _glued(pending)
        while len(rest) > max_rows:
            ends = np.cumsum(rest.lengths)
            whole = int(np.searchsorted(ends, max_rows, side="right"))
            stop = int(ends[whole - 1]) if whole else max_rows
            yield rest.slice(0, stop), whole == 0
            rest = rest.slice(stop, len(rest))
        pending, count = [rest], len(rest)
    if count:
        yield _glued(pending), False


def _glued(parts: Sequence[Rows]) -> Rows:
    """Consecutive blocks as one; a user that spans blocks becomes one run."""
    if len(parts) == 1:
        return parts[0]
    users = np.concatenate([p.users for p in parts])
    lengths = np.concatenate([p.lengths for p in parts])
    first = starts_of(users)
    columns = {n: np.concatenate([p.columns[n] for p in parts]) for n in parts[0].columns}
    return Rows(users[first], np.add.reduceat(lengths, first), columns)


def read_sorted(
    uris: Sequence[str], kind: Kind = HISTORY, *, max_rows: int, users: np.ndarray | None = None
) -> Iterator[tuple[Rows, bool]]:
    """Merge sorted files of one bucket; see :func:`rebatched` for what is yielded.

    Memory: about ``2 * max_rows`` rows in windows and batches, plus one compressed row group per file, plus the rows
    of the largest set of events that share user and millisecond.

    Raises:
        DataError: see ``vista.data.tables.rows.batches_of``.
    """
    window = max(MIN_WINDOW, max_rows // max(len(uris), 1))
    streams = [batches_of(uri, kind, window, users) for uri in uris]
    return rebatched((rows for rows, _ in merged(streams, kind)), max_rows)
