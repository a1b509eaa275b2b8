"""The steps of ``ingest`` as a Beam pipeline: read, group by bucket, build, group by item shard, add up.

What workers unpickle lives here, apart from the driver's part, so that they import no catalog.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import apache_beam as beam

from beam_jobs.ingest.build import build_bucket, build_items
from beam_jobs.ingest.read import read_logs
from beam_jobs.ingest.spill import Piece
from beam_jobs.ingest.units import OldFile, ReadTask, Routed, Settings
from beam_jobs.run import runner as pipeline
from vista.errors import DataError

T = TypeVar("T")


class _Step(beam.DoFn):
    """A task function as a DoFn: keeps the error of a failed unit where the driver finds it.

    A fault of the input ends the unit quietly: the driver sees it and stops the run with that error alone, where a
    raised one would come with the runner's stack traces and retries. What was built beside it has other inputs than
    it will have, so its receipt counts for nothing then.
    """

    def __init__(self, settings: Settings):
        self._settings = settings

    def guarded(self, name: str, work: Callable[[], T]) -> T | None:
        try:
            return work()
        except DataError as error:
            self._settings.directory.note_failure(name, error)
            return None
        except Exception as error:
            self._settings.directory.note_failure(name, error)
            raise


class ReadLogs(_Step):
    """ReadTask to (bucket, Piece), and (item shard, Piece) under the tag ``items``."""

    def process(self, task: ReadTask) -> Iterator[Any]:
        routed = self.guarded(task.name, lambda: read_logs(task, self._settings))
        pipeline.count("rows_read", task.rows)
        for to, number, piece in routed or ():
            yield (number, piece) if to == "bucket" else beam.pvalue.TaggedOutput("items", (number, piece))


class BuildBucket(_Step):
    """(bucket, its pieces and old files) to (item shard, Piece)."""

    def process(self, element: tuple[int, Iterable[Piece | OldFile]]) -> Iterator[tuple[int, Piece]]:
        bucket, values = element
        name = f"bucket-{bucket:05d}"
        if any(unit.startswith("read-") for unit in self._settings.directory.failures()):
            return
        for _, shard, piece in self.guarded(name, lambda: build_bucket(bucket, values, self._settings)) or ():
            yield shard, piece
        receipt = self._settings.directory.receipt(name, verify=False)
        if receipt is not None:
            pipeline.count("users", receipt["counts"]["users"])
            pipeline.count("events", receipt["counts"]["events"])


class BuildItems(_Step):
    """(item shard, pieces) to its file."""

    def process(self, element: tuple[int, Iterable[Piece]]) -> Iterator[int]:
        shard, pieces = element
        self.guarded(f"items-{shard:05d}", lambda: build_items(shard, pieces, self._settings))
        yield shard


def build_pipeline(
    p: beam.Pipeline,
    tasks: Sequence[ReadTask],
    old: Sequence[tuple[int, OldFile]],
    named: Sequence[Routed],
    s: Settings,
) -> None:
    """Read, group by bucket, build, group by item shard, add up."""
    read = (
        p
        | "Logs" >> beam.Create(pipeline.in_balanced_order((t, t.rows) for t in tasks), reshuffle=False)
        | "Spread" >> beam.Reshuffle()
        | "Read" >> beam.ParDo(ReadLogs(s)).with_outputs("items", main="pieces")
    )
    there = p | "Tables" >> beam.Create(list(old), reshuffle=False)
    names = p | "Names" >> beam.Create([(number, piece) for _, number, piece in named], reshuffle=False)
    counts = (
        (read.pieces, there)
        | "All" >> beam.Flatten()
        | "Buckets" >> beam.GroupByKey()
        | "Build" >> beam.ParDo(BuildBucket(s))
    )
    _ = (
        (counts, read["items"], names)
        | "Counts" >> beam.Flatten()
        | "Items" >> beam.GroupByKey()
        | "Add up" >> beam.ParDo(BuildItems(s))
    )
