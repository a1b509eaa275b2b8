"""Deduplicated attention as Triton kernels: the arithmetic of :mod:`vista.ops.crossing`, scores never written out.

Row i of user u attends to the T tokens of u's context and to one entry of its own (logit ``own_i``, value ``v_i``)::

    s_it = q_i . k_t + bias_ut        o_i = (e^own_i v_i + sum_t e^s_it v_t) / (e^own_i + sum_t e^s_it)

The own entry starts the running softmax, so a row whose context is empty or masked whole has an answer. For the
crossing it is the candidate itself; for weighted attention it is the empty token (value 0), and ``bias`` the log mass.

Backward recomputes the scores from the log-sum-exp: one pass over tokens for the rows' gradients, one over rows for
the contexts'. No two programs write one place, so the same input gives the same bytes.

Letters: ``U`` users, ``B`` rows, ``T`` tokens, ``H`` heads, ``E`` width of keys, ``F`` width of values.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

WIDEST = 128
"""Width of keys and values up to which a program's registers hold its tiles; beyond it the plain form is quicker."""


def _side(width: int, half: bool) -> int:
    """Rows, and context tokens, that a program holds at once: tiles that fit the 255 registers of a thread."""
    return max(16, min(64 if half else 32, (4096 if half else 2048) // width))


@triton.jit
def tile(base, row, row_stride, column, inside, width, kind: tl.constexpr):
    """Rows of a matrix as [rows, block of columns]; 0 outside."""
    mask = inside[:, None] & (column < width)[None, :]
    return tl.load(base + row[:, None] * row_stride + column[None, :], mask=mask, other=0.0).to(kind)


@triton.jit
def _forward(
    q, own, v, keys, values, bias, out, lse, offsets, T, H, E, F,
    q_row, q_head, v_row, v_head, k_user, k_token, k_head, x_user, x_token, x_head, b_user, b_head,
    KIND: tl.constexpr, PRECISION: tl.constexpr,
    BE: tl.constexpr, BF: tl.constexpr, BM: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    user, head, block = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    first, stop = tl.load(offsets + user), tl.load(offsets + user + 1)
    start = first + block * BM
    if start < stop:
        e, f = tl.arange(0, BE), tl.arange(0, BF)
        row = start + tl.arange(0, BM)
        inside = row < stop
        query = tile(q + head * q_head, row, q_row, e, inside, E, KIND)
        top = tl.load(own + row * H + head, mask=inside, other=0.0).to(KIND)
        total = tl.full((BM,), 1.0, KIND)
        read = tile(v + head * v_head, row, v_row, f, inside, F, KIND)
        for at in range(0, T, BT):
            token = at + tl.arange(0, BT)
            real = token < T
            key = tile(keys + user * k_user + head * k_head, token, k_token, e, real, E, KIND)
            value = tile(values + user * x_user + head * x_head, token, x_token, f, real, F, KIND)
            tilt = tl.load(bias + user * b_user + head * b_head + token, mask=real, other=-float("inf"))
            score = tl.dot(query, tl.trans(key), input_precision=PRECISION, out_dtype=KIND)
            score = score + tilt.to(KIND)[None, :]
            higher = tl.maximum(top, tl.max(score, 1))
            weight = tl.exp(score - higher[:, None])
            fade = tl.exp(top - higher)
            total = total * fade + tl.sum(weight, 1)
            read = tl.dot(weight, value, read * fade[:, None], input_precision=PRECISION, out_dtype=KIND)
            top = higher
        place = out + (row[:, None] * H + head) * F + f[None, :]
        tl.store(place, read / total[:, None], mask=inside[:, None] & (f < F)[None, :])
        tl.store(lse + row * H + head, top + tl.log(total), mask=inside)


@triton.jit
def _backward_rows(
    q, keys, values, bias, grad, lse, delta, dq, offsets, T, H, E, F,
    q_row, q_head, k_user, k_token, k_head, x_user, x_token, x_head, b_user, b_head,
    KIND: tl.constexpr, PRECISION: tl.constexpr,
    BE: tl.constexpr, BF: tl.constexpr, BM: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    user, head, block = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    first, stop = tl.load(offsets + user), tl.load(offsets + user + 1)
    start = first + block * BM
    if start < stop:
        e, f = tl.arange(0, BE), tl.arange(0, BF)
        row = start + tl.arange(0, BM)
        inside = row < stop
        query = tile(q + head * q_head, row, q_row, e, inside, E, KIND)
        slope = tile(grad + head * F, row, H * F, f, inside, F, KIND)
        level = tl.load(lse + row * H + head, mask=inside, other=0.0)
        mean = tl.load(delta + row * H + head, mask=inside, other=0.0)
        found = tl.zeros((BM, BE), KIND)
        for at in range(0, T, BT):
            token = at + tl.arange(0, BT)
            real = token < T
            key = tile(keys + user * k_user + head * k_head, token, k_token, e, real, E, KIND)
            value = tile(values + user * x_user + head * x_head, token, x_token, f, real, F, KIND)
            tilt = tl.load(bias + user * b_user + head * b_head + token, mask=real, other=-float("inf"))
            score = tl.dot(query, tl.trans(key), input_precision=PRECISION, out_dtype=KIND)
            weight = tl.exp(score + tilt.to(KIND)[None, :] - level[:, None])
            toward = tl.dot(slope, tl.trans(value), input_precision=PRECISION, out_dtype=KIND)
            found = tl.dot(
                weight * (toward - mean[:, None]), key, found, input_precision=PRECISION, out_dtype=KIND
            )
        place = dq + (row[:, None] * H + head) * E + e[None, :]
        tl.store(place, found, mask=inside[:, None] & (e < E)[None, :])


@triton.jit
def _backward_contexts(
    q, keys, values, bias, grad, lse, delta, dkeys, dvalues, dbias, offsets, T, H, E, F,
    q_row, q_head, k_user, k_token, k_head, x_user, x_token, x_head, b_user, b_head,
    KIND: tl.constexpr, PRECISION: tl.constexpr,
    BE: tl.constexpr, BF: tl.constexpr, BM: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    user, head, block = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    first, stop = tl.load(offsets + user), tl.load(offsets + user + 1)
    e, f = tl.arange(0, BE), tl.arange(0, BF)
    token = block * BT + tl.arange(0, BT)
    real = token < T
    key = tile(keys + user * k_user + head * k_head, token, k_token, e, real, E, KIND)
    value = tile(values + user * x_user + head * x_head, token, x_token, f, real, F, KIND)
    tilt = tl.load(bias + user * b_user + head * b_head + token, mask=real, other=-float("inf")).to(KIND)
    key_slope, value_slope = tl.zeros((BT, BE), KIND), tl.zeros((BT, BF), KIND)
    bias_slope = tl.zeros((BT,), KIND)
    for start in range(first, stop, BM):
        row = start + tl.arange(0, BM)
        inside = row < stop
        query = tile(q + head * q_head, row, q_row, e, inside, E, KIND)
        slope = tile(grad + head * F, row, H * F, f, inside, F, KIND)
        level = tl.load(lse + row * H + head, mask=inside, other=float("inf"))
        mean = tl.load(delta + row * H + head, mask=inside, other=0.0)
        score = tl.dot(query, tl.trans(key), input_precision=PRECISION, out_dtype=KIND)
        weight = tl.exp(score + tilt[None, :] - level[:, None])
        toward = tl.dot(slope, tl.trans(value), input_precision=PRECISION, out_dtype=KIND)
        pull = weight * (toward - mean[:, None])
        value_slope = tl.dot(tl.trans(weight), slope, value_slope, input_precision=PRECISION, out_dtype=KIND)
        key_slope = tl.dot(tl.trans(pull), query, key_slope, input_precision=PRECISION, out_dtype=KIND)
        bias_slope += tl.sum(pull, 0)
    line = (user * T + token) * H + head
    tl.store(dkeys + line[:, None] * E + e[None, :], key_slope, mask=real[:, None] & (e < E)[None, :])
    tl.store(dvalues + line[:, None] * F + f[None, :], value_slope, mask=real[:, None] & (f < F)[None, :])
    tl.store(dbias + (user * H + head) * T + token, bias_slope, mask=real)


def _even(x: torch.Tensor) -> torch.Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, own, v, keys, values, bias, offsets, longest):
        q, v, keys, values, bias = (_even(x) for x in (q, v, keys, values, bias))
        own = own.contiguous()
        (rows, heads, e), f, (users, tokens) = q.shape, v.shape[-1], keys.shape[:2]
        wide = q.dtype == torch.float64
        kind = torch.float64 if wide else torch.float32
        out = torch.empty(rows, heads, f, device=q.device, dtype=kind)
        lse = torch.empty(rows, heads, device=q.device, dtype=kind)
        half = q.dtype in (torch.bfloat16, torch.float16)
        be, bf = (max(16, triton.next_power_of_2(width)) for width in (e, f))
        side = _side(max(be, bf), half)
        ctx.blocks = {
            "KIND": tl.float64 if wide else tl.float32,
            # float32 as three products of its upper and lower halves: about 2^-20 of each, and by tensor cores
            "PRECISION": "ieee" if wide else "tf32" if half else "tf32x3",
            "BE": be, "BF": bf, "BM": side, "BT": side, "num_stages": 1 if wide else 2,
            "enable_fp_fusion": True,
        }  # fmt: skip
        ctx.sizes = (tokens, heads, e, f)
        ctx.strides = (
            *q.stride()[:2], *v.stride()[:2], *keys.stride()[:3], *values.stride()[:3], *bias.stride()[:2]
        )  # fmt: skip
        ctx.longest = longest
        if rows:
            grid = (users, heads, triton.cdiv(longest, side))
            _forward[grid](
                q, own, v, keys, values, bias, out, lse, offsets, *ctx.sizes, *ctx.strides, **ctx.blocks
            )
        ctx.save_for_backward(q, own, v, keys, values, bias, offsets, out, lse)
        return out.to(q.dtype)

    @staticmethod
    def backward(ctx, grad):
        q, own, v, keys, values, bias, offsets, out, lse = ctx.saved_tensors
        tokens, heads, e, f = ctx.sizes
        users, kind = len(keys), out.dtype
        grad = grad.to(kind).contiguous()
        delta = (grad * out).sum(-1)
        share = (own.to(kind) - lse).exp()
        down = share * ((grad * v).sum(-1) - delta)
        dv = share.unsqueeze(-1) * grad
        dq = torch.empty(q.shape, device=q.device, dtype=kind)
        dkeys = torch.zeros(users, tokens, heads, e, device=q.device, dtype=kind)
        dvalues = torch.zeros(users, tokens, heads, f, device=q.device, dtype=kind)
        dbias = torch.zeros(users, heads, tokens, device=q.device, dtype=kind)
        strides = (*ctx.strides[:2], *ctx.strides[4:])
        if len(q):
            grid = (users, heads, triton.cdiv(ctx.longest, ctx.blocks["BM"]))
            _backward_rows[grid](
                q, keys, values, bias, grad, lse, delta, dq, offsets, *ctx.sizes, *strides, **ctx.blocks
            )
        if len(q) and tokens:
            grid = (users, heads, triton.cdiv(tokens, ctx.blocks["BT"]))
            _backward_contexts[grid](
                q, keys, values, bias, grad, lse, delta, dkeys, dvalues, dbias, offsets,
                *ctx.sizes, *strides, **ctx.blocks,
            )  # fmt: skip
        return (
            dq.to(q.dtype), down.to(own.dtype), dv.to(v.dtype), dkeys.to(keys.dtype), dvalues.to(values.dtype),
            dbias.to(bias.dtype), None, None,
        )  # fmt: skip


def attend(
    q: torch.Tensor,
    own: torch.Tensor,
    v: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    bias: torch.Tensor,
    offsets: torch.Tensor,
    longest: int,
) -> torch.Tensor:
    """Attention of ragged rows to their user's context and to one entry of their own.

    Args:
        q: [B, H, E], scaled.
        own: [B, H], logit of each row's own entry; finite.
        v: [B, H, F], its value.
        keys: [U, T, H, E].
        values: [U, T, H, F].
        bias: [U, H, T], added to the logits; -inf hides a token. Expanded views are read as they are.
        offsets: int64 [U + 1]; user u owns rows ``offsets[u]:offsets[u + 1]``.
        longest: most rows of one user.

    Returns:
        [B, H, F], dtype of q. Differentiable in the first six.
    """
    return _Attend.apply(q, own, v, keys, values, bias, offsets, longest)
