"""A progress bar for a run, on a terminal only: reads the receipts on disk, so it works with any runner."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Collection, Iterator

from beam_jobs.run.record import RunDirectory

EVERY_S = 0.5


@contextlib.contextmanager
def progress_bar(
    run: RunDirectory, title: str, tasks: Collection[str], events: int, show: bool = True
) -> Iterator[None]:
    """Show users, events and finished tasks of ``run`` while the body runs.

    Args:
        tasks: names of those under work.
        events: expected in all, the bar's length; rows of the files are near enough.
        show: False for never; else where standard error is a terminal.
    """
    if not (show and sys.stderr.isatty()):
        yield
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} of {task.total:,.0f} events, {task.fields[users]:,} users, "
                   "{task.fields[units]} tasks done"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    ]  # fmt: skip
    stop = threading.Event()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        row = bar.add_task(title, total=max(events, 1), users=0, units=0)

        def poll() -> None:
            while not stop.wait(EVERY_S):
                units, users, done = run.progress(tasks)
                bar.update(row, completed=min(done, events), users=users, units=units)

        thread = threading.Thread(target=poll, name="progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
