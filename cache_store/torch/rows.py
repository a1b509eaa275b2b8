"""Training rows with the summaries that serving would have had: as-of reads as torch datasets.

A row is a user and a time (of its label, a request, an impression). It gets the tokens of the newest kept generation
whose watermark is at least ``lag_ms`` before that time, so it never sees a summary made from its own future, nor from
the event it is to predict (law 10). Rows older than every kept generation get no summary: MISSING.

    rows = AsOfRows(store, users, times, columns={"item": items}, lag_ms=60_000)
    DataLoader(rows, batch_size=512, shuffle=True, collate_fn=AsOfRows.collate, num_workers=2)      # map style
    DataLoader(AsOfBatches(rows, batch_size=512, seed=1), batch_size=None, num_workers=2)           # iterable
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from cache_store.errors import SchemaError
from cache_store.format.keys import Users, as_users
from cache_store.read.options import moments
from cache_store.store import Store

Batch = dict[str, Any]


class AsOfRows(Dataset[Any]):
    """N rows, each with the summary of its user as of ``time - lag_ms``. Map style; also by whole batches.

    Workers, forked or spawned, take the store with them and map its files again, sharing the page cache.

    Args:
        store: open on the line to train from.
        users: int64 [N] or N strings.
        times: int64 [N], milliseconds; of the row's label.
        columns: further arrays [N, …], passed through by name.
        lag_ms: smallest distance between a watermark and the row's time, 1 or more: a watermark says "no later than",
            so with 0 the row's own event could be inside.

    Raises:
        SchemaError: lengths differ, times are no numbers, a column has the name of a field, or ``lag_ms`` is below 1.
        KeyKind.
    """

    def __init__(
        self,
        store: Store,
        users: Users,
        times: np.ndarray,
        *,
        columns: Mapping[str, np.ndarray] | None = None,
        lag_ms: int = 1,
    ) -> None:
        self.store, self.users = store, as_users(users, store.format.user_kind)
        self.times, self.lag_ms = moments(times), int(lag_ms)
        self.columns = {name: np.asarray(column) for name, column in (columns or {}).items()}
        if self.lag_ms < 1:
            raise SchemaError(f"lag_ms: expected 1 or more, found {lag_ms}; a row must not see its own event")
        if self.times.shape != (len(self.users),):
            raise SchemaError(f"times: expected shape ({len(self.users)},), found {self.times.shape}")
        for name, column in self.columns.items():
            if len(column) != len(self.users):
                raise SchemaError(f"column {name}: expected {len(self.users)} rows, found {len(column)}")
            if name in FIELDS:
                raise SchemaError(f"column {name}: this name belongs to the summaries; rename it")

    def __len__(self) -> int:
        return len(self.users)

    def batch(self, rows: Sequence[int] | np.ndarray) -> Batch:
        """Rows by number: one lookup per generation that they need.

        Returns:
            ``user`` (int64 tensor [B], or a list of str), ``time`` int64 [B], ``tokens`` float32 [B, S, D],
            ``status`` uint8 [B], ``event_count``, ``last_event_ms``, ``summarized_ms`` int64 [B], ``generation``
            (list of str, "" where no generation is old enough), and the columns.
        """
        rows = np.asarray(rows, np.int64)
        users, times = self.users[rows], self.times[rows]
        found = self.store.lookup(users, as_of=times - self.lag_ms)
        out: Batch = {
            "user": users.tolist() if users.dtype == object else torch.from_numpy(users),
            "time": torch.from_numpy(times),
            "tokens": torch.from_numpy(found.tokens),
            "status": torch.from_numpy(found.status),
            "event_count": torch.from_numpy(found.event_count),
            "last_event_ms": torch.from_numpy(found.last_event_ms),
            "summarized_ms": torch.from_numpy(found.summarized_ms),
            "generation": list(found.generation),
        }
        for name, column in self.columns.items():
            part = column[rows]
            out[name] = part.tolist() if part.dtype.kind in "OUS" else torch.from_numpy(part)
        return out

    def __getitem__(self, row: int) -> Batch:
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        return {name: column[0] for name, column in self.batch([row % len(self)]).items()}

    def __getitems__(self, rows: Sequence[int]) -> Batch:
        """A DataLoader's way to ask for a batch; use :meth:`collate` with it."""
        return self.batch(rows)

    @staticmethod
    def collate(batch: Batch) -> Batch:
        """Batches come out of :meth:`__getitems__` whole."""
        return batch


FIELDS = frozenset(
    ("user", "time", "tokens", "status", "event_count", "last_event_ms", "summarized_ms", "generation")
)
"""Names that :meth:`AsOfRows.batch` gives."""


class AsOfBatches(IterableDataset[Any]):
    """Whole batches of :class:`AsOfRows`, every row once per epoch; workers share them out.

    Batches are the same whatever the number of workers; their order among workers is the DataLoader's.

    Args:
        batch_size: rows per batch; the last may be smaller.
        seed: shuffles the rows by ``(seed, epoch)``; None keeps their order, which reads fewest generations per batch
            where rows are sorted by time.
        epoch: set it before each pass.
    """

    def __init__(self, rows: AsOfRows, batch_size: int, seed: int | None = None, epoch: int = 0) -> None:
        super().__init__()
        if batch_size < 1:
            raise SchemaError(f"batch_size: expected 1 or more, found {batch_size}")
        self.rows, self.batch_size, self.seed, self.epoch = rows, batch_size, seed, epoch

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        order = np.arange(len(self.rows))
        if self.seed is not None:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(order)
        info = get_worker_info()
        first, step = (0, 1) if info is None else (info.id, info.num_workers)
        for number in range(first, len(self), step):
            yield self.rows.batch(order[number * self.batch_size : (number + 1) * self.batch_size])
