"""Every Triton kernel against its definition in float64: outputs and gradients, on inputs drawn afresh each time.

Run by ``test_interpreter.py`` on the CPU, and by ``make gpu`` on a GPU.
"""

import os

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from vista.ops import crossing
from vista.ops.crossing_triton import attend
from vista.ops.qla_triton import piece_products, piece_sums

pytestmark = pytest.mark.gpu
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FRESH = settings(
    max_examples=int(os.environ.get("VISTA_EXAMPLES", "6")), deadline=None, derandomize=False, database=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
TOLERANCE = {torch.float64: 1e-11, torch.float32: 5e-5, torch.bfloat16: 6e-2}
LENGTHS = st.lists(st.one_of(st.integers(0, 9), st.integers(60, 130)), min_size=1, max_size=4)


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel leaves unwritten is NaN, not what lay there."""
    empty = torch.empty

    def spoiled(*args: object, **kwargs: object) -> torch.Tensor:
        x = empty(*args, **kwargs)
        return x.fill_(float("nan")) if x.is_floating_point() else x

    monkeypatch.setattr(torch, "empty", spoiled)


def draw(seed: int, dtype: torch.dtype, *shapes: tuple[int, ...]) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    out = [torch.randn(*shape, generator=random, dtype=torch.float64).to(dtype) for shape in shapes]
    return [x.to(DEVICE).requires_grad_() for x in out]


def agree(found: torch.Tensor, inputs: list[torch.Tensor], wanted: torch.Tensor, exact: list[torch.Tensor]):
    """Output and gradients within rounding of the inputs' dtype, relative to the largest value."""
    slope = torch.cos(torch.arange(wanted.numel(), dtype=torch.float64, device=DEVICE)).view_as(wanted)
    slope = slope.to(found.dtype).double()  # the same for both, whatever the dtype holds
    pairs = [(found, wanted)]
    pairs += zip(
        torch.autograd.grad(found, inputs, slope.to(found.dtype)),
        torch.autograd.grad(wanted, exact, slope),
        strict=True,
    )
    for a, b in pairs:
        assert torch.isfinite(a).all()
        if b.numel():
            error = (a.double() - b).abs().max() / b.abs().max().clamp(min=1)
            assert error <= TOLERANCE[inputs[0].dtype], f"{tuple(b.shape)}: {error:.2e}"


def twins(inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    return [x.detach().double().requires_grad_() for x in inputs]


@pytest.mark.parametrize("dtype", TOLERANCE)
@FRESH
@given(lengths=LENGTHS, heads=st.integers(1, 3), e=st.integers(1, 70), f=st.integers(1, 70),
       fades=st.booleans(), seed=st.integers(0, 2**31))  # fmt: skip
def test_sums_and_products_of_pieces_equal_plain_ones(dtype, lengths, heads, e, f, fades, seed):
    bounds = torch.tensor(np.cumsum([0, *lengths]), device=DEVICE)
    rows, longest = sum(lengths), max(lengths)
    piece = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(DEVICE)
    decay = -torch.rand(heads, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(DEVICE)
    age = bounds[1:][piece] - 1 - torch.arange(rows, device=DEVICE)
    weight = torch.exp(decay * age[:, None]) if fades else torch.ones(rows, heads, dtype=torch.float64)
    note(f"{lengths=} {heads=} {e=} {f=}")

    inputs = draw(seed, dtype, (rows, heads, e), (rows, heads, f))
    x, y = exact = twins(inputs)
    each = torch.einsum("rh,rhe,rhf->rhef", weight.to(DEVICE), x, y)
    wanted = each.new_zeros(len(lengths), heads, e, f).index_add(0, piece, each).transpose(0, 1)
    agree(piece_sums(*inputs, bounds, longest, decay if fades else None), inputs, wanted, exact)

    inputs = draw(seed, dtype, (rows, heads, e), (heads, len(lengths), e, f))
    x, m = exact = twins(inputs)
    wanted = torch.einsum("rhe,href->rhf", x, m[:, piece])
    agree(piece_products(*inputs, bounds, longest), inputs, wanted, exact)


@pytest.mark.parametrize("dtype", TOLERANCE)
@FRESH
@given(lengths=LENGTHS, heads=st.integers(1, 2), tokens=st.one_of(st.integers(0, 5), st.integers(62, 140)),
       e=st.integers(1, 40), f=st.integers(1, 40), hidden=st.sampled_from([0.0, 0.5, 1.0]),
       seed=st.integers(0, 2**31))  # fmt: skip
def test_attention_of_ragged_rows_equals_a_softmax_written_out(
    dtype, lengths, heads, tokens, e, f, hidden, seed
):
    users, rows = len(lengths), sum(lengths)
    offsets = torch.tensor(np.cumsum([0, *lengths]), device=DEVICE)
    shapes = [(rows, heads, e), (rows, heads), (rows, heads, f), (users, tokens, heads, e),
              (users, tokens, heads, f), (users, heads, tokens)]  # fmt: skip
    inputs = draw(seed, dtype, *shapes)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        inputs[0] *= e**-0.5
        inputs[5][torch.rand(shapes[5], generator=random).to(DEVICE) < hidden] = -float("inf")
    q, own, v, keys, values, bias = exact = twins(inputs)
    user = torch.repeat_interleave(torch.arange(users), torch.tensor(lengths)).to(DEVICE)
    logits = torch.einsum("bhe,bthe->bht", q, keys[user]) + bias[user]
    weights = torch.cat([logits, own[..., None]], -1).softmax(-1)
    wanted = torch.einsum("bht,bthf->bhf", weights[..., :-1], values[user]) + weights[..., -1:] * v
    agree(attend(*inputs, offsets, max(lengths)), inputs, wanted, exact)


def test_the_crossing_takes_the_kernel_and_equals_its_naive_form():
    q, k, v, keys, values = inputs = draw(5, torch.float32, *[(9, 2, 8)] * 3, *[(3, 40, 2, 8)] * 2)
    mask = torch.ones(3, 40, dtype=torch.bool, device=DEVICE)
    mask[0], mask[1, ::3] = False, False
    offsets = torch.tensor([0, 4, 4, 9])
    found = crossing.fast(*inputs, mask, crossing.Plan.of(offsets, DEVICE))
    assert "Attend" in found.grad_fn.name()
    exact = twins(inputs)
    agree(found, inputs, crossing.naive(*exact, mask, crossing.Plan.of(offsets, DEVICE)), exact)
