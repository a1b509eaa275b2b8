"""Progress bars, on a terminal only: read from what lies on disk, so they work with any engine."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from beam_jobs.run.record import RunDirectory

EVERY_S = 0.5


def progress_bar(
    run: RunDirectory, title: str, tasks: Collection[str], events: int, show: bool = True
) -> AbstractContextManager[None]:
    """Show users, events and finished tasks of ``run`` while the body runs.

    Args:
        tasks: names of those under work.
        events: expected in all, the bar's length; rows of the files are near enough.
        show: False for never; else where standard error is a terminal.
    """

    def look() -> dict[str, Any]:
        units, users, done = run.progress(tasks)
        return {"completed": min(done, events), "users": users, "units": units}

    text = (
        "{task.completed:,.0f} of {task.total:,.0f} events, {task.fields[users]:,} users, "
        "{task.fields[units]} tasks done"
    )
    return _bar(title, text, max(events, 1), look, show)


def files_bar(title: str, files: Sequence[Path], show: bool = True) -> AbstractContextManager[None]:
    """Show how many of ``files`` are there while the body makes them, and what their folder holds: how many rows they
    will have nobody knows."""

    def look() -> dict[str, Any]:
        held = 0
        for path in files[0].parent.glob("*"):
            with contextlib.suppress(OSError):  # renamed meanwhile
                held += path.stat().st_size
        return {"completed": sum(path.exists() for path in files), "megabytes": held / 1e6}

    text = "{task.completed} of {task.total} files, {task.fields[megabytes]:,.0f} MB written"
    return _bar(title, text, len(files), look, show)


@contextlib.contextmanager
def _bar(title: str, text: str, total: int, look: Callable[[], dict[str, Any]], show: bool) -> Iterator[None]:
    if not (show and sys.stderr.isatty()):
        yield
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn(text),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    ]  # fmt: skip
    stop = threading.Event()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        row = bar.add_task(title, total=total, **look())

        def poll() -> None:
            while not stop.wait(EVERY_S):
                bar.update(row, **look())

        thread = threading.Thread(target=poll, name="progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
