"""Deduplicated cross-attention: B candidates attend to the U contexts they belong to, and to themselves.

A context's keys and values are computed once per request and never copied per candidate (DCAT, arXiv
2507.12704, section "deduplicated cross-attention"; the candidate mask of UniPinRec, arXiv 2606.00422).
Candidate i of user u has the keys ``[K_u ; k_i]`` and the values ``[V_u ; v_i]``; it sees no other candidate:

    s_i = [q_i K_u^T ; q_i . k_i] / sqrt(Dh)      o_i = softmax(s_i) [V_u ; v_i]

``naive`` is the definition: it writes every candidate's own key sequence out. ``fast`` multiplies each
context with all of its candidates at once. Both run wherever torch runs and differentiate in all five
tensors; they agree to rounding. ``flex`` is another fast form for serving on a GPU.

Letters: U users, B candidates, T context tokens, H heads, E width of a head. Rows of ``q, k, v`` are
grouped by user: user u owns rows ``offsets[u]:offsets[u + 1]``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vista.jagged import owners_of
from vista.ops.kernels import on_device

PADDING = 1.34
"""A group of users is padded to its longest slate; the longest is at most this times the shortest."""

BLOCK = 1 << 18
"""Scores held at once when no gradient is recorded: 1 MiB of float32, about a core's second-level cache."""

_FLASH = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
"""The CPU kernel behind ``scaled_dot_product_attention``, called by name because the public function keeps
the log-sum-exp to itself. It has no gradient for it; torch without it takes the blocked products."""


@dataclass(frozen=True)
class AlikeUsers:
    """Users whose slates have similar lengths.

    Attributes:
        users: int64 [G], rows of the contexts; None for all of them in order.
        rows: int64 [G, M], rows of the candidates (padding repeats a row); None when they are a reshape.
        width: M, candidates per user after padding.
    """

    users: Tensor | None
    rows: Tensor | None
    width: int


@dataclass(frozen=True)
class Plan:
    """How B ragged candidates are laid out for batched products; depends on ``offsets`` alone.

    Made once per request and used by every layer.

    Attributes:
        groups: the batched products to make.
        back: int64 [B], place of every candidate in the groups' outputs put one after the other; None
            where that is already the order.
        user: int64 [B], user of every candidate.
        users: U.
        offsets: int64 [U + 1], as given, beside the candidates.
        longest: most candidates of one user.
    """

    groups: tuple[AlikeUsers, ...]
    back: Tensor | None
    user: Tensor
    users: int
    offsets: Tensor
    longest: int

    @property
    def candidates(self) -> int:
        """B."""
        return len(self.user)

    def each(self, form: Callable[..., Tensor], rows: Sequence[Tensor], contexts: Sequence[Tensor]) -> Tensor:
        """[B, ...], what ``form`` gives [G, M, ...] of each group's part of ``rows``, [B, ...] to [G, M, ...], and of
        ``contexts``, [U, ...] to [G, ...]."""
        outputs = []
        for group in self.groups or (AlikeUsers(None, None, 0),):
            mine = [
                x.view(self.users, group.width, *x.shape[1:]) if group.rows is None else x[group.rows]
                for x in rows
            ]
            theirs = contexts if group.users is None else [x[group.users] for x in contexts]
            outputs.append(form(*mine, *theirs).flatten(0, 1))
        out = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        return out if self.back is None else out.index_select(0, self.back)

    @staticmethod
    def of(offsets: Tensor | np.ndarray, device: torch.device | str = "cpu") -> Plan:
        """Plan for ``offsets`` (int64 [U + 1]). Padding wastes at most a third of the products.

        Raises:
            ValueError: offsets do not start at 0 or decrease.
        """
        ends = torch.as_tensor(offsets).cpu().numpy().astype(np.int64)
        if ends.ndim != 1 or len(ends) < 1 or ends[0] != 0 or (np.diff(ends) < 0).any():
            raise ValueError("offsets must be int64 [U + 1], start at 0 and never decrease")
        lengths = np.diff(ends)
        users, total = len(lengths), int(ends[-1])
        user = _index(owners_of(lengths), device)
        shape = (user, users, _index(ends, device), int(lengths.max(initial=0)))
        if total == 0:
            return Plan((), None, *shape)
        if (lengths == lengths[0]).all():
            return Plan((AlikeUsers(None, None, int(lengths[0])),), None, *shape)
        order = np.argsort(-lengths, kind="stable")
        order = order[lengths[order] > 0]
        back = np.empty(total, np.int64)
        groups: list[AlikeUsers] = []
        start = done = 0
        while start < len(order):
            width = int(lengths[order[start]])
            stop = start + int((lengths[order[start:]] * PADDING + 1 >= width).sum())
            members = order[start:stop]
            column = np.arange(width)
            real = column < lengths[members, None]
            rows = ends[members, None] + np.where(real, column, 0)
            back[rows[real]] = done + np.flatnonzero(real)
            groups.append(AlikeUsers(_index(members, device), _index(rows, device), width))
            start, done = stop, done + rows.size
        return Plan(tuple(groups), _index(back, device), *shape)


Read = Callable[..., tuple[Tensor, Tensor]]
"""Attention as of :func:`vista.ops.flex.read`."""

Offsets = Tensor | np.ndarray | Plan
"""int64 [U + 1], or the plan made of it."""


def _index(values: np.ndarray, device: torch.device | str) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(device)


def naive(
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, mask: Tensor, offsets: Offsets
) -> Tensor:
    """The definition: every candidate's context is copied to it.

    Args:
        q, k, v: [B, H, E], the candidates' own projections.
        keys, values: [U, T, H, E], the contexts'.
        mask: bool [U, T], True where a context token may be read. A user may have none.
        offsets: int64 [U + 1], or a :class:`Plan` made of it.

    Returns:
        [B, H, E].
    """
    user = (offsets if isinstance(offsets, Plan) else Plan.of(offsets, q.device)).user
    own_keys = torch.cat([keys[user], k[:, None]], 1)  # [B, T + 1, H, E]
    own_values = torch.cat([values[user], v[:, None]], 1)
    seen = torch.cat([mask[user], mask.new_ones(len(user), 1)], 1)  # [B, T + 1]
    scores = torch.einsum("bhe,bthe->bht", q, own_keys) / math.sqrt(q.shape[-1])
    weights = scores.masked_fill(~seen[:, None], -math.inf).softmax(-1)
    return torch.einsum("bht,bthe->bhe", weights, own_values)


def fast(
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, mask: Tensor, offsets: Offsets
) -> Tensor:
    """Equal to :func:`naive` (same arguments and result), without copying contexts.

    Work is ``B T`` scores per head. With gradients they are kept; without, they are held in blocks of
    :data:`BLOCK`, or by torch's CPU kernel in its registers.
    """
    plan, q, own, bias = _scaled(q, k, keys, mask, offsets)
    kernels = on_device(q, "crossing_triton") if plan.groups else None
    if kernels and q.shape[-1] <= kernels.WIDEST:
        wide = bias[:, None].expand(-1, q.shape[1], -1)
        return kernels.attend(q, own, v, keys, values, wide, plan.offsets, plan.longest)
    return plan.each(_group, [q, own, v], [keys, values, bias]) if plan.groups else v.clone()


def flex(
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, mask: Tensor, offsets: Offsets
) -> Tensor:
    """Equal to :func:`naive` (same arguments and result) by FlexAttention (``vista.ops.flex``); no gradients."""
    from vista.ops import flex as attention  # seconds to import

    plan, q, own, bias = _scaled(q, k, keys, mask, offsets)
    form = functools.partial(_merged, attention.read)
    return plan.each(form, [q, own, v], [keys, values, bias]) if plan.groups else v.clone()


def _scaled(
    q: Tensor, k: Tensor, keys: Tensor, mask: Tensor, offsets: Offsets
) -> tuple[Plan, Tensor, Tensor, Tensor]:
    """The plan; q scaled; [B, H] each candidate's score of itself; [U, T] 0 or -inf."""
    plan = offsets if isinstance(offsets, Plan) else Plan.of(offsets, q.device)
    if plan.candidates != len(q) or plan.users != len(keys):
        raise ValueError(
            f"offsets describe {plan.candidates} candidates of {plan.users} users; "
            f"got {len(q)} candidates and {len(keys)} contexts"
        )
    q = q / math.sqrt(q.shape[-1])
    bias = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill_(~mask, -math.inf)
    return plan, q, (q * k).sum(-1), bias


def _group(q: Tensor, own: Tensor, v: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
    """Output [G, M, H, E] of one group."""
    kt, vt = keys.permute(0, 2, 3, 1), values.transpose(1, 2)  # [G, H, E, T], [G, H, T, E]
    recorded = torch.is_grad_enabled() and any(x.requires_grad for x in (q, own, v, keys, values))
    plain = q.device.type == "cpu" and q.dtype == torch.float32
    if plain and _FLASH is not None and not recorded and bias.numel():
        return _merged(_flash, q, own, v, keys, values, bias)
    if recorded or q.numel() // q.shape[-1] * keys.shape[1] <= BLOCK:
        return _attend(q, own, v, kt, vt, bias)
    g, m, h, _ = q.shape
    out = torch.empty_like(v)
    wide = min(g, max(1, BLOCK // (m * h * keys.shape[1])))  # users per block
    tall = m if wide > 1 else min(m, max(16, BLOCK // (h * keys.shape[1])))  # candidates per block
    for i in range(0, g, wide):
        a = slice(i, i + wide)
        ka, va = kt[a].contiguous(), vt[a].contiguous()
        for j in range(0, m, tall):
            b = slice(j, j + tall)
            out[a, b] = _attend(q[a, b], own[a, b], v[a, b], ka, va, bias[a])
    return out


def _attend(q: Tensor, own: Tensor, v: Tensor, kt: Tensor, vt: Tensor, bias: Tensor) -> Tensor:
    """q, v [G, M, H, E]; own [G, M, H]; kt [G, H, E, T]; vt [G, H, T, E]; bias [G, T] -> [G, M, H, E]."""
    scores = torch.matmul(q.transpose(1, 2), kt) + bias[:, None, None]  # [G, H, M, T]
    itself = own.transpose(1, 2)[..., None]  # [G, H, M, 1]
    weights = torch.cat([scores, itself], -1).softmax(-1)
    read = torch.matmul(weights[..., :-1], vt).transpose(1, 2)  # [G, M, H, E]
    return read + weights[..., -1:].transpose(1, 2) * v


def _merged(
    read: Read, q: Tensor, own: Tensor, v: Tensor, keys: Tensor, values: Tensor, bias: Tensor
) -> Tensor:
    """As :func:`_attend` with keys and values [G, T, H, E]; scores are never written out.

    The context's softmax and the candidate's own term are merged by their log-sum-exp: with
    ``p = sigmoid(own - lse)`` the output is ``(1 - p) read + p v``.
    """
    found, lse = read(q.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2), bias)
    share = torch.sigmoid(own.transpose(1, 2) - lse).transpose(1, 2)[..., None]  # [G, M, H, 1]
    return torch.lerp(found.transpose(1, 2), v, share)


def _flash(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """As :func:`vista.ops.flex.read`, by torch's CPU kernel."""
    assert _FLASH is not None  # asked before
    if not bias.any():
        return _FLASH(q, k, v, scale=1.0)
    wide = bias[:, None, None].expand(-1, 1, q.shape[2], -1)
    read, lse = _FLASH(q, k, v, attn_mask=wide, scale=1.0)
    empty = torch.isneginf(bias).all(1)
    if empty.any():  # the kernel has no answer for a user without context
        read = read.masked_fill(empty[:, None, None, None], 0)
        lse = lse.masked_fill(empty[:, None, None], -math.inf)
    return read, lse
