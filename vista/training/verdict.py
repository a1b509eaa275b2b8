"""What a model's figures say in words. No torch, so that whoever only looks can say it too."""

from __future__ import annotations

import math
from collections.abc import Mapping

LEAST_SHARE = 0.1
"""Of the energy of learned tokens, what differs between users, below which they are called the same."""

FEW = 5.0
"""Candidates per slate below which the first places are no feat."""


def verdict(found: Mapping[str, float]) -> str:
    """What the figures say in words: whether the model ranks better than chance, and than popularity.

    Args:
        found: as :meth:`Evaluation.flat` gives them, or the ``metrics`` of a bundle.
    """
    auc, size = found.get("ranking.auc", math.nan), found.get("ranking.candidates", math.nan)
    if not found or not math.isfinite(auc):
        return "not judged: no held-out request had both an item that was engaged with and one that was not"
    popular = found.get("baseline.popularity.ranking.auc", 0.5)
    other, bar = ("popularity", popular) if popular > 0.5 else ("a coin toss", 0.5)
    low, high = found.get("ranking.gain.low", math.nan), found.get("ranking.gain.high", math.nan)
    figures = f"AUC {auc:.3f} against {bar:.3f}"
    if math.isfinite(low):
        figures += f", gain {found['ranking.gain']:+.3f} [{low:+.3f}, {high:+.3f}]"
    if auc <= 0.5:
        text = f"worse than chance: {figures}; do not serve it"
    elif high < 0:
        text = f"worse than {other}: {figures}; do not serve it"
    elif not low > 0:
        text = f"not shown to be better than {other}: {figures}; give it more to learn from, or train longer"
    else:
        text = f"better than {other}: {figures}"
    if size < FEW:
        chance = found.get("baseline.constant.ranking.mrr", math.nan)
        text += f". Requests hold {size:.1f} candidates: an MRR of {chance:.3f} is a coin toss's"
    return ". ".join([text, *impersonal(found)])


def impersonal(found: Mapping[str, float]) -> list[str]:
    """What shows that summaries tell users hardly apart; as :func:`verdict`."""
    told = []
    if not found.get("summary.swapped.low", math.inf) > 0:
        figures = ", ".join(f"{found[f'summary.swapped{end}']:+.3f}" for end in ("", ".low", ".high"))
        told.append(
            f"No loss is shown with another user's summary (AUC, low, high: {figures}): it tells nothing personal"
        )
    share = found.get("summary.seeds.personal_share", math.inf)
    if share < LEAST_SHARE:
        rank = found["summary.seeds.effective_rank"]
        told.append(
            f"Seed tokens are nearly the same for all users (personal share {share:.3f}, effective rank {rank:.1f})"
        )
    return told
