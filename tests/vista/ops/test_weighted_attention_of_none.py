"""A user without any token: the read has a value, and every gradient is a number."""

from __future__ import annotations

import torch

from vista.ops.weighted_attention import WeightedAttention


def test_gradients_are_finite_where_a_user_has_no_token():
    torch.manual_seed(0)
    attention = WeightedAttention(8)
    query, tokens = torch.randn(2, 3, 8, requires_grad=True), torch.randn(2, 4, 8, requires_grad=True)
    log_mass = torch.zeros(2, 4)
    log_mass[0] = -torch.inf
    read, odds = attention(query, tokens, log_mass)
    assert (read[0] == 0).all() and (odds[0] < -60).all()
    (read.sum() + odds.sum()).backward()
    for value in (query, tokens, *attention.parameters()):
        assert torch.isfinite(value.grad).all()
