"""Read and check some row groups of logs, and spill their rows by bucket and the names of items by item shard."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import pyarrow as pa

from beam_jobs.ingest.spill import write_chunk
from beam_jobs.ingest.units import (
    IngestSettings,
    ReadTask,
    Routed,
    by_item,
    finished,
    inputs_digest,
    write_unit,
)
from beam_jobs.ingest.vocabulary import batch_rows, text_columns
from beam_jobs.run.record import DEAD_LETTER_SCHEMA, DeadLetter
from cache_store.format.keys import bucket_of
from vista.data.logs.importer import Checked, check
from vista.data.logs.letters import Letter
from vista.data.logs.schema import UnreadableFile, batches, open_source
from vista.data.paths import is_full


def read_logs(task: ReadTask, settings: IngestSettings) -> dict[str, int]:
    """Read, check and spill the rows of a task.

    Raises:
        UnreadableFile: pages of a file cannot be read and ``skip_bad_files`` is off.
    """
    inputs, told = inputs_digest([asdict(task)], settings), {"rows_read": task.rows}
    if finished(settings, task.name, inputs) is not None:
        return told
    start = time.monotonic()
    chunks = _Chunks(task, settings)
    rules = (settings.shown_rules if task.tag == "impressions" else None) or settings.rules
    letters: list[pa.Table] = []
    rows = 0
    for source, groups, first_row in task.parts:
        # Where bad pages are skipped, row groups are read one by one: a bad one costs its own rows alone.
        for some in [(g,) for g in groups] if settings.skip_bad_files else [groups]:
            expected = sum(source.groups[g] for g in some)
            seen = 0
            try:
                with open_source(source.data, text_columns(source)) as file:
                    wanted = list(dict.fromkeys(source.names.values()))
                    most = batch_rows(file, settings.chunk_rows)
                    for batch in batches(file, most, wanted, some):
                        checked = check(batch, source, rules, first_row + seen)
                        seen += batch.num_rows
                        chunks.add(checked, source.number)
                        letters.append(as_table(checked.letters, source.path))
            except (UnreadableFile, OSError, ValueError, pa.ArrowException) as error:
                if is_full(error):
                    raise
                why = str(error).split("\n", 1)[0]
                if not settings.skip_bad_files:
                    raise UnreadableFile(
                        f"{source.path}: expected {expected} readable rows from row {first_row}, found {seen}, then: "
                        f"{why}; replace the file, or run vista ingest --skip-bad-files"
                    ) from error
                lost = DeadLetter(
                    "ingest",
                    "unreadable_rows",
                    why,
                    source=source.path,
                    row=first_row + seen,
                    rows=expected - seen,
                )
                letters.append(pa.Table.from_pylist([asdict(lost)], schema=DEAD_LETTER_SCHEMA))
            rows += expected
            first_row += expected
    routed = chunks.finish()
    dead = pa.concat_tables([DEAD_LETTER_SCHEMA.empty_table(), *letters])
    settings.directory.write_dead_letters(task.name, dead)
    lost_rows = int(pa.compute.sum(dead["rows"]).as_py() or 0)
    counts = {"rows": rows, "dead": lost_rows, "kept": chunks.rows, "events": rows}
    counts |= {"shown": chunks.shown, "unengaged": chunks.unengaged}
    write_unit(settings, task.name, inputs, routed, counts, start)
    return told


def as_table(letters: Sequence[Letter], path: str) -> pa.Table:
    n = len(letters)
    columns = {
        "job": pa.array(["ingest"] * n, pa.string()),
        "bucket": pa.array(np.full(n, -1, np.int32)),
        "user": pa.array([x.user for x in letters], pa.string()),
        "reason": pa.array([x.reason for x in letters], pa.string()),
        "detail": pa.array([x.values for x in letters], pa.string()),
        "source": pa.array([path] * n, pa.string()),
        "row": pa.array([x.row for x in letters], pa.int64()),
        "rows": pa.array(np.ones(n, np.int64)),
    }
    return pa.table(columns, schema=DEAD_LETTER_SCHEMA)


class _Chunks:
    """Checked batches gathered to chunks of about ``chunk_rows`` rows, then written by bucket.

    Attributes:
        rows: that were kept.
        shown: of them, those that are impressions; unengaged: those that are nothing else.
    """

    def __init__(self, task: ReadTask, settings: IngestSettings):
        self._task, self._settings = task, settings
        self._held: dict[str, list[tuple[pa.Array, dict[str, np.ndarray]]]] = {}
        self._held_rows = 0
        self._written = 0
        self._routed: list[Routed] = []
        self._names: list[tuple[np.ndarray, pa.Array]] = []
        self._name_rows = 0
        self.rows = self.shown = self.unengaged = 0

    def add(self, checked: Checked, file: int) -> None:
        if len(checked.names[0]):
            self._names.append(checked.names)
            self._name_rows += len(checked.names[0])
            if self._name_rows > 2 * self._settings.chunk_rows:
                self._names = [_distinct(self._names)]
                self._name_rows = len(self._names[0][0])
        if not len(checked):
            return
        columns, engaged = dict(checked.columns), checked.engaged
        if engaged is None:
            self._hold(self._task.tag, checked.user, columns, file)
        else:
            position, surface = columns.pop("position"), columns.pop("surface")
            self._hold("impressions", checked.user, {**columns, "position": position}, file)
            some = {**columns, "surface": surface}
            user = checked.user.filter(pa.array(engaged))
            self._hold("events", user, {n: c[engaged] for n, c in some.items()}, file)
            self.shown += len(checked)
            self.unengaged += len(checked) - int(engaged.sum())
        self._held_rows += len(checked)
        self.rows += len(checked)
        if self._held_rows >= self._settings.chunk_rows:
            self._write()

    def _hold(self, tag: str, user: pa.Array, columns: dict[str, np.ndarray], file: int) -> None:
        if not len(user):
            return
        columns["file"] = np.full(len(user), file, np.int32)
        self._held.setdefault(tag, []).append((user, columns))

    def _write(self) -> None:
        s, task = self._settings, self._task
        for tag, held in self._held.items():
            user = pa.concat_arrays([u for u, _ in held])
            columns = {n: np.concatenate([c[n] for _, c in held]) for n in held[0][1]}
            if s.user_kind == "int64":
                part = bucket_of(user.to_numpy(), s.num_buckets)
            else:
                encoded = user.dictionary_encode()
                part = bucket_of(encoded.dictionary.to_pylist(), s.num_buckets)[encoded.indices.to_numpy()]
            path = s.spill(tag, f"{task.tag}-{task.number:06d}-{self._written:04d}.arrow")
            pieces = write_chunk(path, tag, part, {"user": user, **columns})
            self._routed += [("bucket", bucket, piece) for bucket, piece in pieces.items()]
        self._held, self._held_rows = {}, 0
        self._written += 1

    def finish(self) -> list[Routed]:
        if self._held:
            self._write()
        if self._names:
            item, names = _distinct(self._names)
            columns = {"item": item, "name": names}
            self._routed += by_item("names", columns, f"{self._task.name}.arrow", self._settings)
        return self._routed


def _distinct(parts: Sequence[tuple[np.ndarray, pa.Array]]) -> tuple[np.ndarray, pa.Array]:
    """Names of items, each item once."""
    item, names = np.concatenate([p[0] for p in parts]), pa.concat_arrays([p[1] for p in parts])
    item, first = np.unique(item, return_index=True)
    return item, names.take(pa.array(first))
