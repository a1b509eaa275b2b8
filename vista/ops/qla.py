"""Quasi-linear attention on packed jagged batches: the fast form of :mod:`vista.ops.qla_naive`.

A *step* holds pieces of many histories. A piece is a full chunk of C events or the tail of a history; a tail
may hang on any state (of a chunk in this step, or carried in). Rows are laid out without padding::

    [ chunk 0 | chunk 1 | ... | tail, tail, ... in ascending length ]        [sum of lengths, width]

Projections run on those rows as they are. Only the products with states see padding, and only for tails,
which go in groups of lengths within a factor of two. States of all chunks of a step come from one product
with a lower triangular matrix of decays, so a step has no loop over chunks; what one history hands to the
next step is one state.

States are float32 always (float64 for float64 inputs), under autocast too.

Letters: ``P`` full chunks, ``T`` tails, ``R`` carried states, ``H`` heads, ``E`` width of a head, ``C``
chunk.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vista.jagged import lengths_between, offsets_of, places_of, starts_of
from vista.ops.kernels import on_device
from vista.ops.upload import uploaded


@dataclass(frozen=True, slots=True)
class TailGroup:
    """Tails of similar length: rows of the step, and where they sit in a padded block.

    Attributes:
        first, stop: the group's rows within the step.
        tails: slice of the step's tails, as (first, stop).
        length: L, the padded length.
        gather: int64 [G * L] row of the step for each padded place, or None where nothing is padded.
        place: int64 [stop - first] padded place of each row, or None.
        age: float64 [G, L] events after this one within its tail; inf in padding (its weight is then 0).
    """

    first: int
    stop: int
    tails: tuple[int, int]
    length: int
    gather: Tensor | None
    place: Tensor | None
    age: Tensor


@dataclass(frozen=True, slots=True)
class Step:
    """Which pieces a step holds and how their states follow from each other.

    States are numbered ``0 .. R - 1`` carried in (0 is the empty state), then P chunks, then T tails.

    Attributes:
        chunk: C.
        chunks: P.
        tails: T.
        distance: float64 [P, P]: events from a chunk's end to the end of a later one of its history, else inf;
            None if P is 0.
        carried: int64 [P] state carried in that the chunk's history starts from.
        behind: float64 [P] events from that carried state to the end of the chunk.
        groups: the tails by length.
        parent: int64 [T] state the tail hangs on.
        tail_length: float64 [T].
        count: float64 [R + P + T] events folded into each state.
        bounds: int64 [P + T + 1] row at which each chunk and tail begins, and the number of rows.
    """

    chunk: int
    chunks: int
    tails: int
    distance: Tensor | None
    carried: Tensor
    behind: Tensor
    groups: tuple[TailGroup, ...]
    parent: Tensor
    tail_length: Tensor
    count: Tensor
    bounds: Tensor

    @property
    def longest(self) -> int:
        """Rows of the longest piece."""
        return max([self.chunk if self.chunks else 0, *(group.length for group in self.groups)])

    def to(self, device: torch.device) -> Step:
        """The same plan with its tensors on ``device``, in one copy."""
        if device.type == "cpu":
            return self
        plans: tuple[Any, ...] = (self, *self.groups)
        names = [(plan, f.name) for plan in plans for f in fields(plan)]
        names = [(plan, name) for plan, name in names if isinstance(getattr(plan, name), Tensor)]
        moved = uploaded([getattr(plan, name).numpy() for plan, name in names], device)
        found: dict[int, dict[str, Any]] = {id(plan): {} for plan in plans}
        for (plan, name), tensor in zip(names, moved, strict=True):
            found[id(plan)][name] = tensor
        groups = tuple(replace(group, **found[id(group)]) for group in self.groups)
        return replace(self, **found[id(self)], groups=groups)


def plan_step(
    chunk: int,
    chunk_history: np.ndarray,
    chunk_carried: np.ndarray,
    carried_count: np.ndarray,
    tail_length: np.ndarray,
    tail_parent: np.ndarray,
) -> Step:
    """Plan of one step.

    Args:
        chunk: C.
        chunk_history: int64 [P], which history each full chunk belongs to; equal numbers are adjacent, in order.
        chunk_carried: int64 [P], state carried in (0 .. R - 1) that the chunk's history starts this step from.
        carried_count: int64 [R], events folded into each carried state; ``carried_count[0]`` is 0.
        tail_length: int64 [T], at least 1, **ascending**.
        tail_parent: int64 [T], state the tail hangs on: < R carried, else R + chunk.
    """
    p, t = len(chunk_history), len(tail_length)
    nth = places_of(lengths_between(starts_of(chunk_history), p))
    gap = np.arange(p)[:, None] - np.arange(p)[None, :]
    together = (chunk_history[:, None] == chunk_history[None, :]) & (gap >= 0)
    distance = np.where(together, gap * float(chunk), np.inf)
    behind = (nth + 1) * float(chunk)
    chunk_count = carried_count[chunk_carried] + behind
    count = np.concatenate([carried_count, chunk_count])
    count = np.concatenate([count, count[tail_parent] + tail_length])
    groups, row, at = [], p * chunk, 0
    while at < t:
        # lengths within a factor of two go together
        stop = int(np.searchsorted(tail_length, 8, side="right"))
        if tail_length[at] > 8:
            stop = int(np.searchsorted(tail_length, 2 * tail_length[at], side="left"))
        groups.append(_tail_group(row, at, tail_length[at:stop]))
        row, at = groups[-1].stop, stop
    return Step(
        chunk,
        p,
        t,
        torch.from_numpy(distance) if p else None,
        torch.from_numpy(np.asarray(chunk_carried, np.int64)),
        torch.from_numpy(behind),
        tuple(groups),
        torch.from_numpy(np.asarray(tail_parent, np.int64)),
        torch.from_numpy(np.asarray(tail_length, np.float64)),
        torch.from_numpy(np.asarray(count, np.float64)),
        torch.from_numpy(offsets_of(np.concatenate([np.full(p, chunk), tail_length]).astype(np.int64))),
    )


def _tail_group(row: int, at: int, lengths: np.ndarray) -> TailGroup:
    size, longest = len(lengths), int(lengths[-1])
    offset = offsets_of(lengths)
    index = np.arange(longest)
    inside = index[None, :] < lengths[:, None]
    age = np.where(inside, lengths[:, None] - 1.0 - index[None, :], np.inf)
    gather = place = None
    if not inside.all():
        rows = row + offset[:-1, None] + np.minimum(index[None, :], lengths[:, None] - 1)
        gather = torch.from_numpy(rows.reshape(-1).astype(np.int64))
        place = torch.from_numpy(np.flatnonzero(inside.reshape(-1)))
    stop = row + int(offset[-1])
    return TailGroup(row, stop, (at, at + size), longest, gather, place, torch.from_numpy(age))


def decayed(log_decay: Tensor, age: Tensor, dtype: torch.dtype) -> Tensor:
    """``decay ** age`` with 0 for infinite age, [H, *age.shape]; ``log_decay`` float64 [H], at most 0."""
    exponent = log_decay.view(-1, *([1] * age.dim())) * age.clamp(max=1e15)
    return torch.exp(exponent).masked_fill(torch.isinf(age), 0.0).to(dtype)


def mass(log_decay: Tensor, count: Tensor) -> Tensor:
    """Sum of the weights of n events, ``(1 - decay^n) / (1 - decay)``: float64 [H, *count.shape], >= 1."""
    rate = log_decay.view(-1, *([1] * count.dim()))
    kept = torch.expm1(rate * count) / torch.where(rate < 0, torch.expm1(rate), torch.ones_like(rate))
    return torch.where(rate < 0, kept, count).clamp(min=1.0)


def qla_states(
    k: Tensor, v: Tensor, step: Step, carry: Tensor, log_decay: Tensor, keeps: bool = False
) -> Tensor:
    """State sums of every piece of the step.

    Args:
        k: phi already applied.
        k, v: [rows, H, E]; their widths may differ.
        carry: [H, R, E, E] state sums carried in; row 0 is zero.
        log_decay: float64 [H], the logarithm of each head's decay per event; 0 keeps everything.
        keeps: all of them are 0, which saves the weights; to look would be to wait for the device.

    Returns:
        [H, R + P + T, E, E], float32 (float64 for float64 inputs).
    """
    heads, size = k.shape[1], carry.shape[2:]
    states = [carry]
    with torch.autocast(k.device.type, enabled=False):
        dtype = carry.dtype
        kernels = on_device(k, "qla_triton")
        if kernels:
            fade = None if keeps else log_decay
            sums = kernels.piece_sums(k, v.to(k.dtype), step.bounds, step.longest, fade)
        if step.chunks:
            c, p = step.chunk, step.chunks
            if kernels:
                own = sums[:, :p].to(dtype).flatten(2)
            else:
                rows = p * c
                keys = k[:rows].view(p, c, heads, -1).permute(2, 0, 3, 1)
                values = v[:rows].view(p, c, heads, -1).permute(2, 0, 1, 3)
                keys, values = keys.to(dtype), values.to(dtype)
                if not keeps:
                    age = torch.arange(c - 1, -1, -1, dtype=torch.float64, device=k.device)
                    keys = keys * decayed(log_decay, age, dtype).view(heads, 1, 1, c)
                own = torch.matmul(keys, values).view(heads, p, -1)
            assert step.distance is not None  # there are chunks
            reach = decayed(log_decay, step.distance, dtype)
            start = decayed(log_decay, step.behind, dtype).unsqueeze(-1)
            chunk_states = torch.baddbmm(start * carry.flatten(2)[:, step.carried], reach, own)
            states.append(chunk_states.view(heads, p, *size))
        if step.tails:
            before = torch.cat(states, dim=1) if len(states) > 1 else carry
            fade = decayed(log_decay, step.tail_length, dtype)
            tails = before[:, step.parent] * fade.view(heads, -1, 1, 1)
            if kernels:
                own = [sums[:, step.chunks :].to(dtype)]
            else:
                own = [_tail_states(k, v, group, log_decay, keeps, dtype) for group in step.groups]
            states = [before, tails + (torch.cat(own, dim=1) if len(own) > 1 else own[0])]
    return torch.cat(states, dim=1) if len(states) > 1 else carry


def padded(x: Tensor, group: TailGroup) -> Tensor:
    """[rows, H, E] -> [H, G, L, E]; padding repeats the tail's last row."""
    rows = x[group.first : group.stop] if group.gather is None else x[group.gather]
    return rows.view(-1, group.length, *x.shape[1:]).permute(2, 0, 1, 3)


def _tail_states(
    k: Tensor, v: Tensor, group: TailGroup, log_decay: Tensor, keeps: bool, dtype: torch.dtype
) -> Tensor:
    keys, values = padded(k, group).to(dtype), padded(v, group).to(dtype)
    if not keeps or group.gather is not None:
        keys = keys * decayed(log_decay, group.age, dtype).unsqueeze(-1)
    return torch.matmul(keys.transpose(-1, -2), values)


def qla_memory(states: Tensor, step: Step, gain: Tensor, log_decay: Tensor) -> Tensor:
    """What rows read: ``phi(gain * A / c)``, as ``states``: [H, R + P + T, E, E]."""
    scale = gain.to(states.dtype).unsqueeze(-1) / mass(log_decay, step.count).to(states.dtype)
    return F.silu(states * scale[..., None, None])


def qla_read(q: Tensor, memory: Tensor, step: Step) -> Tensor:
    """Outputs of the step's rows: each reads its own piece's memory.

    Args:
        q: [rows, H, E], phi already applied.
        memory: of :func:`qla_memory`.

    Returns:
        [rows, H, E].
    """
    heads, width = q.shape[1], q.shape[2]
    carried = memory.shape[1] - step.chunks - step.tails
    memory = memory.to(q.dtype)
    if kernels := on_device(q, "qla_triton"):
        return kernels.piece_products(q, memory[:, carried:], step.bounds, step.longest)
    out = []
    if step.chunks:
        p, rows = step.chunks, step.chunks * step.chunk
        queries = q[:rows].view(p, step.chunk, heads, width).permute(2, 0, 1, 3)
        read = torch.matmul(queries, memory[:, carried : carried + p])
        out.append(read.permute(1, 2, 0, 3).reshape(rows, heads, width))
    for group in step.groups:
        a, b = (carried + step.chunks + t for t in group.tails)
        read = torch.matmul(padded(q, group), memory[:, a:b])
        read = read.permute(1, 2, 0, 3).reshape(-1, heads, width)
        out.append(read if group.place is None else read[group.place])
    return torch.cat(out) if len(out) > 1 else out[0] if out else torch.zeros_like(q)


def qla_target(q: Tensor, k: Tensor, v: Tensor, memory: Tensor) -> Tensor:
    """Target rows (seeds): each reads one memory and itself, never another target.

    Args:
        q, k: phi already applied.
        q, k, v: [G, S, H, E].
        memory: [H, G, E, E], the memory of each group of S rows.

    Returns:
        [G, S, H, E].
    """
    own = (q * k).sum(-1, keepdim=True) * v / q.shape[-1]
    return torch.matmul(q.permute(2, 0, 1, 3), memory.to(q.dtype)).permute(1, 2, 0, 3) + own
