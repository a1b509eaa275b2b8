"""What an action is worth in a score: told where people said it, else guessed by stated rules, never summed blindly.

a number (a rating, 0/1)             its share of the largest: half a star is worth a tenth of five, 0 nothing
a name that says no (dislike, hate)  -1
a name that takes back or says that nothing was done (skip, none, unlike)  0
any other name                       1
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from vista.errors import ConfigError

AGAINST = ("dislike", "hate", "disliked", "complain", "complaint", "report", "block", "hide", "downvote", "negative",
           "thumbs_down", "not_interested", "unsubscribe", "spam")  # fmt: skip
NOTHING = ("none", "no", "false", "skip", "skipped", "unlike", "undislike", "ignore", "impression", "shown", "null",
           "delete", "deleted", "remove", "removefromcart", "remove_from_cart", "unfollow", "not_clicked")  # fmt: skip


def guessed(actions: Sequence[str]) -> dict[str, float]:
    """Weights by the rules above; where all would be nothing (a log of one action 0), 1 each."""
    numbers = {a: float(a) for a in actions if re.fullmatch(r"-?\d+(\.\d+)?", a)}
    largest = max(map(abs, numbers.values()), default=0.0) or 1.0
    found = {}
    for action in actions:
        name = re.sub(r"^is_", "", action.strip().lower().replace(" ", "_"))
        if action in numbers:
            found[action] = numbers[action] / largest
        else:
            found[action] = -1.0 if name in AGAINST else 0.0 if name in NOTHING else 1.0
    return found if any(found.values()) else dict.fromkeys(actions, 1.0)


def weights(actions: Sequence[str], *told: Mapping[str, float]) -> dict[str, float]:
    """Weight of every action: what was told, the last one's say first, else what is guessed.

    Raises:
        ConfigError: a name that is no action, or a weight that is not finite.
    """
    found = guessed(actions)
    for some in told:
        unknown = sorted(set(some) - set(actions))
        if unknown:
            raise ConfigError(
                f"--weight: expected names among {', '.join(actions)}, found {unknown[0]!r}; for example "
                f"--weight {actions[0] if actions else 'click'}=1"
            )
        wrong = [a for a, w in some.items() if not math.isfinite(w)]
        if wrong:
            raise ConfigError(
                f"--weight: action {wrong[0]!r}: expected a finite number, found {some[wrong[0]]}; for example "
                f"--weight {wrong[0]}=1"
            )
        found |= {a: float(w) for a, w in some.items()}
    return found


def spelled(found: Mapping[str, float]) -> str:
    """The weights in a line."""
    return ", ".join(f"{a} {w:g}" for a, w in found.items())
