"""The products of quasi-linear attention on ragged pieces, as Triton kernels; :mod:`vista.ops.qla` is the twin.

A step's rows are pieces one after the other (full chunks, then tails); ``bounds`` says where each begins. Two products
are all that touches rows, and each is the other's gradient::

    sums      S_p = sum_{i in p} w_i x_i y_i^T        w_i = decay ** (rows of p after i), or 1
    products  o_i = w_i x_i M_p                        for the piece p that row i is in

    dx_i = w_i y_i dS_p^T    dy_i = w_i x_i dS_p       products of the gradient of ``sums``
    dx_i = w_i do_i M_p^T    dM_p = sum w_i x_i do_i^T  products and sums of the gradient of ``products``

Nothing is padded, nothing is gathered, and no two programs write one place, so the same rows give the same bytes.
Sums are float32 (float64 for float64 inputs); TF32 is used only where it rounds nothing.

Letters: ``P`` pieces, ``H`` heads, ``E`` and ``F`` widths of a head, ``R`` rows.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vista.ops.crossing_triton import tile

ROWS = 64
"""Rows of one piece that a program holds at once."""

_KINDS = {False: tl.float32, True: tl.float64}
_STAGES = {False: 3, True: 1}
"""Loads under way, of float32 and of float64."""

_WIDEST = 64
"""Columns of a state that a program holds at once; wider states are cut into tiles."""


@triton.jit
def _sums(
    x, y, out, bounds, log_decay,
    x_row, x_head, y_row, y_head, out_piece, out_head, E, F,
    FADE: tl.constexpr, KIND: tl.constexpr, PRECISION: tl.constexpr,
    BE: tl.constexpr, BF: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    piece, head, part = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64), tl.program_id(2)
    tiles = tl.cdiv(F, BF)
    e = (part // tiles) * BE + tl.arange(0, BE)
    f = (part % tiles) * BF + tl.arange(0, BF)
    first, stop = tl.load(bounds + piece), tl.load(bounds + piece + 1)
    sums = tl.zeros((BE, BF), KIND)
    for start in range(first, stop, BR):
        row = start + tl.arange(0, BR)
        inside = row < stop
        left = tile(x + head * x_head, row, x_row, e, inside, E, KIND)
        right = tile(y + head * y_head, row, y_row, f, inside, F, KIND)
        if FADE:
            age = tl.where(inside, stop - 1 - row, 0).to(tl.float64)
            weight = tl.exp(tl.load(log_decay + head) * age)
            left = left * weight.to(KIND)[:, None]
        sums = tl.dot(tl.trans(left), right, sums, input_precision=PRECISION, out_dtype=KIND)
    place = out + piece * out_piece + head * out_head + e[:, None] * F + f[None, :]
    tl.store(place, sums, mask=(e < E)[:, None] & (f < F)[None, :])


@triton.jit
def _products(
    x, m, out, bounds, log_decay,
    x_row, x_head, m_piece, m_head, m_e, m_f, out_row, out_head, E, F,
    FADE: tl.constexpr, KIND: tl.constexpr, PRECISION: tl.constexpr,
    BE: tl.constexpr, BF: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    piece, head, part = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64), tl.program_id(2)
    tiles = tl.cdiv(F, BF)
    first, stop = tl.load(bounds + piece), tl.load(bounds + piece + 1)
    start = first + (part // tiles) * BR
    f = (part % tiles) * BF + tl.arange(0, BF)
    if start < stop:
        row = start + tl.arange(0, BR)
        inside = row < stop
        read = tl.zeros((BR, BF), KIND)
        for at in range(0, E, BE):
            e = at + tl.arange(0, BE)
            left = tile(x + head * x_head, row, x_row, e, inside, E, KIND)
            right = tl.load(
                m + piece * m_piece + head * m_head + e[:, None] * m_e + f[None, :] * m_f,
                mask=(e < E)[:, None] & (f < F)[None, :], other=0.0,
            ).to(KIND)  # fmt: skip
            read = tl.dot(left, right, read, input_precision=PRECISION, out_dtype=KIND)
        if FADE:
            age = tl.where(inside, stop - 1 - row, 0).to(tl.float64)
            read = read * tl.exp(tl.load(log_decay + head) * age).to(KIND)[:, None]
        place = out + row[:, None] * out_row + head * out_head + f[None, :]
        tl.store(place, read, mask=inside[:, None] & (f < F)[None, :])


def _precision(x: Tensor, y: Tensor, log_decay: Tensor | None) -> str:
    """TF32 where it loses nothing: 16-bit values fit its 10 bits, faded ones do not."""
    half = {x.dtype, y.dtype} <= {torch.bfloat16, torch.float16}
    return "tf32" if half and log_decay is None else "ieee"


def _block(width: int) -> int:
    return min(max(16, triton.next_power_of_2(width)), _WIDEST)


def _run_sums(x: Tensor, y: Tensor, bounds: Tensor, log_decay: Tensor | None) -> Tensor:
    """[H, P, E, F] of rows [R, H, E] and [R, H, F]."""
    x, y = (t if t.stride(-1) == 1 else t.contiguous() for t in (x, y))
    (_, heads, e), f, pieces = x.shape, y.shape[-1], len(bounds) - 1
    wide = x.dtype == torch.float64
    out = torch.empty(heads, pieces, e, f, device=x.device, dtype=torch.float64 if wide else torch.float32)
    if not out.numel():
        return out
    be, bf = _block(e), _block(f)
    grid = (pieces, heads, triton.cdiv(e, be) * triton.cdiv(f, bf))
    _sums[grid](
        x, y, out, bounds, out if log_decay is None else log_decay,
        x.stride(0), x.stride(1), y.stride(0), y.stride(1), out.stride(1), out.stride(0), e, f,
        FADE=log_decay is not None, KIND=_KINDS[wide], PRECISION=_precision(x, y, log_decay),
        BE=be, BF=bf, BR=ROWS, num_stages=_STAGES[wide], enable_fp_fusion=True,
    )  # fmt: skip
    return out


def _run_products(x: Tensor, m: Tensor, bounds: Tensor, longest: int, log_decay: Tensor | None) -> Tensor:
    """[R, H, F] of rows [R, H, E] and a matrix for each piece, [H, P, E, F] of any strides; in x's dtype."""
    x = x if x.stride(-1) == 1 else x.contiguous()
    (rows, heads, e), (pieces, _, f) = x.shape, m.shape[1:]
    wide = x.dtype == torch.float64
    out = torch.empty(rows, heads, f, device=x.device, dtype=x.dtype)
    if not out.numel():
        return out
    be, bf = _block(e), _block(f)
    grid = (pieces, heads, triton.cdiv(longest, ROWS) * triton.cdiv(f, bf))
    _products[grid](
        x, m, out, bounds, out if log_decay is None else log_decay,
        x.stride(0), x.stride(1), m.stride(1), m.stride(0), m.stride(2), m.stride(3),
        out.stride(0), out.stride(1), e, f,
        FADE=log_decay is not None, KIND=_KINDS[wide], PRECISION=_precision(x, m, None),
        BE=be, BF=bf, BR=ROWS, num_stages=_STAGES[wide], enable_fp_fusion=True,
    )  # fmt: skip
    return out


class _Sums(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y, bounds, longest, log_decay):
        ctx.save_for_backward(x, y, bounds, log_decay)
        ctx.longest = longest
        return _run_sums(x, y, bounds, log_decay)

    @staticmethod
    def backward(ctx, grad):
        x, y, bounds, log_decay = ctx.saved_tensors
        dx = _run_products(y, grad.transpose(-1, -2), bounds, ctx.longest, log_decay)
        dy = _run_products(x, grad, bounds, ctx.longest, log_decay)
        return dx.to(x.dtype), dy.to(y.dtype), None, None, None


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, m, bounds, longest):
        ctx.save_for_backward(x, m, bounds)
        ctx.longest = longest
        return _run_products(x, m, bounds, longest, None)

    @staticmethod
    def backward(ctx, grad):
        x, m, bounds = ctx.saved_tensors
        dx = _run_products(grad, m.transpose(-1, -2), bounds, ctx.longest, None)
        return dx, _run_sums(x, grad, bounds, None).to(m.dtype), None, None


def piece_sums(x: Tensor, y: Tensor, bounds: Tensor, longest: int, log_decay: Tensor | None) -> Tensor:
    """Decayed sums of outer products, one for each piece.

    Args:
        x: [R, H, E]; y: [R, H, F]; on one device.
        bounds: int64 [P + 1], the row at which each piece begins, and R.
        longest: rows of the longest piece.
        log_decay: float64 [H], no gradient flows to it; None keeps every row whole.

    Returns:
        [H, P, E, F], float32 (float64 for float64 rows).
    """
    return _Sums.apply(x, y, bounds, longest, log_decay)


def piece_products(x: Tensor, m: Tensor, bounds: Tensor, longest: int) -> Tensor:
    """Every row times the matrix of its piece.

    Args:
        x: [R, H, E].
        m: [H, P, E, F].
        bounds, longest: as for :func:`piece_sums`.

    Returns:
        [R, H, F], dtype of x.
    """
    return _Products.apply(x, m, bounds, longest)
