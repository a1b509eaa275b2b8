"""Exact tables of what a user touched: keys and decayed masses, in integers, kept while events stream.

A table holds at most K keys of a user, each with a mass per horizon. An event adds one to its key's masses; a mass
halves after so many later events. At every multiple of C events, counted from the user's first one, masses decay,
the chunk's events are added, and the K keys with the most recency-weighted mass stay (ties: the smaller key). Beside
its masses a key may have *facts* of its newest event (which one it was, when, what was done), whole numbers as well.

All of it is integer arithmetic: masses in fixed point, decays as integer factors, sums of integers. So a table is a
function of the events and of nothing else: not of how they were split, nor of the other users of a batch, nor of the
device (``tables_torch``), to the last bit. That is what makes dropping keys safe in something that has to be resumable.

Letters: U users, E entries, H horizons, F facts, K capacity, C chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from vista.data.events import Events

_FACTOR_BITS = 30
_MASS_BITS = 31
_PER_BLOCK = 1 << 20
"""Entries and events worked on at once: some 100 MB."""


class Horizons:
    """Half-lives in events as integers.

    Attributes:
        unit: int64 [H], what an event adds when it is the newest: as fine as keeps every sum below 2^31.
        weight: int64 [H, C], what an event adds when so many of its piece followed it.
        keep: int64 [H, C + 1], what so many events leave of a mass, in units of 2^-30.
        deciding: the horizon whose mass decides what stays: the first finite one.
    """

    def __init__(self, half_lives: tuple[float, ...], chunk: int) -> None:
        lives = np.array(half_lives, np.float64)[:, None]
        most = np.where(np.isinf(lives), 1.0, 1 / -np.expm1(-np.log(2) / np.minimum(lives, 2.0**40)))
        bits = np.where(np.isinf(lives), 0, _MASS_BITS - 1 - np.ceil(np.log2(most)))
        age = np.arange(chunk + 1)
        left = np.exp2(-age / lives)
        self.unit = (2.0 ** bits[:, 0]).astype(np.int64)
        self.weight = np.rint(2.0**bits * left[:, :-1]).astype(np.int64)
        self.keep = np.rint(2.0**_FACTOR_BITS * left).astype(np.int64)
        self.deciding = int(np.flatnonzero(np.isfinite(lives[:, 0]))[0])

    def __len__(self) -> int:
        return len(self.unit)

    def floats(self, mass: np.ndarray) -> np.ndarray:
        """Masses int64 [H, ...] as counts of events, float32 [..., H]."""
        unit = self.unit.reshape(-1, *[1] * (mass.ndim - 1))
        return np.moveaxis(mass / unit, 0, -1).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Entries:
    """Tables of U users.

    Attributes:
        offsets: int64 [U + 1].
        key: int64 [E], ascending within a user.
        mass: int64 [H + F, E]: masses in fixed point, then facts of the key's newest event.
    """

    offsets: np.ndarray
    key: np.ndarray
    mass: np.ndarray

    @property
    def users(self) -> int:
        return len(self.offsets) - 1

    def host(self) -> Entries:
        """The same as arrays."""
        return self

    @staticmethod
    def empty(users: int, columns: int) -> Entries:
        return Entries(np.zeros(users + 1, np.int64), np.zeros(0, np.int64), np.zeros((columns, 0), np.int64))

    def select(self, users: np.ndarray) -> Entries:
        """The tables of ``users`` (int64 [V], any order, repeats allowed)."""
        lengths = np.diff(self.offsets)[users]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        rows = np.arange(offsets[-1]) + np.repeat(self.offsets[users] - offsets[:-1], lengths)
        return Entries(offsets, self.key[rows], self.mass[:, rows])

    @staticmethod
    def concat(parts: list[Entries], columns: int) -> Entries:
        """Users of several tables one after the other."""
        if not parts:
            return Entries.empty(0, columns)
        lengths = np.concatenate([np.diff(p.offsets) for p in parts])
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        return Entries(
            offsets, np.concatenate([p.key for p in parts]), np.concatenate([p.mass for p in parts], 1)
        )


class Tables:
    """The arithmetic of tables with one capacity, one set of horizons and F facts. Keeps nothing itself."""

    def __init__(self, capacity: int, half_lives: tuple[float, ...], chunk: int, facts: int = 0) -> None:
        self.capacity, self.chunk = capacity, chunk
        self.horizons = Horizons(half_lives, chunk)
        self.columns = len(self.horizons) + facts

    def given(self, entries: Entries) -> Entries:
        """Tables as this arithmetic takes them."""
        return entries

    def concat(self, parts: list[Entries]) -> Entries:
        """Users of several tables one after the other."""
        return Entries.concat(parts, self.columns)

    def fold(
        self, entries: Entries, events: Events, keys: np.ndarray, facts: np.ndarray | None = None
    ) -> Entries:
        """Tables after whole chunks: U histories of a multiple of C events each, keys int64 [N], facts int64 [F, N]."""
        facts = np.zeros((0, len(keys)), np.int64) if facts is None else facts
        parts = []
        for a, b in _blocks(entries.offsets, events.offsets):
            rows = slice(int(events.offsets[a]), int(events.offsets[b]))
            parts.append(
                self._fold(
                    entries.select(np.arange(a, b)),
                    events.offsets[a : b + 1] - rows.start,
                    keys[rows],
                    facts[:, rows],
                )
            )
        return Entries.concat(parts, self.columns)

    def _fold(self, entries: Entries, offsets: np.ndarray, keys: np.ndarray, facts: np.ndarray) -> Entries:
        chunks = np.diff(offsets) // self.chunk
        if not chunks.any():
            return entries
        order = np.argsort(-chunks, kind="stable")  # those that are done leave from the end
        given = entries.select(order)
        coded = _Coded(given.key, keys)
        first, chunks = offsets[:-1][order], chunks[order]
        owner = np.repeat(np.arange(given.users), np.diff(given.offsets))
        flat, mass = coded.flat(owner, coded.held), given.mass
        done: list[Entries] = []
        step = np.arange(self.chunk)
        active = len(order)
        for wave in range(int(chunks[0])):
            left = int(np.searchsorted(-chunks, -wave, side="left"))  # users with more than ``wave`` chunks
            if left < active:
                flat, mass = self._leave(done, coded, flat, mass, left, active)
                active = left
            rows = (first[:active, None] + wave * self.chunk + step).ravel()
            new = coded.flat(np.repeat(np.arange(active), self.chunk), coded.code[rows])
            weight = np.tile(self.horizons.weight[:, ::-1], active)
            mass = _left(mass, self.horizons.keep[:, -1:])
            flat, mass = _added(flat, mass, new, weight, facts[:, rows])
            flat, mass = self._cut(flat, mass, coded.size, active)
        self._leave(done, coded, flat, mass, 0, active)
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        return Entries.concat(done[::-1], self.columns).select(back)

    def _leave(
        self, done: list[Entries], coded: _Coded, flat: np.ndarray, mass: np.ndarray, left: int, active: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Move users ``left:active`` to ``done``; what is left of the others."""
        ends = np.searchsorted(flat, np.arange(left, active + 1) * coded.size)
        rest = slice(int(ends[0]), None)
        done.append(Entries(ends - ends[0], coded.values[flat[rest] % coded.size], mass[:, rest]))
        return flat[: ends[0]], mass[:, : ends[0]]

    def heaviest(self, entries: Entries) -> Entries:
        """At most K entries of each table: the heaviest, ties to the smaller key."""
        coded, users = _Coded(entries.key, entries.key[:0]), entries.users
        flat = coded.flat(np.repeat(np.arange(users), np.diff(entries.offsets)), coded.held)
        found: list[Entries] = []
        self._leave(found, coded, *self._cut(flat, entries.mass, coded.size, users), 0, users)
        return found[0]

    def _cut(
        self, flat: np.ndarray, mass: np.ndarray, size: int, users: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """At most K entries of each user: the heaviest, ties to the smaller key."""
        ends = np.searchsorted(flat, np.arange(users + 1) * size)
        over = np.flatnonzero(np.diff(ends) > self.capacity)
        if not len(over):
            return flat, mass
        lengths = np.diff(ends)[over]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        rows = np.arange(offsets[-1]) + np.repeat(ends[over] - offsets[:-1], lengths)
        place = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
        # one sort of integers: by user, then mass from the heaviest, then place, which is the order of keys. All differ
        # where the place fits in, and then any sort will do; the fastest one is not stable.
        order = (np.repeat(np.arange(len(over)), lengths) << (_MASS_BITS + 1)) - mass[
            self.horizons.deciding, rows
        ]
        bits = int(lengths.max()).bit_length()
        fits = len(over) < 1 << (62 - _MASS_BITS - 1 - bits)
        rank = np.argsort((order << bits) + place) if fits else np.argsort(order, kind="stable")
        keep = np.ones(len(flat), bool)
        keep[rows[rank[place >= self.capacity]]] = False
        return flat[keep], mass[:, keep]

    def after(
        self, entries: Entries, tails: Events, keys: np.ndarray, facts: np.ndarray | None = None
    ) -> Entries:
        """Tables with fewer than C more events on top of each (U histories, keys int64 [N], facts int64 [F, N])."""
        facts = np.zeros((0, len(keys)), np.int64) if facts is None else facts
        parts: list[Entries] = []
        for a, b in _blocks(entries.offsets, tails.offsets):
            rows = slice(int(tails.offsets[a]), int(tails.offsets[b]))
            given = entries.select(np.arange(a, b))
            lengths = tails.lengths[a:b]
            coded = _Coded(given.key, keys[rows])
            held = np.diff(given.offsets)
            flat = coded.flat(np.repeat(np.arange(b - a), held), coded.held)
            mass = _left(given.mass, self.horizons.keep[:, np.repeat(lengths, held)])
            owner = np.repeat(np.arange(b - a), lengths)
            later = tails.offsets[a + 1 : b + 1][owner] - 1 - np.arange(rows.start, rows.stop)
            weight = self.horizons.weight[:, later]
            flat, mass = _added(flat, mass, coded.flat(owner, coded.code), weight, facts[:, rows])
            flat, mass = self._cut(flat, mass, coded.size, b - a)
            self._leave(parts, coded, flat, mass, 0, b - a)
        return Entries.concat(parts, self.columns)


class _Coded:
    """Keys as dense numbers in their order, so that (user, key) fits into one integer.

    Attributes:
        values: int64 [M], the distinct keys.
        held, code: numbers of the tables' and of the events' keys.
    """

    def __init__(self, held: np.ndarray, keys: np.ndarray) -> None:
        self.values, code = np.unique(np.concatenate([held, keys]), return_inverse=True)
        self.held, self.code = code[: len(held)], code[len(held) :]
        self.size = max(len(self.values), 1)

    def flat(self, user: np.ndarray, code: np.ndarray) -> np.ndarray:
        return user * self.size + code


def _left(mass: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Masses below 2^31 after a decay, rounded; what counts without end is kept as it is, and so are facts."""
    left = (mass[: len(keep)] * keep + (1 << (_FACTOR_BITS - 1))) >> _FACTOR_BITS
    return left if len(keep) == len(mass) else np.concatenate([left, mass[len(keep) :]])


def _added(
    flat: np.ndarray, mass: np.ndarray, new: np.ndarray, weight: np.ndarray, facts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Entries with the events' weights int64 [H, n] added under their keys int64 [n], and with the facts int64 [F, n]
    of each key's last one; ascending."""
    distinct, inverse = np.unique(new, return_inverse=True)
    h = len(weight)
    # sums of integers below 2^53 are exact in float64, in any order
    more = np.empty((len(mass), len(distinct)), np.int64)
    for row, w in zip(more, weight, strict=False):
        row[:] = np.bincount(inverse, w, len(distinct))
    if len(facts):
        newest = np.zeros(len(distinct), np.int64)
        newest[inverse] = np.arange(len(new))  # of several values for one place the last one stays
        more[h:] = facts[:, newest]
    at = np.searchsorted(flat, distinct)
    known = np.zeros(len(distinct), bool)
    inside = at < len(flat)
    known[inside] = flat[at[inside]] == distinct[inside]
    mass[:h, at[known]] += more[:h, known]
    mass[h:, at[known]] = more[h:, known]
    fresh = ~known
    if not fresh.any():
        return flat, mass
    place = at[fresh] + np.arange(int(fresh.sum()))
    old = np.ones(len(flat) + len(place), bool)
    old[place] = False
    both = np.empty(len(old), np.int64)
    both[place], both[old] = distinct[fresh], flat
    masses = np.empty((len(mass), len(old)), np.int64)
    masses[:, place], masses[:, old] = more[:, fresh], mass
    return both, masses


def _blocks(entries: np.ndarray, events: np.ndarray) -> Iterator[tuple[int, int]]:
    """Runs of whole users with at most ``_PER_BLOCK`` entries and events together (at least one user)."""
    load, users, a = entries + events, len(entries) - 1, 0
    while a < users:
        b = int(np.searchsorted(load, load[a] + _PER_BLOCK, side="right")) - 1
        b = min(max(b, a + 1), users)
        yield a, b
        a = b
