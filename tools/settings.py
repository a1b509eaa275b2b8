"""``HOME/vista.toml``: what a person would otherwise give to every command of this home.

    store = "/fast/store"          # any option of several verbs, by its long name without the dashes
    threads = 2

    [refresh]                      # options of one verb
    max-depth = 4
    codec = ["slots=int8"]

    [log.columns]                  # how logs are read, as `vista init` guesses it (vista/data/logs/reading.py)
    item_id = "sku"

What is given on the command line has its say over a verb's table, that over the lines above the tables, those over
what is built in. ``vista config --show`` tells what holds and from where. ``--home`` itself is only for the command
line: the file lies in it.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tools.home import HOME
from tools.verbs import VERBS
from vista.small_text import small_text

FILE = "vista.toml"
INGEST_TABLES = ("log",)
"""Tables that are no verbs: ``vista ingest`` reads them."""


@dataclass(frozen=True)
class Settings:
    """What a ``vista.toml`` says; empty where there is none.

    Attributes:
        path: of the file.
        common: option to value, for every verb that has it.
        verbs: the same by verb.
        tables: the tables of :data:`INGEST_TABLES` that are there.
    """

    path: Path
    common: Mapping[str, Any] = field(default_factory=dict)
    verbs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    tables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def defaults(self, verb: str, command: Any) -> dict[str, Any]:
        """Parameter name to value for one verb.

        Raises:
            ConfigError: the verb's table names an option that it has not.
        """
        names = option_names(command)
        own = self.verbs.get(verb, {})
        unknown = sorted(set(own) - set(names))
        if unknown:
            raise self.error(
                f"[{verb}]: expected options of `vista {verb}` ({', '.join(sorted(names))}), found {unknown[0]!r}"
            )
        given = {**{k: v for k, v in self.common.items() if k in names}, **own}
        return {names[k]: self._fitting(verb, k, v, command) for k, v in given.items()}

    def _fitting(self, verb: str, name: str, value: Any, command: Any) -> Any:
        option = next(p for p in command.params if f"--{name}" in p.opts)
        if isinstance(value, Mapping) or (isinstance(value, list) != bool(option.multiple)):
            what = "a list" if option.multiple else "one value"
            raise self.error(f"[{verb}] {name}: expected {what}, found {value!r}")
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, bool) != bool(option.is_flag):
                what = "true or false" if option.is_flag else "a value"
                raise self.error(f"[{verb}] {name}: expected {what}, found {one!r}")
        return value

    def error(self, text: str) -> Exception:
        """What is wrong in the file, as the error to raise."""
        from vista.errors import ConfigError

        return ConfigError(f"{self.path}: {text}; `vista config --show` tells what holds")


def option_names(command: Any) -> dict[str, str]:
    """Long name of each option of a verb, without dashes, to its parameter; ``home`` and ``help`` left out."""
    return {
        word[2:]: p.name
        for p in command.params if p.param_type_name == "option" and p.name not in ("home", "help")
        for word in p.opts if word.startswith("--")
    }  # fmt: skip


def home_in(words: Sequence[str]) -> Path:
    """The home that a verb's words name."""
    for k, word in enumerate(words):
        if word == "--":
            break
        if word.startswith("--home="):
            return Path(word.partition("=")[2])
        if word == "--home" and k + 1 < len(words):
            return Path(words[k + 1])
    return HOME


def read(home: Path) -> Settings:
    """Settings of a home.

    Raises:
        ConfigError: not TOML, or a table that is neither a verb nor one of ``vista ingest``.
    """
    path = home / FILE
    try:
        found = tomllib.loads(small_text(path))
    except (FileNotFoundError, NotADirectoryError):
        return Settings(path)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise Settings(path).error(f"expected TOML, found {error}") from error
    tables = {k: v for k, v in found.items() if isinstance(v, Mapping)}
    common = {k: v for k, v in found.items() if k not in tables}
    unknown = sorted(set(tables) - set(VERBS) - set(INGEST_TABLES))
    if unknown:
        raise Settings(path).error(f"[{unknown[0]}]: expected a verb, or one of {', '.join(INGEST_TABLES)}")
    if "home" in common:
        raise Settings(path).error("home: expected on the command line, since this file lies in it")
    of_verbs = {k: v for k, v in tables.items() if k in VERBS}
    return Settings(path, common, of_verbs, {k: v for k, v in tables.items() if k in INGEST_TABLES})
