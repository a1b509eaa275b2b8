"""Many histories as a sequence of full steps.

Work is a list of *units*: full chunks, and cuts (a tail of fewer than C events plus the seeds that read after
it), history after history, each cut right behind the chunk it hangs on. Steps are filled with units in that
order up to a number of rows, so every step but the last is full whatever the lengths are: one long history
fills many steps, many short ones share one. What crosses from step to step is the state of at most one
strand.

A *strand* is a run of one history's events with the state it starts from.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from vista.jagged import offsets_of, owners_of, places_of, rows_of
from vista.ops.qla import Step, plan_step

MAX_CHUNKS = 64
"""Chunks per step on a CPU: the triangular product over them stays small beside the projections."""


@dataclass(frozen=True, slots=True)
class Strands:
    """What to run.

    Attributes:
        start: int64 [V], row of the strand's first event.
        count: int64 [V], events folded into the state it starts from (0: the empty state).
        chunks: int64 [V], full chunks to run.
        cut_strand: int64 [K].
        cut_rows: int64 [K], events from the strand's start to the cut; the cut reads after
            ``cut_rows // C`` chunks and a tail of ``cut_rows % C`` events.
    """

    start: np.ndarray
    count: np.ndarray
    chunks: np.ndarray
    cut_strand: np.ndarray
    cut_rows: np.ndarray


@dataclass(frozen=True, slots=True)
class PackedStep:
    """One step of the sequence.

    Attributes:
        rows: int64 [rows], event rows in the step's layout (chunks, then tails by length).
        carried: int64 [R - 1], strands whose carried states are rows 1 .. R - 1 of the step's states.
        plan: the states' arithmetic.
        cuts: int64 [n], cuts that are read in this step.
        reads: int64 [n], the state each reads.
        kept: int64 [m], strands to remember.
        states: int64 [m], their state as of their last chunk in this step.
    """

    rows: np.ndarray
    carried: np.ndarray
    plan: Step
    cuts: np.ndarray
    reads: np.ndarray
    kept: np.ndarray
    states: np.ndarray


def pack(
    strands: Strands, chunk: int, seeds: int, max_rows: int, max_chunks: int = MAX_CHUNKS
) -> Iterator[PackedStep]:
    """Steps of at most ``max_rows`` rows and ``max_chunks`` chunks (a single larger unit is a step of its own).

    ``chunk`` 0 is the full form: every cut is a tail of all its rows.
    """
    size = chunk or np.iinfo(np.int64).max
    v, k = len(strands.start), len(strands.cut_strand)
    total = int(strands.chunks.sum())
    strand = np.concatenate([owners_of(strands.chunks), strands.cut_strand])
    nth = places_of(strands.chunks)
    place = np.concatenate([nth, strands.cut_rows // size])
    cut = np.concatenate([np.full(total, -1), np.arange(k)])
    tail = np.concatenate([np.zeros(total, np.int64), strands.cut_rows % size])
    # a cut comes before the chunk of the same number: it hangs on the chunk before
    order = np.lexsort([cut < 0, place, strand])
    strand, place, cut, tail = strand[order], place[order], cut[order], tail[order]
    is_chunk = cut < 0
    cost = np.cumsum(np.where(is_chunk, chunk, tail + seeds))
    chunks_before = np.cumsum(is_chunk)
    # without chunks behind it, a strand's state is the one it came with
    at, ran = 0, np.zeros(v, bool)
    while at < len(strand):
        base = cost[at - 1] if at else 0
        ran_before = chunks_before[at - 1] if at else 0
        stop = min(
            int(np.searchsorted(cost, base + max_rows, side="right")),
            int(np.searchsorted(chunks_before, ran_before + max_chunks, side="right")),
        )
        stop = max(stop, at + 1)
        yield _step(strands, chunk, strand, place, cut, tail, slice(at, stop), ran)
        at = stop


def _step(
    strands: Strands,
    chunk: int,
    strand: np.ndarray,
    place: np.ndarray,
    cut: np.ndarray,
    tail: np.ndarray,
    units: slice,
    ran: np.ndarray,
) -> PackedStep:
    strand, place, cut, tail = strand[units], place[units], cut[units], tail[units]
    is_chunk = cut < 0
    p = int(is_chunk.sum())
    # the latest chunk of the same strand at or before each unit, -1 where none ran in this step
    latest = np.cumsum(is_chunk) - 1
    change = np.concatenate([[True], strand[1:] != strand[:-1]])
    chunks_until = offsets_of(is_chunk)[:-1]
    first_of_strand = chunks_until[np.maximum.accumulate(np.where(change, np.arange(len(strand)), 0))]
    latest = np.where(latest >= first_of_strand, latest, -1)

    begins = np.flatnonzero(change)
    present = strand[begins]
    has_state = ran[present] | (strands.count[present] > 0)
    carried = present[has_state]
    row_of_present = np.where(has_state, np.cumsum(has_state), 0)
    carried_row = np.repeat(row_of_present, np.diff(np.concatenate([begins, [len(strand)]])))
    # events folded into a carried state: what it came with, plus the chunks that ran in earlier steps
    done_before = np.where(
        is_chunk[begins], place[begins], np.minimum(place[begins], strands.chunks[present])
    )
    carried_count = np.concatenate([[0], (strands.count[present] + done_before * chunk)[has_state]])

    tails = np.flatnonzero(tail > 0)
    tails = tails[np.argsort(tail[tails], kind="stable")]
    parent = np.where(latest >= 0, len(carried) + 1 + latest, carried_row)
    plan = plan_step(
        chunk,
        strand[is_chunk],
        carried_row[is_chunk],
        carried_count,
        tail[tails],
        parent[tails],
    )
    chunk_start = strands.start[strand[is_chunk]] + place[is_chunk] * chunk
    chunk_rows = (chunk_start[:, None] + np.arange(chunk)[None, :]).reshape(-1)
    tail_start = strands.start[strand[tails]] + place[tails] * chunk
    tail_rows = rows_of(tail_start, tail[tails])

    cuts = np.flatnonzero(~is_chunk)
    reads = parent.copy()
    reads[tails] = len(carried) + 1 + p + np.arange(len(tails))
    ends = np.concatenate([begins[1:], [len(strand)]]) - 1
    ended = ends[latest[ends] >= 0]
    ran[strand[ended]] = True
    return PackedStep(
        rows=np.concatenate([chunk_rows, tail_rows]).astype(np.int64),
        carried=carried,
        plan=plan,
        cuts=cut[cuts],
        reads=reads[cuts],
        kept=strand[ended],
        states=len(carried) + 1 + latest[ended],
    )
