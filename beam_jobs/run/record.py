"""One run, one directory; what is in it makes the run resumable and accountable.

    RUN/
      run.json               what was asked and what came of it (rewritten whole, atomically)
      run.lock               held (flock) while a process works on the run
      receipts/NAME.json     one finished unit of work: its files with digests, counts, timings
      progress/NAME.json     users and events of a unit under work; only the progress bar reads it
      failures/NAME.json     the last error of a unit
      times/NAME.json        when a unit began and ended; only where spans are asked for
      dead/NAME.parquet      dead letters of one unit
      dead-letters.parquet   all of them, in order of NAME; written last, also when empty

NAME is ``bucket-00003`` for the unit of bucket 3. A receipt is written after the files that it names; whoever
resumes trusts it only if those files are still there with the same digest. Every file appears by rename.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import resource
import traceback
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from beam_jobs.errors import ExitCode, RunOptionsDiffer, RunRecordDamaged
from beam_jobs.run.files import held, room_for, write_atomically
from beam_jobs.run.secrets import redacted
from cache_store.errors import PublishConflict
from cache_store.format.layout import digest_file, replacing
from vista.small_text import small_json, small_text

RUN_FORMAT = 1

DEAD_LETTER_SCHEMA = pa.schema(
    [
        ("job", pa.string()),
        ("bucket", pa.int32()),
        ("user", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("source", pa.string()),
        ("row", pa.int64()),
        ("rows", pa.int64()),
    ]
)
"""``reason`` is a short stable word (``not_finite``, ``model_error``, ``null_user``, ...), ``detail`` a
sentence, ``source`` and ``row`` the input file and its row where there is one (else "" and -1), ``rows`` how
many rows the letter stands for."""


@dataclass(frozen=True)
class DeadLetter:
    """One user (summarize, refresh) or one group of rows (ingest) that was set aside: a row of the schema."""

    job: str
    reason: str
    detail: str = ""
    bucket: int = -1
    user: str = ""
    source: str = ""
    row: int = -1
    rows: int = 1


@dataclass(frozen=True)
class RunRecord:
    """What a run was and what came of it; ``run.json`` is its text form.

    Attributes:
        run_id: the directory's name and eight random digits, so that no two runs share one.
        identity: options that decide the result, without secrets; a resumed run must bring the same.
        environment: everything else that is worth keeping (runner options, machine, versions).
        facts: what the run found at its start and keeps to when it is continued.
        counts: by name; at least ``users``, ``events``, ``dead_letters`` once the run is finished.
        digests: by name; for summarize and refresh ``content`` is the generation's.
        timings: seconds by step.
        ``buckets``: one row per unit, from the receipts.
        peak_memory_bytes: the largest resident set of any process of the run.
    """

    job: str
    run_id: str
    path: str
    identity: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    started_ms: int = 0
    finished_ms: int | None = None
    table_snapshot: int | None = None
    fingerprint: str | None = None
    generation: str | None = None
    counts: dict[str, int] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    buckets: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    peak_memory_bytes: int = 0
    exit_code: int | None = None

    def as_dict(self) -> dict[str, Any]:
        return {"format": RUN_FORMAT, **dataclasses.asdict(self)}

    @staticmethod
    def load(run_dir: str | Path) -> RunRecord:
        """The record of a run directory.

        Raises:
            RunRecordDamaged: no ``run.json``, not JSON, or of another version.
        """
        path = Path(run_dir) / "run.json"
        try:
            values = small_json(path)
            version = values.pop("format")
            if version != RUN_FORMAT:
                raise ValueError(f"format {version}, this version reads {RUN_FORMAT}")
            found = RunRecord(**values)
            found._check()
            return found
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise RunRecordDamaged(
                f"{path}: not a run record ({error}); start the job again with another run directory"
            ) from error

    def _check(self) -> None:
        """Raises ValueError where a field is of another type than it is written with."""
        kinds = {"dict": dict, "list": list, "str": str, "int": int}
        for f in dataclasses.fields(self):
            value, kind = getattr(self, f.name), str(f.type)
            if value is None and "None" in kind:
                continue
            wanted = kinds[re.split(r"\W", kind)[0]]
            if not isinstance(value, wanted) or isinstance(value, bool):
                raise ValueError(f"field {f.name}: expected {kind}, found {str(value)[:60]!r}")
        for name, counted in self.counts.items():
            if type(counted) is not int:
                raise ValueError(f"field counts.{name}: expected a number, found {str(counted)[:60]!r}")
        if not all(isinstance(row, dict) for row in self.buckets):
            raise ValueError("field buckets: expected objects")


def peak_memory_bytes() -> int:
    """Largest resident set of this process so far, in bytes.

    ``VmHWM`` where the kernel has it: ``ru_maxrss`` of a spawned process starts at its parent's.
    """
    try:
        for row in Path("/proc/self/status").read_text().splitlines():
            if row.startswith("VmHWM:"):
                return int(row.split()[1]) * 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def unit_name(bucket: int) -> str:
    """Name of the unit of work that is bucket ``bucket``."""
    return f"bucket-{bucket:05d}"


class RunDirectory:
    """The directory of one run. Picklable: workers open it by path and need nothing else.

    All methods may be called from any process that sees the path; only :meth:`start`, :meth:`save` and
    :meth:`finish` belong to the driver.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)

    # Driver -------------------------------------------------------------------------------------------------

    @staticmethod
    def start(
        path: str | Path,
        *,
        job: str,
        identity: Mapping[str, Any],
        environment: Mapping[str, Any] | None = None,
        started_ms: int,
    ) -> tuple[RunDirectory, RunRecord]:
        """Create the run at ``path``, or continue the one that is there.

        Args:
            identity: JSON-able options that decide the result.

        Returns:
            The directory and its record as it stands; ``exit_code`` is not None where the run had finished.

        Raises:
            RunOptionsDiffer: the directory holds a run of another job or with another identity.
            RunRecordDamaged: the directory has files but no readable record.
        """
        run = RunDirectory(path)
        wanted = json.loads(json.dumps(redacted(identity)))
        if (run.path / "run.json").exists():
            record = RunRecord.load(run.path)
            if record.job != job:
                raise RunOptionsDiffer(
                    f"{run.path}: expected a run of {job}, found one of {record.job}; "
                    f"name another run directory"
                )
            there = redacted(record.identity)
            changed = [
                f"{key}: the run has {there.get(key)!r}, you ask {wanted.get(key)!r}"
                for key in sorted(there.keys() | wanted.keys())
                if there.get(key) != wanted.get(key)
            ]
            if changed:
                raise RunOptionsDiffer(
                    f"{run.path}: cannot continue this run with other options ({'; '.join(changed)}); "
                    f"repeat the old options to continue, or name another run directory to start anew"
                )
            return run, record
        if run.path.exists() and any(
            name != "run.lock" and not name.startswith(".") for name in os.listdir(run.path)
        ):
            raise RunRecordDamaged(
                f"{run.path}: expected run.json or an empty directory, found other files; "
                f"name another run directory"
            )
        record = RunRecord(
            job=job,
            run_id=f"{_SAFE.sub('-', run.path.name).strip('-')[:64] or 'run'}-{uuid.uuid4().hex[:8]}",
            path=str(run.path),
            identity=wanted,
            environment=json.loads(json.dumps(redacted(environment or {}))),
            started_ms=started_ms,
        )
        run.save(record)
        return run, record

    def save(self, record: RunRecord) -> None:
        """Write ``run.json``."""
        text = json.dumps(record.as_dict(), indent=1, allow_nan=False) + "\n"
        write_atomically(self.path / "run.json", text.encode())

    def hold(self) -> AbstractContextManager[None]:
        """Context in which no other process can hold the run.

        Raises:
            RunInProgress: on entry, if one does. The kernel drops the hold of a killed process.
        """
        return held(self.path)

    def finish(self, record: RunRecord) -> RunRecord:
        """Gather the dead letters, add buckets and peak memory from the receipts, write ``run.json``."""
        receipts = self.receipts()
        rows = [
            {"name": name, **{k: receipt[k] for k in _KEPT if k in receipt}}
            for name, receipt in sorted(receipts.items())
        ]
        letters = self.gather_dead_letters()
        for left in self.path.rglob(".*.tmp"):  # of writers that were killed
            left.unlink(missing_ok=True)
        peak = max([peak_memory_bytes(), *(r.get("peak_memory_bytes", 0) for r in rows)])
        done = dataclasses.replace(
            record,
            buckets=rows,
            counts={**record.counts, "dead_letters": letters},
            peak_memory_bytes=max(peak, record.peak_memory_bytes),
            exit_code=int(record.exit_code or (ExitCode.DEAD_LETTERS if letters else ExitCode.DONE)),
        )
        self.save(done)
        return done

    def run_id(self) -> str:
        """Of the run that is there; empty where there is none that this process can read."""
        try:
            return str(RunRecord.load(self.path).run_id)
        except RunRecordDamaged:
            return ""

    # Units of work ------------------------------------------------------------------------------------------

    def write_receipt(self, name: str, receipt: Mapping[str, Any]) -> None:
        """Declare unit ``name`` finished. ``receipt["files"]`` maps absolute or run-relative paths to
        ``{"bytes": int, "digest": XXH3-128 hex}``; the files are already in place."""
        text = json.dumps(dict(receipt), indent=1, allow_nan=False) + "\n"
        write_atomically(self.path / "receipts" / f"{name}.json", text.encode())
        (self.path / "failures" / f"{name}.json").unlink(missing_ok=True)
        (self.path / "progress" / f"{name}.json").unlink(missing_ok=True)

    def receipt(self, name: str, *, verify: bool = True) -> dict[str, Any] | None:
        """The receipt of unit ``name``; None where there is none or (``verify``) a file is not as it says."""
        try:
            text = small_text(self.path / "receipts" / f"{name}.json")
            receipt = json.loads(text, parse_constant=int)  # NaN is no number here
        except (OSError, ValueError, RecursionError):
            return None
        # One that is not as a task writes it is none: the task is done again.
        if not isinstance(receipt, dict) or not all(
            isinstance(receipt.get(part, {}), dict) for part in ("files", "counts", "timings")
        ):
            return None
        if verify:
            for file, facts in receipt.get("files", {}).items():
                path = self.path / file
                try:
                    if path.stat().st_size != facts["bytes"] or digest_file(path) != facts["digest"]:
                        return None
                except (OSError, KeyError, TypeError, ValueError):
                    return None
        return receipt

    def receipts(self) -> dict[str, dict[str, Any]]:
        """All receipts by unit name, unverified."""
        names = sorted(p.stem for p in (self.path / "receipts").glob("[!.]*.json"))
        found = ((name, self.receipt(name, verify=False)) for name in names)
        return {name: receipt for name, receipt in found if receipt is not None}

    def describe_files(self, paths: Iterable[str | Path]) -> dict[str, dict[str, Any]]:
        """The ``files`` entry of a receipt: size and digest of each path."""
        return {str(p): {"bytes": Path(p).stat().st_size, "digest": digest_file(p)} for p in paths}

    def note_failure(self, name: str, error: BaseException) -> None:
        """Keep the error of unit ``name`` for the driver: runners pass on only its text, if that."""
        facts = {
            "error": type(error).__name__,
            "text": str(error),
            "exit_code": int(getattr(error, "exit_code", ExitCode.INTERNAL)),
            "trace": traceback.format_exception(error),
        }
        write_atomically(self.path / "failures" / f"{name}.json", json.dumps(facts, indent=1).encode())

    def hopeless(self) -> bool:
        """Whether a unit failed for a fault of the input, or because another publisher was faster: no other need
        begin."""
        return any(
            fact["exit_code"] == ExitCode.BAD_INPUT or fact["error"] == PublishConflict.__name__
            for fact in self.failures().values()
        )

    def failures(self) -> dict[str, dict[str, Any]]:
        """Last error by unit name: ``error`` (class name), ``text``, ``exit_code``, ``trace`` (lines)."""
        return {p.stem: small_json(p) for p in sorted((self.path / "failures").glob("[!.]*.json"))}

    def note_times(self, name: str, began: int, ended: int) -> None:
        """Keep when unit ``name`` was worked on, nanoseconds since the epoch; not durable, for ``spans`` alone."""
        path = self.path / "times" / f"{name}.json"
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps([began, ended]))

    def times(self) -> dict[str, tuple[int, int]]:
        """(began, ended) by unit name, in order of their beginning."""
        found = {}
        for path in (self.path / "times").glob("*.json"):
            with contextlib.suppress(OSError, ValueError):
                began, ended = small_json(path)
                found[path.stem] = (began, ended)
        return dict(sorted(found.items(), key=lambda row: row[1]))

    def note_progress(self, name: str, users: int, events: int) -> None:
        """Say how far unit ``name`` is; not durable and never read by the job itself."""
        path = self.path / "progress" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_text(json.dumps({"users": users, "events": events}))

    def progress(self, names: Collection[str]) -> tuple[int, int, int]:
        """(units finished, users, events) of ``names`` so far: receipts plus units under work."""
        receipts = self.receipts()
        counts = [receipt.get("counts", {}) for name, receipt in receipts.items() if name in names]
        finished = len(counts)
        for path in (self.path / "progress").glob("[!.]*.json"):
            if path.stem in names and path.stem not in receipts:
                with contextlib.suppress(OSError, ValueError):
                    counts.append(small_json(path))
        users, events = (sum(c.get(key, 0) for c in counts) for key in ("users", "events"))
        return finished, users, events

    # Dead letters -------------------------------------------------------------------------------------------

    def write_dead_letters(self, name: str, letters: Iterable[DeadLetter] | pa.Table) -> Path | None:
        """Replace the dead letters of unit ``name``; nothing is kept for none. Returns the file written."""
        path = self.path / "dead" / f"{name}.parquet"
        if isinstance(letters, pa.Table):
            table = letters.select(DEAD_LETTER_SCHEMA.names).cast(DEAD_LETTER_SCHEMA)
        else:
            table = pa.Table.from_pylist([dataclasses.asdict(x) for x in letters], schema=DEAD_LETTER_SCHEMA)
        if not table.num_rows:
            path.unlink(missing_ok=True)
            return None
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        write_atomically(path, sink.getvalue())
        return path

    def dead_letters(self) -> Iterator[pa.Table]:
        """The dead letters unit by unit, in order of unit name."""
        for path in sorted((self.path / "dead").glob("[!.]*.parquet")):
            yield pq.read_table(path)

    def gather_dead_letters(self) -> int:
        """Write ``dead-letters.parquet`` and return how many rows they stand for."""
        path, total = self.path / "dead-letters.parquet", 0
        with room_for(path), replacing(path, 0o600) as temporary:
            with pq.ParquetWriter(temporary, DEAD_LETTER_SCHEMA) as writer:
                for table in self.dead_letters():
                    writer.write_table(table)
                    total += int(pa.compute.sum(table["rows"]).as_py() or 0)
        return total


_SAFE = re.compile(r"[^A-Za-z0-9]+")
_KEPT = ("counts", "timings", "peak_memory_bytes")
