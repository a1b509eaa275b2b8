"""How a log is most likely read, from its columns and first rows: what ``vista init`` writes down."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vista.data.logs import times
from vista.data.logs.inspecting import guessed
from vista.data.logs.reading import TIME_UNITS, ActionColumn, Reading
from vista.data.logs.schema import EVENTS
from vista.data.logs.weights import guessed as guessed_weights

FLAG = re.compile(
    r"^(is|has|did)_|^(like|dislike|share|click|bookmark|follow|comment|purchase|buy|save|hate)d?$", re.I
)
SCALES = ((5, 4, 2), (10, 7, 3))
"""Of ratings: the largest, from where on one is liked, up to where disliked."""

TIMES_MS = (631_152_000_000, 4_102_444_800_000)
"""From 1990 to 2100."""


@dataclass(frozen=True)
class Guess:
    """A reading, why it is guessed (meaning to a line for people), and what cannot be guessed."""

    reading: Reading
    why: dict[str, str]
    missing: tuple[str, ...]


def guess(columns: Mapping[str, Sequence[Any]]) -> Guess:
    """From the first values of every column.

    Args:
        columns: name to values, as text or numbers; None where there is none.
    """
    found: dict[str, str] = {}
    why: dict[str, str] = {}
    taken: set[str] = set()
    by_name = {c.name: c for c in EVENTS}
    for meaning in ("user_id", "item_id", "timestamp_ms", "request_id", "surface"):
        name = guessed(by_name[meaning], [n for n in columns if n not in taken])
        if name:
            taken.add(name)
            found[meaning] = name
            why[meaning] = f"named {name}"
    actions, settings = _actions(columns, taken, found, why)
    time = found.get("timestamp_ms")
    if time is not None:
        settings |= _time([v for v in columns[time] if v not in (None, "")], why)
    weights = guessed_weights([a.name for a in actions]) if actions else {}
    mapped = {m: n for m, n in found.items() if m != n}
    reading = Reading(columns=mapped, actions=tuple(actions), weights=weights, **settings)
    told = reading.tells_actions or "action" in found
    missing = [m for m in ("user_id", "item_id", "timestamp_ms") if m not in found]
    return Guess(reading, why, tuple(missing + ([] if told else ["action"])))


def _actions(
    columns: Mapping[str, Sequence[Any]], taken: set[str], found: dict[str, str], why: dict[str, str]
) -> tuple[list[ActionColumn], dict[str, Any]]:
    flags = [n for n in columns if n not in taken and FLAG.search(n) and _is_flag(columns[n])]
    if flags:
        why["actions"] = f"{len(flags)} columns of 0 and 1"
        named = {re.sub(r"^(is|has|did)_", "", n, flags=re.I).lower(): n for n in flags}
        return [ActionColumn(a, n) for a, n in named.items()], {"unengaged": "impressions"}
    name = guessed(next(c for c in EVENTS if c.name == "action"), [n for n in columns if n not in taken])
    if not name:
        return [], {}
    values = [v for v in columns[name] if v not in (None, "")]
    numbers = [float(v) for v in values if re.fullmatch(times.NUMBER, str(v))]
    if values and len(numbers) == len(values) and max(numbers) > 1:
        most = max(numbers)
        high, low = next(((h, w) for top, h, w in SCALES if most <= top), (most * 0.7, most * 0.3))
        why["actions"] = f"{name} is a rating up to {most:g}"
        return [
            ActionColumn("liked", name, ">=", f"{high:g}"),
            ActionColumn("disliked", name, "<=", f"{low:g}"),
        ], {}
    found["action"] = name
    why["action"] = f"named {name}"
    return [], {}


def _is_flag(values: Sequence[Any]) -> bool:
    return {str(v).lower() for v in values if v is not None} <= {"0", "1", "0.0", "1.0", "true", "false", ""}


def _time(values: Sequence[Any], why: dict[str, str]) -> dict[str, str]:
    texts = [str(v) for v in values[:100]]
    numbers = [float(t) for t in texts if re.fullmatch(times.NUMBER, t)]
    if numbers and len(numbers) == len(texts):
        for unit, factor in TIME_UNITS.items():
            if all(TIMES_MS[0] <= n * factor <= TIMES_MS[1] for n in numbers):
                why["time"] = f"numbers in {unit}"
                return {} if unit == "ms" else {"time_unit": unit}
        if all(re.fullmatch(r"(19|20)\d{6}", t) for t in texts):
            why["time"] = "days as YYYYMMDD"
            return {"time_format": "%Y%m%d"}
        why["time"] = "numbers that count from a start of their own; in which unit is a guess"
        return {"time_unit": "s", "time_from": "2000-01-01"}
    form = times.suggested(texts)
    import pyarrow as pa

    _, wrong = times.parsed(pa.array(texts, pa.string()))
    if wrong.any() and form:
        why["time"] = f"text as {form}"
        return {"time_format": form}
    return {}
