"""Weighted attention against its definition, token by token; and a user without any."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from vista.ops import flex
from vista.ops.weighted_attention import WeightedAttention


@pytest.mark.parametrize("fused", [None, flex.read], ids=["plain", "flex"])
def test_a_token_of_mass_n_counts_as_n_tokens_beside_one_empty_token(fused):
    draw = torch.Generator().manual_seed(7)
    attention = WeightedAttention(6).double()
    attention.fused = fused
    query, tokens = (torch.randn(3, n, 6, generator=draw, dtype=torch.float64) for n in (5, 4))
    mass = torch.randint(0, 4, (3, 4), generator=draw).double()
    mass[1] = 0
    with torch.no_grad():
        for weight in (attention.query.weight, attention.key.weight):
            weight.add_(0.1 * torch.randn(6, 6, generator=draw, dtype=torch.float64))
        read, odds = attention(query, tokens, mass.log())
        for u in range(3):
            for c in range(5):
                for h in range(2):
                    sharp = attention.log_sharpness[h].exp()
                    one = normalize(attention.query(query[u, c]), dim=0)
                    total, found = torch.exp(sharp * attention.empty[h]), torch.zeros(6, dtype=torch.float64)
                    empty, on = total, torch.zeros((), dtype=torch.float64)
                    for t in range(4):
                        e = torch.exp(sharp * (one @ normalize(attention.key(tokens[u, t]), dim=0)))
                        total, on = total + mass[u, t] * e, on + mass[u, t] * e
                        found = found + mass[u, t] * e * tokens[u, t]
                    torch.testing.assert_close(read[u, c, h], found / total, rtol=1e-9, atol=1e-12)
                    wanted = torch.log(on + torch.exp(torch.tensor(-60.0, dtype=torch.float64))) - empty.log()
                    torch.testing.assert_close(odds[u, c, h], wanted, rtol=1e-9, atol=1e-12)


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
