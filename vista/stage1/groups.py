"""What every group of summary tokens has in common: one small interface.

A new kind of token is one class that has it, and one entry in ``Summarizer.token_groups``. A group may write several
groups of the record; what it keeps of a user is a dict of arrays in ``UserState.parts``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from torch import Tensor, nn

from vista.data.events import Events
from vista.embedding.encoders import NO_TIME, EventEncoder
from vista.ops.qla import Step
from vista.stage1.state import UserState

Parts = dict[str, np.ndarray]
"""What a group keeps of one user, by name."""


class GroupShape(NamedTuple):
    """A block of a record: ``tokens`` rows of ``width`` places, written by ``codec``."""

    name: str
    tokens: int
    width: int
    codec: str


@dataclass(frozen=True, slots=True)
class Work:
    """What one pass has to do, after new events were joined to what states kept.

    Attributes:
        events: U histories, each from its state's boundary on.
        given: the states, or None where a user starts from nothing.
        chunks: int64 [U], whole chunks to fold.
        emitted: int64 [K], users whose tokens are wanted.
        chunk: C, 0 for the full form.
    """

    events: Events
    given: list[UserState | None]
    chunks: np.ndarray
    emitted: np.ndarray
    chunk: int

    @property
    def count(self) -> np.ndarray:
        """int64 [U], events folded into the states."""
        return np.array([state.count if state else 0 for state in self.given], np.int64)

    @property
    def previous_ms(self) -> np.ndarray:
        """int64 [U], time of the event before the first row; ``NO_TIME`` where there is none."""
        return np.array([s.boundary[0] if s and s.boundary else NO_TIME for s in self.given], np.int64)

    def newest_ms(self, users: np.ndarray) -> np.ndarray:
        """int64 [V], time of the newest event of each of ``users`` (int64 [V]), the states' ones included."""
        row = self.events.offsets[1:][users] - 1
        own = self.events.lengths[users] > 0
        return np.where(own, np.append(self.events.time, 0)[row], self.previous_ms[users])

    @property
    def boundary(self) -> np.ndarray:
        """int64 [U], row of each user's first event that is not folded."""
        return self.events.offsets[:-1] + self.chunks * self.chunk

    def folded(self, users: np.ndarray) -> Events:
        """The whole chunks of ``users`` (int64 [V])."""
        return self.events.slices(self.events.offsets[:-1][users], self.boundary[users])

    def tails(self, users: np.ndarray) -> Events:
        """The events after the whole chunks of ``users`` (int64 [V])."""
        return self.events.slices(self.boundary[users], self.events.offsets[1:][users])


class TableShape(NamedTuple):
    """How groups of a record are read as a table; fields as in ``cache_store.format.record.Table``."""

    keys: str
    masses: str
    entries: int
    half_lives: tuple[float | None, ...]
    deciding: int
    numbers: str = ""
    of: int = 0


class TokenGroup(Protocol):
    """One kind of summary tokens."""

    def groups(self) -> list[GroupShape]:
        """What it writes into a record."""
        ...

    def tables(self) -> list[TableShape]:
        """Which of that is to be read as tables."""
        ...

    def advance(self, work: Work) -> tuple[dict[str, np.ndarray], dict[int, Parts]]:
        """Fold whole chunks and read: tokens by group, float32 [K, S_g, D], of the users emitted; and what to keep
        of each user that has folded anything by now, by its number."""
        ...

    def prefixes(
        self, events: Events, cuts: np.ndarray, user_of: np.ndarray, exact: bool
    ) -> dict[str, Tensor]:
        """As :meth:`vista.stage1.summarizer.Summarizer.prefixes`."""
        ...

    def modules(self) -> Iterable[nn.Module]:
        """What its tokens depend on."""
        ...


class SeedEncoder(nn.Module):
    """An encoder of seed tokens; one call runs one packed step.

    Attributes:
        seeds: [S, D].
        state_shape: shape of one history's state.
    """

    seeds: nn.Parameter
    state_shape: tuple[int, ...]

    def rows(self, events: EventEncoder, item: Tensor, *others: Tensor) -> Tensor:
        """What it reads of events, [N, D]; columns as ``EventEncoder`` takes them."""
        raise NotImplementedError

    def forward(
        self, x: Tensor, step: Step, carry: Tensor, reads: Tensor, kept: Tensor
    ) -> tuple[Tensor, Tensor]:
        """One step.

        Args:
            x: [rows, D], :meth:`rows` in the step's layout.
            carry: float32 [R, *state_shape], row 0 zero.
            reads: int64 [n], states the seeds read.
            kept: int64 [m], states to return.

        Returns:
            seed tokens [n, S, D], and states float32 [m, *state_shape].
        """
        raise NotImplementedError
