"""The history of a local Git repository as a log: authors are users, files are items, a commit is a request."""

from __future__ import annotations

import itertools
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from vista.data.logs.reading import WrongOption

SCHEMA = pa.schema(
    [
        ("user_id", pa.string()),
        ("item_id", pa.string()),
        ("action", pa.string()),
        ("timestamp_ms", pa.int64()),
        ("request_id", pa.string()),
    ]
)
CHANGES = {"A": "add", "M": "modify", "D": "delete", "R": "rename", "C": "copy", "T": "retype"}
ROWS = 65_536


def write(folders: Sequence[str], target: Path) -> int:
    """Write every file that every commit touched, of any branch's history; how many rows.

    Raises:
        WrongOption: a folder is no repository, or git is not there.
    """
    rows, total = itertools.chain.from_iterable(map(_rows, folders)), 0
    with pq.ParquetWriter(target, SCHEMA) as writer:
        while True:
            some = list(itertools.islice(rows, ROWS))
            writer.write_batch(_batch(some))
            total += len(some)
            if len(some) < ROWS:
                return total


def _batch(rows: Sequence[tuple[str, str, str, int, str]]) -> pa.RecordBatch:
    columns = list(zip(*rows, strict=True)) or [()] * len(SCHEMA)
    arrays = [pa.array(c, t) for c, t in zip(columns, SCHEMA.types, strict=True)]
    return pa.record_batch(arrays, schema=SCHEMA)


def _rows(folder: str) -> Iterator[tuple[str, str, str, int, str]]:
    says = "--format=%x01%H%x02%aE%x02%at"
    command = ["git", "-C", folder, "log", "--no-merges", "--name-status", "-z", says]
    with tempfile.TemporaryFile() as errors:  # no pipe: git would wait for whoever reads it
        try:
            done = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors)
        except OSError as error:
            said = f"expected the program git, found none ({error})"
            raise WrongOption(f"vista ingest git {folder}: {said}") from None
        yield from _changes(done.stdout)
        if done.wait():
            errors.seek(0)
            said = errors.read(10_000).decode(errors="replace").strip()
            raise WrongOption(
                f"vista ingest git {folder}: expected a Git repository with a history, found: {said[:300]}; for "
                f"example vista ingest git ."
            )


def _changes(stream: object) -> Iterator[tuple[str, str, str, int, str]]:
    user, at, commit, status = "", 0, "", ""
    for word in _words(stream):
        if word.startswith("\x01"):
            commit, user, time = word[1:].split("\x02", 2)
            at, status = int(time or 0), ""
        elif not status:
            status = word.strip()
            left = 2 if status[:1] in ("R", "C") else 1
        else:
            left -= 1
            if not left:  # of a rename the new name
                if user:
                    yield user.lower(), word, CHANGES.get(status[:1], "other"), at * 1000, commit
                status = ""


def _words(stream: object) -> Iterator[str]:
    """What NULs separate; a commit's line may be followed by its first file's status after a line end."""
    held = b""
    while block := stream.read(1 << 20):  # type: ignore[attr-defined]
        parts = (held + block).split(b"\0")
        held = parts.pop()
        for part in parts:
            for word in part.decode(errors="replace").split("\n"):
                if word:
                    yield word
    if held.strip():
        yield held.decode(errors="replace").strip("\n")
