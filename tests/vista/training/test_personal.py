"""Whether summaries tell users apart: partners, shares of energy, and a model that reads none of them."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from vista.training.personal import Alike, partners


@given(st.lists(st.integers(0, 4), min_size=1, max_size=20))
def test_a_partner_is_another_user_wherever_no_user_holds_more_than_half(owners):
    owner = np.array(owners)
    other = partners(owner)
    assert sorted(other.tolist()) == list(range(len(owner)))
    most = np.bincount(owner).max()
    if 2 * most <= len(owner):
        assert (owner[other] != owner).all()


def test_tokens_that_are_the_same_for_all_have_no_personal_share_and_equal_ones_have_rank_one():
    torch.manual_seed(0)
    one, same, free = torch.randn(4, 8), Alike(), Alike()
    same.add(one.expand(5, 4, 8))
    same.add(torch.zeros(3, 4, 8))  # users without tokens say nothing
    share, rank = same.measures()
    assert abs(share) < 1e-9 and rank > 2
    free.add(torch.randn(40, 1, 8).expand(40, 4, 8))
    share, rank = free.measures()
    assert share > 0.9 and abs(rank - 1) < 1e-3
    assert np.isnan(Alike().measures()).all()
