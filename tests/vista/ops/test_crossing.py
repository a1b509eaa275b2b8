"""Law 5: deduplicated equals expanded, in value and in gradient; law 4 at the level of the operation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vista.ops import crossing

SHAPES = st.tuples(
    st.lists(st.integers(0, 9), min_size=1, max_size=6),
    st.integers(0, 7),
    st.integers(1, 3),
    st.sampled_from([2, 8]),
    st.integers(0, 2**16),
)


def operands(lengths, t, h, e, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    b, u = sum(lengths), len(lengths)
    mask = torch.rand(u, t, generator=generator) < 0.7
    offsets = torch.tensor(np.concatenate([[0], np.cumsum(lengths)]), dtype=torch.int64)
    return [draw(b, h, e), draw(b, h, e), draw(b, h, e), draw(u, t, h, e), draw(u, t, h, e)], mask, offsets


@given(SHAPES)
def test_deduplicated_equals_expanded_in_value_and_gradient(shape):
    tensors, mask, offsets = operands(*shape)
    grads = []
    outs = []
    for form in (crossing.naive, crossing.fast):
        leaves = [x.clone().requires_grad_() for x in tensors]
        out = form(*leaves, mask, offsets)
        weight = torch.arange(out.numel(), dtype=out.dtype).view_as(out).sin()
        (out * weight).sum().backward()
        outs.append(out.detach())
        grads.append([x.grad if x.grad is not None else torch.zeros_like(x) for x in leaves])
    torch.testing.assert_close(outs[1], outs[0], rtol=1e-10, atol=1e-12)
    for fast, naive in zip(grads[1], grads[0], strict=True):
        torch.testing.assert_close(fast, naive, rtol=1e-9, atol=1e-11)


@given(SHAPES)
def test_blocks_without_gradient_give_what_one_product_gives(shape):
    tensors, mask, offsets = operands(*shape)
    whole = crossing.naive(*tensors, mask, offsets)
    block, crossing.BLOCK = crossing.BLOCK, 8
    try:
        torch.testing.assert_close(crossing.fast(*tensors, mask, offsets), whole, rtol=1e-10, atol=1e-12)
    finally:
        crossing.BLOCK = block


@given(SHAPES)
def test_serving_in_float32_gives_what_the_definition_gives_in_float64(shape):
    tensors, mask, offsets = operands(*shape)
    whole = crossing.naive(*tensors, mask, offsets)
    with torch.inference_mode():
        served = crossing.fast(*[x.float() for x in tensors], mask, offsets)
    torch.testing.assert_close(served.double(), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("lengths, t", [([3, 0, 9, 4], 7), ([5, 5], 7), ([5, 5], 0), ([0, 0], 7)])
def test_flex_attention_gives_what_the_definition_gives_in_float64(lengths, t):
    tensors, mask, offsets = operands(lengths, t, 2, 8, 7)
    mask[0] = False
    with torch.inference_mode():
        found = crossing.flex(*tensors, mask, offsets)
    torch.testing.assert_close(found, crossing.naive(*tensors, mask, offsets), rtol=1e-10, atol=1e-12)


@given(st.lists(st.integers(0, 300), min_size=1, max_size=40))
def test_padding_never_wastes_more_than_a_third_beyond_short_slates(lengths):
    plan = crossing.Plan.of(np.concatenate([[0], np.cumsum(lengths)]))
    padded = sum((plan.users if g.users is None else len(g.users)) * g.width for g in plan.groups)
    assert padded <= crossing.PADDING * sum(lengths) + len(lengths) * 2
    if plan.back is not None:
        assert len(plan.back.unique()) == sum(lengths)


def test_a_user_with_nothing_to_read_sees_only_the_candidate():
    tensors, mask, offsets = operands([3, 2], 5, 2, 4, 0)
    for dtype in (torch.float64, torch.float32):
        inputs = [x.to(dtype) for x in tensors]
        out = crossing.fast(*inputs, torch.zeros_like(mask), offsets)
        torch.testing.assert_close(out, inputs[2])


def test_a_plan_made_before_serves_every_layer():
    tensors, mask, offsets = operands([3, 9, 1], 5, 2, 4, 1)
    plan = crossing.Plan.of(offsets)
    assert torch.equal(crossing.fast(*tensors, mask, plan), crossing.fast(*tensors, mask, offsets))


def test_offsets_that_do_not_match_are_refused():
    tensors, mask, offsets = operands([3, 2], 5, 2, 4, 0)
    with pytest.raises(ValueError, match="5 candidates"):
        crossing.fast(*[x[:4] for x in tensors[:3]], *tensors[3:], mask, offsets)
    with pytest.raises(ValueError, match="never decrease"):
        crossing.Plan.of(torch.tensor([0, 3, 2]))


def test_peak_memory_of_the_fast_form_holds_no_copy_of_the_contexts():
    """Saved tensors for backward: scores and operands, never [B, T, H, E]."""
    tensors, mask, offsets = operands([16] * 4, 32, 2, 8, 0)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
        crossing.fast(*[x.requires_grad_() for x in tensors], mask, offsets)
    expanded = 64 * 32 * 2 * 8
    assert max(sizes) < expanded / 2
