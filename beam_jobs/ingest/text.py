"""Text logs to Parquet under the run's directory, one task per file, before ``ingest`` looks at their columns.

    every text log ──draft──▶ what its values are ──(together)──▶ kinds ──typed──▶ RUN/spill/text/KEY.parquet

The kind of a column is one for all text logs of a run (vista/data/logs/text.py makes it so):

- times are numbers (``--time-unit``) where half of the values are, else ISO 8601; positions are integers;
- any other column has the kind that the tables, or the run's Parquet files, give it already (if that is int and most
  values are not, the file is refused); else it is int where every value in every file of events and impressions is
  an integer, else string. Files of items follow.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import xxhash

from beam_jobs.run.engines import run_tasks
from beam_jobs.run.record import RunDirectory, write_atomically
from vista.data.logs import schema
from vista.data.logs.schema import Column, UnreadableFile
from vista.data.logs.text import Facts, draft, typed

Columns = tuple[Column, ...]


@dataclass(frozen=True)
class TextLog:
    """One text log on its way.

    Attributes:
        folder: where its Parquet files go.
        columns, mapping: as in :func:`vista.data.logs.schema.inspect`.
    """

    path: str
    folder: str
    columns: Columns
    mapping: dict[str, str]

    @cached_property
    def key(self) -> str:
        size, digest = schema.identity(self.path)
        return xxhash.xxh3_64_hexdigest(f"{self.path}|{size}|{digest}".encode())

    def file(self, end: str) -> Path:
        return Path(self.folder, self.key + end)

    def wanted(self) -> set[str]:
        """Every name that a column may have."""
        names = {schema.column_name(c, self.mapping, ())[0] for c in self.columns}
        return names | {schema.ALIASES[c.name] for c in self.columns if c.name in schema.ALIASES}

    def facts(self) -> Facts:
        return Facts(**json.loads(self.file(".json").read_text()))

    def write_draft(self) -> None:
        """Raises UnreadableFile."""
        if not self.file(".json").exists():
            self.file("").parent.mkdir(parents=True, exist_ok=True)
            found = draft(self.path, str(self.file(".draft")), self.wanted())
            write_atomically(self.file(".json"), json.dumps(asdict(found)).encode())

    def write_typed(self, kinds: Mapping[str, str]) -> None:
        """``kinds``: by column name."""
        if not self.file(".parquet").exists():
            typed(str(self.file(".draft")), str(self.file(".parquet")), self.facts(), kinds)
            self.file(".draft").unlink()


def _draft(log: TextLog) -> dict[str, int]:
    """Keeps the text of an unreadable file's error where the driver finds it."""
    try:
        log.write_draft()
    except UnreadableFile as error:
        RunDirectory(Path(log.folder).parents[1]).note_failure(f"text-{log.key}", error)
    return {}


def _typed(task: tuple[TextLog, dict[str, str]]) -> dict[str, int]:
    task[0].write_typed(task[1])
    return {}


def as_parquet(
    logs: Sequence[TextLog], fixed: Mapping[str, str], beam_args: Sequence[str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Convert text logs: (path to Parquet file, path to error of those that cannot be read).

    Args:
        fixed: kind by meaning (actions: ``action``) where the tables or other files have settled it.
    """
    if not logs:
        return {}, {}
    run = RunDirectory(Path(logs[0].folder).parents[1])
    run_tasks("ingest: text", logs, _draft, beam_args)
    failures = {name: fact["text"] for name, fact in run.failures().items()}
    bad = {log.path: failures[f"text-{log.key}"] for log in logs if f"text-{log.key}" in failures}
    good = [log for log in logs if log.path not in bad]
    kinds = _kinds([(log, log.facts()) for log in good], dict(fixed))
    run_tasks("ingest: types", list(zip(good, kinds, strict=True)), _typed, beam_args)
    return {log.path: str(log.file(".parquet")) for log in good}, bad


def _kinds(logs: Sequence[tuple[TextLog, Facts]], fixed: Mapping[str, str]) -> list[dict[str, str]]:
    """Per log, the kind of each column that is not to stay text."""
    named: list[dict[str, str]] = []
    for log, facts in logs:
        found = {c.name: schema.column_name(c, log.mapping, facts.values)[0] for c in log.columns}
        named.append({meaning: name for meaning, name in found.items() if name in facts.values})
    texts = set()
    for (log, facts), names in zip(logs, named, strict=True):
        if log.columns == schema.ITEMS:
            continue
        for meaning, name in names.items():
            listed = facts.lists.get(name)
            if "string" in listed if listed is not None else facts.integers[name] < facts.values[name]:
                texts.add("action" if meaning == "actions" else meaning)
    fixed = {**dict.fromkeys(texts, "string"), **fixed}
    kinds = (
        {name: _kind(meaning, name, facts, fixed) for meaning, name in names.items()}
        for (_, facts), names in zip(logs, named, strict=True)
    )
    return [{name: kind for name, kind in found.items() if kind != "string"} for found in kinds]


def _kind(meaning: str, name: str, facts: Facts, fixed: Mapping[str, str]) -> str:
    values = facts.values[name]
    if meaning in ("position", "name"):
        return "int" if meaning == "position" else "string"
    if meaning == "timestamp_ms":
        if 2 * facts.integers[name] >= values:
            return "int"
        return "float" if 2 * facts.numbers[name] >= values else "time"
    kind = fixed.get("action" if meaning == "actions" else meaning, "int")
    if name in facts.lists:
        return f"list of {kind}"
    # Names where numbers are wanted are no stray values: as text the file is refused for what it is.
    return "string" if 2 * facts.integers[name] < values else kind
