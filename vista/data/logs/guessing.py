"""How a log is most likely read, from its columns and first rows: what ``vista init`` writes down."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from vista.data.logs import times
from vista.data.logs.inspecting import are_impressions, guessed
from vista.data.logs.reading import TIME_UNITS, ActionColumn, Reading
from vista.data.logs.schema import EVENTS
from vista.data.logs.weights import guessed as guessed_weights

FLAG = re.compile(
    r"^(is|has|did)_|^(like|dislike|share|click|clk|open|bookmark|follow|comment|purchase|buy|save|hate|conversion)"
    r"(e?d)?(_(?!count|rate|num)|$)",
    re.I,
)
_PERSONS = (
    "user|customer|client|member|account|visitor|actor|author|buyer|player|person|profile|viewer|listener|reader"
    "|subscriber|owner|shopper|guest|patient|student|learner"
)
PERSON = re.compile(rf"{_PERSONS}|who\b", re.I)
"""Whose id is a user's, where no column is called so."""
_END = r"([ _.-]?(name|e?mail|login|key|code|no|nr|number|slug))?$"
PEOPLE = re.compile(
    rf"(^|[^a-z])({_PERSONS}|contributor|committer|developer|maintainer|editor|poster|employee|donor|voter|citizen|tenant"
    rf"|login|nick|e-?mail|by|who|whom){_END}"
)
"""How a column of persons ends that does not say id; lower case, words apart."""
THINGS = re.compile(
    r"(?<!referrer)(?<!avatar)(^|[^a-z])(path|file|url|uri|page|link|resource|entity|document|article|post|title|song|film|show|episode|track|game"
    r"|app|package|repo|repository|course|lesson|recipe|place|venue|listing|property|restaurant|station|podcast|object"
    rf"|thing){_END}"
)
"""Of what is touched, likewise."""
NO_ITEM = re.compile(
    r"user|session|request|order|categ|seller|brand|store|shop|search|display|event|review|visit", re.I
)
"""What an id may be of that is no item."""
TIMED = re.compile(
    r"(?<![a-z])(date|time|datetime|timestamp|ts|dt|at|when)(?![a-z])|[a-z](Time|Date|Timestamp|At)$", re.A
)
"""Names of times."""
SCALES = ((5, 4, 2), (10, 7, 3))
"""Of ratings: the largest, from where on one is liked, up to where disliked."""

_DONE = (
    "action|add|addtocart|apply|ask|bid|block|bookmark|book|browse|buy|buying|cart|checkin|checkout|clic|click|clickout"
    "|clk|collect|comment|complete|consume|contact|conversion|convert|dislike|dismiss|download|enrol|enroll|enter|fav"
    "|favorite|favourite|finish|follow|forward|hate|hide|impression|impress|install|interaction|join|like|listen|love"
    "|offer|open|order|pause|play|purchase|pv|rate|read|recommend|remove|removefromcart|reply|report|repost|retweet|review"
    "|save|scroll|seek|share|show|skip|start|stop|stream|subscribe|tap|transaction|undislike|unfavorite|unfollow|unlike"
    "|unsave|unsubscribe|upvote|downvote|view|viewing|visit|vote|watch|wish|wishlist"
    "|answer|approve|assign|commit|create|delete|edit|insert|merge|modified|modify|post|publish|reject|rename|revert|submit"
    "|update|upload"
    "|ansehen|angesehen|ansicht|klick|geklickt|kauf|kaufen|gekauft|warenkorb|gemerkt|merken"
    "|achat|acheter|vue|voir|panier|favori|aimer|partage|partager|compra|comprar|comprado|ver|visto|vista|visita|clique"
    "|carrito|gusta|compartir|favorito|izleme|sepet|beğeni|tıklama"
)
ACTION = re.compile(rf"({_DONE})(s|es|d|ed|ped|ing)?", re.I)
"""A word for what somebody does with an item, as public sets and shops spell it."""
NO_ACTION = re.compile(
    r"city|country|region|state|device|platform|browser|lang|locale|categ|genre|brand|store|shop|seller|vendor|source"
    r"|surface|page|screen|tab$|channel|medium|status|title|name$|gender|payment|currency|segment|(^|[^a-z])os$",
    re.I,
)
"""Names of columns whose few words are something else."""
NAMES = 12
"""Most names in a field without a name of its own that is taken for the action; categories are more."""

TIMES_MS = (631_152_000_000, 4_102_444_800_000)
"""From 1990 to 2100."""


@dataclass(frozen=True)
class Guess:
    """A reading, why it is guessed (meaning to a line for people), and what cannot be guessed.

    Attributes:
        impressions: its rows are what was shown, not what was done.
    """

    reading: Reading
    why: dict[str, str]
    missing: tuple[str, ...]
    impressions: bool = False


def guess(columns: Mapping[str, Sequence[Any]]) -> Guess:
    """From the first values of every column.

    Args:
        columns: name to values, as text or numbers, lists and objects; None where there is none.
    """
    found: dict[str, str] = {}
    why: dict[str, str] = {}
    taken: set[str] = set()
    by_name = {c.name: c for c in EVENTS}
    explode, columns = _exploded(columns, why)
    for meaning in ("user_id", "item_id", "timestamp_ms", "request_id", "surface"):
        name = guessed(by_name[meaning], [n for n in columns if n not in taken])
        if not name and meaning in ("user_id", "item_id"):
            name = _named_id(columns, taken, meaning == "user_id")
        if name:
            taken.add(name)
            found[meaning] = name
            why[meaning] = f"named {name}"
    _mend(columns, found, why)
    actions, settings = _actions(columns, taken, found, why)
    if "timestamp_ms" not in found:
        _time_by_values(columns, taken, found, why)
    time = found.get("timestamp_ms")
    if time is not None:
        settings |= _time([v for v in columns[time] if v not in (None, "")], why)
    weights = guessed_weights([a.name for a in actions]) if actions else {}
    used = {*found.values(), *(a.column for a in actions)}
    for meaning, words in (("user_id", PEOPLE), ("item_id", THINGS)):
        if meaning not in found and (name := _named_noun(columns, used, words)):
            used.add(name)
            found[meaning] = name
            why[meaning] = f"named {name}, as {'persons' if meaning == 'user_id' else 'things'} are"
    mapped = {m: n for m, n in found.items() if m != n}
    if not actions and "action" not in found:
        settings["action_is"] = "view"
        weights = {"view": 1.0}
        why["action"] = "no column tells one: every row is a view; say what it is by action_is"
    reading = Reading(columns=mapped, actions=tuple(actions), weights=weights, explode=explode, **settings)
    missing = tuple(m for m in ("user_id", "item_id", "timestamp_ms") if m not in found)
    return Guess(reading, why, missing, are_impressions(columns, columns.get("actions", ())))


def _named_id(columns: Mapping[str, Sequence[Any]], taken: Collection[str], of_user: bool) -> str:
    """The first id of a person; or of what is no person, else of another person than the user. Else empty."""
    ids = [n for n in columns if n not in taken and re.search(r"(id|ID)$", n)]
    if of_user:
        return next((n for n in ids if PERSON.search(n)), "")
    things = [n for n in ids if not NO_ITEM.search(n) and (taken or not PERSON.search(n))]
    of_rows = {n for n in things if n.lower() in ("id", "_id") and len(set(columns[n])) == len(columns[n])}
    things = [n for n in things if n not in of_rows]
    return min(things, key=lambda n: bool(PERSON.search(n)), default="")


def _named_noun(columns: Mapping[str, Sequence[Any]], taken: Collection[str], words: re.Pattern[str]) -> str:
    """The first column of texts or whole numbers, not one alone, whose name ends with one of the words; else empty."""
    for name in columns:
        apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
        values = {str(v) for v in columns[name] if v not in (None, "")}
        if name not in taken and words.search(apart) and len(values) > 1 and not _measured(values):
            return name
    return ""


def _measured(values: Collection[str]) -> bool:
    """Whether all are numbers, some of them with a fraction."""
    return all(re.fullmatch(times.NUMBER, v) for v in values) and any("." in v for v in values)


def _mend(columns: Mapping[str, Sequence[Any]], found: dict[str, str], why: dict[str, str]) -> None:
    """Sessions for users where most users are not known; no surface or request that is not always there."""
    for meaning in ("surface", "request_id"):
        if meaning in found and None in columns[found[meaning]]:
            if meaning == "request_id" or "user_id" not in found:
                continue
            del found[meaning], why[meaning]
    users = columns.get(found.get("user_id", ""), ())
    if len(users) and 5 * sum(v is None for v in users) > len(users) and "request_id" in found:
        why["user_id"] = f"{found.pop('request_id')}: many rows have no {found['user_id']}"
        found["user_id"] = why["user_id"].partition(":")[0]
        del why["request_id"]


def _exploded(
    columns: Mapping[str, Sequence[Any]], why: dict[str, str]
) -> tuple[tuple[str, ...], Mapping[str, Sequence[Any]]]:
    """(the list of objects that is a row for each, where an item or a time stands in it alone; the columns then)."""
    item = next(c for c in EVENTS if c.name == "item_id")
    nested = {
        n: inner
        for n, values in columns.items()
        if (inner := [e for v in values if isinstance(v, list) for e in v if isinstance(e, dict)])
    }
    for name, elements in nested.items():
        keys = dict.fromkeys(k for e in elements for k in e)
        if guessed(item, keys) and not guessed(item, [n for n in columns if n != name]):
            why["explode"] = f"{name} is a list of {', '.join(list(keys)[:4])}: a row for each"
            inside = {k: [e.get(k) for e in elements] for k in keys}
            return (name,), {**{n: v for n, v in columns.items() if n != name}, **inside}
    return (), columns


def headless(names: Sequence[str]) -> bool:
    """Whether the first line of a CSV is a row: one of its fields is a number or a time, as no name of a column is."""
    row = re.compile(rf"{times.NUMBER}|^\d{{4}}-\d\d-\d\d")
    return any(row.match(n) or times.suggested([n]) for n in names)


def guess_unnamed(columns: Sequence[Sequence[Any]]) -> Guess:
    """Of a CSV without a header, by what its fields hold: a time, a rating or a few names of actions, then user and
    item as the first two of the others that are no measurements.

    Args:
        columns: first values of each field.
    """
    names = ["-"] * len(columns)
    why: dict[str, str] = {"header": "none: the first line is a row; fields are told by what they hold"}
    settings: dict[str, Any] = {}
    actions: list[ActionColumn] = []
    texts = [[str(v) for v in c if v not in (None, "")] for c in columns]
    numbers = [
        [n for t in c if re.fullmatch(times.NUMBER, t) and math.isfinite(n := float(t))] for c in texts
    ]
    at = next((i for i in range(len(columns)) if _is_time(texts[i], numbers[i])), None)
    if at is not None:
        names[at] = "timestamp_ms"
        settings |= _time(texts[at], why)
        why["timestamp_ms"] = f"field {at + 1}: {why.pop('time', 'times')}"
    for i, (some, values) in enumerate(zip(numbers, texts, strict=True)):
        if names[i] != "-" or i < 2 or not values:
            continue
        if len(some) == len(values) and 1 < max(some) <= 10 and min(some) >= 0 and "rating" not in names:
            names[i] = "rating"
            actions = _liked("rating", max(some))
            why["actions"] = f"field {i + 1} is a rating up to {max(some):g}"
        elif (
            not some
            and "action" not in names
            and len(set(values)) <= NAMES
            and all(re.fullmatch(r"[a-z][a-z_ -]{1,20}", v, re.I) for v in values)
        ):
            names[i] = "action"
            why["action"] = f"field {i + 1}: {', '.join(sorted(set(values))[:5])}"
    ids = [
        i for i, values in enumerate(texts)
        if names[i] == "-" and values and not (numbers[i] and any(n != int(n) for n in numbers[i]))
    ]  # fmt: skip
    for meaning, i in zip(("user_id", "item_id"), ids, strict=False):
        names[i] = meaning
        why[meaning] = f"field {i + 1}: the {'first' if meaning == 'user_id' else 'next'} that is an id"
    if not actions and "action" not in names:
        settings["action_is"] = "view"
        why["action"] = "no field tells one: every row is a view; say what it is by action_is"
    weights = guessed_weights([a.name for a in actions]) if actions else {}
    reading = Reading(header=tuple(names), actions=tuple(actions), weights=weights, **settings)
    return Guess(reading, why, tuple(m for m in ("user_id", "item_id", "timestamp_ms") if m not in names))


def _is_time(values: Sequence[str], numbers: Sequence[float]) -> bool:
    """Whether all of a field's values are times: text, or numbers in a unit between 2000 and now or so."""
    if not values:
        return False
    if len(numbers) == len(values):
        low, high = TIMES_MS[0] * 1.3, TIMES_MS[1]
        return any(all(low <= n * factor <= high for n in numbers) for factor in TIME_UNITS.values())
    _, wrong = times.parsed(pa.array(values, pa.string()))
    form = times.suggested(list(values)) if wrong.any() else ""
    return not (times.parsed(pa.array(values, pa.string()), form)[1] if form else wrong).any()


def _actions(
    columns: Mapping[str, Sequence[Any]], taken: set[str], found: dict[str, str], why: dict[str, str]
) -> tuple[list[ActionColumn], dict[str, Any]]:
    flags = [n for n in columns if n not in taken and FLAG.search(n) and _is_flag(columns[n])]
    if flags:
        why["actions"] = f"{len(flags)} columns of 0 and 1"
        named = {re.sub(r"^(is|has|did)_", "", n, flags=re.I).lower(): n for n in flags}
        return [ActionColumn(a, n) for a, n in named.items()], {"unengaged": "impressions"}
    column, free = next(c for c in EVENTS if c.name == "action"), [n for n in columns if n not in taken]
    always = [n for n in free if None not in columns[n]]
    name = guessed(column, always) or guessed(column, free)
    if not name:
        return _action_by_values(columns, [*always, *free], found, why)
    values = [v for v in columns[name] if v not in (None, "")]
    numbers = [float(v) for v in values if re.fullmatch(times.NUMBER, str(v))]
    rating = re.search(r"rating|stars|overall|score", name, re.I)
    if numbers and len(numbers) == len(values) and not rating and not 0 <= min(numbers) <= max(numbers) <= 30:
        return _action_by_values(
            columns, [n for n in (*always, *free) if n != name], found, why
        )  # ids of events, say
    if values and len(numbers) == len(values) and max(numbers) > 1 and rating:
        why["actions"] = f"{name} is a rating up to {max(numbers):g}"
        return _liked(name, max(numbers)), {}
    found["action"] = name
    why["action"] = f"named {name}"
    return [], {}


def _action_by_values(
    columns: Mapping[str, Sequence[Any]], free: Sequence[str], found: dict[str, str], why: dict[str, str]
) -> tuple[list[ActionColumn], dict[str, Any]]:
    """The first column of a few texts most of which begin or end with a word of :data:`ACTION`."""
    for name in free:
        said = [v for v in columns[name] if v not in (None, "")]
        if NO_ACTION.search(name) or not all(isinstance(v, str) for v in said):
            continue
        values = set(said)
        words = [re.findall(r"[^\W\d_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", v)) for v in values]
        done = sum(any(map(ACTION.fullmatch, (w[0], w[-1]))) for w in words if w)
        if len(values) <= NAMES and 2 * done > len(values):
            found["action"] = name
            why["action"] = f"{name} holds words for actions: {', '.join(sorted(values)[:5])}"
            break
    return [], {}


def _time_by_values(
    columns: Mapping[str, Sequence[Any]], taken: set[str], found: dict[str, str], why: dict[str, str]
) -> None:
    """The one column left whose values are all times, text or numbers of a column named so; of several, the one that
    is named so."""
    times_: list[str] = []
    for name in (n for n in columns if n not in taken and n not in found.values()):
        texts = [str(v) for v in columns[name] if v not in (None, "")][:100]
        numbers = [float(t) for t in texts if re.fullmatch(times.NUMBER, t)]
        if (not numbers or TIMED.search(name)) and _is_time(texts, numbers):
            times_.append(name)
    named = [n for n in times_ if TIMED.search(n)]
    if len(times_) == 1 or len(named) == 1:
        [found["timestamp_ms"]] = named if len(named) == 1 else times_
        why["timestamp_ms"] = f"{found['timestamp_ms']} holds times"


def _liked(name: str, most: float) -> list[ActionColumn]:
    """What a column of ratings up to ``most`` tells."""
    high, low = next(((h, w) for top, h, w in SCALES if most <= top), (most * 0.7, most * 0.3))
    return [ActionColumn("liked", name, ">=", f"{high:g}"), ActionColumn("disliked", name, "<=", f"{low:g}")]


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
    _, wrong = times.parsed(pa.array(texts, pa.string()))
    if wrong.any() and form:
        why["time"] = f"text as {form}"
        return {"time_format": form}
    return {}
