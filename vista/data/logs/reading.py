"""How a log is read: one value that flags, ``vista.toml`` and the layouts all come to, checked at once.

about = "KuaiRand"                  explode = ["events"]            one row per element of a list
time_unit = "ms"                    action_is = "listen"            where no column tells an action
[columns]                           unengaged = "impressions"       what a row without an action is
item_id = "video_id"                header = ["user_id", "-"]       names of a file that has none
[actions]                           [weights]
long_view = "play_time_ms>=18000"   long_view = 1
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vista.errors import DataError

Bounds = tuple[int, int] | None
"""Least and largest time of rows that will be taken, in milliseconds; None where any may be."""

TIME_UNITS: dict[str, float] = {"s": 1e3, "ms": 1.0, "us": 1e-3, "ns": 1e-6}
"""Milliseconds in a unit of time."""

MEANINGS = (
    "user_id", "item_id", "action", "actions", "surface", "timestamp_ms", "timestamp", "request_id", "position",
    "name", "category", "text", "vector",
)  # fmt: skip
UNENGAGED = ("events", "impressions", "refused")
LAYOUTS = Path(__file__).parent / "layouts"
_ACTION = re.compile(r"^\s*([^<>=!]+?)\s*(?:(>=|<=|==|!=|>|<)\s*(.+?))?\s*$")


class WrongOption(DataError):
    """A value of an option, a layout or ``vista.toml`` that cannot be."""


def _wrong(where: str, expected: str, found: str, example: str) -> WrongOption:
    return WrongOption(f"{where}: expected {expected}, found {found}; for example {example}")


@dataclass(frozen=True)
class ActionColumn:
    """A column that tells one action: of a 0/1 or bool it is not 0, of a list that the row's item is in it, else the
    condition."""

    name: str
    column: str
    operator: str = ""
    value: str = ""

    @staticmethod
    def of(name: str, says: str, where: str) -> ActionColumn:
        """Raises WrongOption."""
        match = _ACTION.match(says) if isinstance(says, str) else None
        if match is None or not name.strip():
            example = "--action-column like=is_like --action-column 'long_view=play_time_ms>=18000'"
            raise _wrong(where, "NAME=COLUMN or NAME=COLUMN>=NUMBER", f"{f'{name}={says}'!r}", example)
        column, operator, value = (part or "" for part in match.groups())
        if operator in (">=", "<=", ">", "<") and _number(value) is None:
            example = f"--action-column '{name}={column}{operator}4'"
            raise _wrong(f"{where}: action {name!r}", f"a number behind {operator}", repr(value), example)
        return ActionColumn(name.strip(), column, operator, value.strip("'\""))

    def __str__(self) -> str:
        return f"{self.column}{self.operator}{self.value}"


@dataclass(frozen=True)
class Reading:
    """How the rows of a log become events.

    Attributes:
        columns: meaning to column name; a time in two columns is ``date+time``.
        actions: columns that tell one action each.
        action_is: an action that every row has.
        unengaged: what a row is in which no action column tells one: an event without action, an impression (rows
            with an action are impressions too then), or refused (a dead letter).
        constants: meaning to the value that all rows have.
        time_unit: of times that are numbers.
        time_format: of those that are text, as ``strptime`` has it.
        time_from: ``order`` (no times: by order of files and rows, a millisecond each), or the date that times count
            from.
        header: names of a CSV's columns where it has no header; ``-`` leaves one out.
        quotes: whether quotes enclose fields; None finds out.
        encoding: of text; empty is UTF-8, or UTF-16 or 32 where the first bytes say so.
        separator: between fields; empty finds out.
        sections: meaning of the value that lines ``VALUE:`` give for the lines below.
        explode: lists (``COLUMN``, of a nested event its fields become columns), or text of values with spaces
            between (``COLUMN:FIELD-FIELD`` takes ``N1-0`` apart), one row per element.
        keep_repeats: equal rows of one file are different events.
        weights: action to what it is worth in a score.
        about: a line for people.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    actions: tuple[ActionColumn, ...] = ()
    action_is: str = ""
    unengaged: str = "events"
    constants: Mapping[str, str] = field(default_factory=dict)
    time_unit: str = "ms"
    time_format: str = ""
    time_from: str = ""
    header: tuple[str, ...] = ()
    quotes: bool | None = None
    encoding: str = ""
    separator: str = ""
    sections: str = ""
    explode: tuple[str, ...] = ()
    keep_repeats: bool = False
    weights: Mapping[str, float] = field(default_factory=dict)
    about: str = ""

    def __post_init__(self) -> None:
        _one_of("--time-unit", self.time_unit, TIME_UNITS)
        _one_of("--unengaged", self.unengaged, UNENGAGED)
        for option, names in (("--column", self.columns), ("--constant", self.constants)):
            if unknown := sorted(set(names) - set(MEANINGS)):
                example = "timestamp_ms=event_time" if option == "--column" else "surface=web"
                among = f"names among {', '.join(MEANINGS)}"
                raise _wrong(option, among, ", ".join(unknown), f"{option} {example}")
        if self.sections and self.sections not in MEANINGS:
            raise WrongOption(f"sections: expected one of {', '.join(MEANINGS)}, found {self.sections!r}")
        self._check_actions()
        self._check_times()
        self._check_constants()
        self._check_text()

    def _check_actions(self) -> None:
        names = [a.name for a in self.actions]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            example = "--action-column like=is_like --action-column share=is_share"
            raise _wrong("--action-column", "each action once", f"{twice[0]!r} twice", example)
        if self.unengaged != "events" and not self.actions:
            option = f"--unengaged {self.unengaged}"
            example = f"--action-column like=is_like {option}"
            raise _wrong(option, "columns that tell the actions beside it", "none", example)
        for name, weight in self.weights.items():
            if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not math.isfinite(weight):
                raise _wrong(f"--weight: action {name!r}", "a number", repr(weight), f"--weight {name}=1")

    def _check_times(self) -> None:
        if self.time_from not in ("", "order"):
            self.start_ms  # noqa: B018 raises
        if self.time_format:
            try:
                some = datetime(2001, 2, 3, tzinfo=UTC).strftime(self.time_format)
                datetime.strptime(some, self.time_format)
                fits = "%" in self.time_format
            except (ValueError, re.error):
                fits = False
            if not fits:
                example = "--time-format '%m/%d/%Y %I:%M:%S %p'"
                raise _wrong("--time-format", "a format of strptime", repr(self.time_format), example)
            if not re.search(r"%[YyGcxD]", self.time_format):
                raise WrongOption(
                    f"--time-format: expected a format with a year, found {self.time_format!r}, whose times would all "
                    f"be of 1900; write the year into the column, and read it with --time-format "
                    f"{with_year(self.time_format)!r}"
                )

    def _check_constants(self) -> None:
        for name in ("timestamp_ms", "timestamp", "position"):
            value = self.constants.get(name)
            if value is None or (_number(value) is not None):
                continue
            try:
                if name == "position":
                    raise ValueError(value)
                if self.time_format:
                    datetime.strptime(value, self.time_format)
                else:
                    datetime.fromisoformat(value)
            except ValueError:
                wanted = "a number" if name == "position" else "a number or a time"
                example = "0" if name == "position" else "2024-01-31T12:00:00"
                where, example = f"--constant: {name}", f"--constant {name}={example}"
                raise _wrong(where, wanted, repr(value), example) from None

    def _check_text(self) -> None:
        twice = sorted({n for n in self.header if n != "-" and self.header.count(n) > 1})
        if twice or any(not n for n in self.header):
            found, example = (
                f"{twice[0]!r} twice" if twice else "'' empty",
                "user_id,item_id,-,action,timestamp_ms",
            )
            raise _wrong("--header", "each name once", found, f"--header {example}")
        if self.separator and len(self.separator.encode()) > 3:
            raise _wrong("separator", "one to three characters", repr(self.separator), "'\\t' or '::'")
        try:
            "".encode(self.encoding or "utf-8")
        except LookupError:
            found, example = repr(self.encoding), "--encoding latin-1"
            raise _wrong("--encoding", "the name of a text encoding", found, example) from None
        for spec in self.explode:
            exploded(spec)

    @property
    def start_ms(self) -> int:
        """Milliseconds since 1970 of the date that times count from; 0 where they count from 1970."""
        if self.time_from in ("", "order"):
            return 0
        try:
            found = datetime.fromisoformat(self.time_from)
        except ValueError:
            expected, example = "order, or the date that times count from", "--time-from 2020-01-01"
            raise _wrong("--time-from", expected, repr(self.time_from), example) from None
        return int((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp() * 1000)

    @property
    def by_order(self) -> bool:
        """Whether rows have no times but their order."""
        return self.time_from == "order"

    @property
    def tells_actions(self) -> bool:
        """Whether a column of actions is not needed."""
        return bool(self.actions or self.action_is or "action" in self.constants)

    def named_actions(self) -> tuple[str, ...]:
        """Actions that it names, in order."""
        fixed = self.constants.get("action", "")
        names = [*(a.name for a in self.actions), *filter(None, (self.action_is, fixed))]
        return tuple(dict.fromkeys(names))

    def over(self, base: Reading) -> Reading:
        """This one's settings, and of ``base`` what it says nothing about (columns and actions one by one)."""
        values: dict[str, Any] = {}
        for f in dataclasses.fields(self):
            mine, theirs = getattr(self, f.name), getattr(base, f.name)
            if isinstance(mine, Mapping):
                values[f.name] = {**theirs, **mine}
            elif f.name == "actions":
                values[f.name] = tuple({a.name: a for a in (*theirs, *mine)}.values())
            else:
                values[f.name] = theirs if mine == _DEFAULTS[f.name] else mine
        return Reading(**values)

    def to_json(self) -> dict[str, Any]:
        """What differs from the defaults, as :meth:`of` takes it."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values["actions"] = {a.name: str(a) for a in self.actions}
        found = {k: v for k, v in values.items() if v != _DEFAULTS[k] and v not in ((), {})}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in found.items()}

    def to_toml(self) -> str:
        """As a layout file has it."""
        values = self.to_json()
        plain = {k: v for k, v in values.items() if not isinstance(v, Mapping)}
        lines = [f"{k} = {_toml(v)}" for k, v in plain.items()]
        for name, table in values.items():
            if isinstance(table, Mapping):
                lines += ["", f"[{name}]", *(f"{_key(k)} = {_toml(v)}" for k, v in table.items())]
        return "\n".join(lines) + "\n"

    @staticmethod
    def of(values: Mapping[str, Any], where: str) -> Reading:
        """From the values of a layout file.

        Raises:
            WrongOption: names ``where`` and the field.
        """
        fields = {f.name: f for f in dataclasses.fields(Reading)}
        unknown = sorted(set(values) - set(fields))
        if unknown:
            raise WrongOption(
                f"{where}: expected settings among {', '.join(fields)}, found {', '.join(unknown)}; "
                f"`vista layouts NAME` shows a whole one"
            )
        found: dict[str, Any] = dict(values)
        for name, value in values.items():
            default = _DEFAULTS[name]
            kind: tuple[type, ...] = (type(default),)
            if name in ("actions", "columns", "constants", "weights"):
                kind = (dict,)
            elif isinstance(default, tuple):
                kind = (list, tuple)
            elif name == "quotes":
                kind = (bool, type(None))
            text = name in ("columns", "constants", "actions", "header", "explode")
            inner = list(value.values()) if isinstance(value, dict) else value if text else ()
            if not isinstance(value, kind) or (text and not all(isinstance(v, str) for v in inner)):
                raise WrongOption(
                    f"{where}: {name}: expected {'names and values' if kind == (dict,) else kind[0].__name__}"
                    f"{' of text' if text else ''}, found {value!r}; `vista layouts NAME` shows a whole one"
                )
            if isinstance(default, tuple) and name != "actions":
                found[name] = tuple(values[name])
        if "actions" in values:
            found["actions"] = tuple(ActionColumn.of(n, says, where) for n, says in values["actions"].items())
        try:
            return Reading(**found)
        except WrongOption as error:
            raise WrongOption(f"{where}: {error}") from None


def with_year(time_format: str) -> str:
    """The same format with a year in front."""
    return f"%Y {time_format}"


def exploded(spec: str) -> tuple[str, tuple[str, ...], str]:
    """(column, fields that its elements are taken apart into, what stands between them) of an ``explode`` setting.

    Raises:
        WrongOption.
    """
    column, colon, pattern = spec.partition(":")
    fields = re.split(r"[^\w]", pattern) if colon else []
    between = re.findall(r"[^\w]", pattern)
    if not column or (colon and (len(fields) != 2 or not all(fields))):
        expected = "COLUMN, or COLUMN:FIELD-FIELD for elements to take apart"
        example = "--explode events, or --explode impressions:item_id-clicked"
        raise _wrong("--explode", expected, repr(spec), example)
    return column, tuple(fields), between[0] if between else ""


def layouts() -> dict[str, Reading]:
    """The layouts that come with vista, by name."""
    return {p.stem: load(str(p)) for p in sorted(LAYOUTS.glob("*.toml"))}


def load(name: str) -> Reading:
    """A layout by its name, or by its file's path.

    Raises:
        WrongOption: there is none, or it does not read.
    """
    known = sorted(p.stem for p in LAYOUTS.glob("*.toml"))
    path = LAYOUTS / f"{name}.toml" if name in known else Path(name)
    try:
        return Reading.of(tomllib.loads(path.read_text(encoding="utf-8")), str(path))
    except (OSError, ValueError) as error:
        near = difflib.get_close_matches(name, known, 1, 0.4) or ["movielens"]
        expected = f"one of the {len(known)} that vista layouts lists, or a file in TOML"
        raise _wrong("--layout", expected, f"{name!r} ({error})", f"--layout {near[0]}") from None


def _one_of(option: str, value: str, known: Sequence[str] | Mapping[str, Any]) -> None:
    if value not in known:
        raise _wrong(option, f"one of {', '.join(known)}", repr(value), f"{option} {next(iter(known))}")


def _number(text: str) -> float | None:
    try:
        found = float(text)
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml(v) for v in value) + "]"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _toml(name)


_DEFAULTS: dict[str, Any] = {f.name: getattr(Reading(), f.name) for f in dataclasses.fields(Reading)}
