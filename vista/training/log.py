"""What a training run shows: the loss curve on disk and a progress bar on a terminal."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class Curve:
    """Loss curve as JSON lines; lines beyond the step a run resumes from are dropped."""

    def __init__(self, path: Path, step: int, quiet: bool = False) -> None:
        self.path, self.quiet = path, quiet
        if quiet:
            return
        kept = []
        if path.exists() and step:
            rows = [json.loads(row) for row in path.read_text("utf-8").splitlines() if row.endswith("}")]
            kept = [row for row in rows if row["step"] <= step]
        building = path.with_suffix(".building")
        building.write_text("".join(json.dumps(row) + "\n" for row in kept), "utf-8")
        os.replace(building, path)

    def falling(self, part: int = 5) -> str | None:
        """Words for a loss that still fell when the run ended; None where it had come to rest.

        The last quarter's mean against that of the quarter before: fallen by more than a hundredth and by more
        than twice the standard error of the difference.
        """
        if self.quiet:
            return None
        rows = [json.loads(row) for row in self.path.read_text("utf-8").splitlines() if row.endswith("}")]
        loss = [row["loss"] for row in rows if row.get("loss") is not None]
        n = len(loss) // 4
        if n < part:
            return None
        before, after = np.array(loss[-2 * n : -n]), np.array(loss[-n:])
        fell = before.mean() - after.mean()
        error = math.sqrt((before.var(ddof=1) + after.var(ddof=1)) / n)
        if fell <= max(0.01 * abs(before.mean()), 2 * error):
            return None
        return (
            f"the loss still fell when training ended, from {before.mean():.3f} to {after.mean():.3f} over its last "
            f"quarter ({self.path}): train longer, with more --epochs, --steps or --seconds"
        )

    def __enter__(self) -> Curve:
        self._file = None if self.quiet else open(self.path, "a", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        if self._file:
            self._file.close()

    def add(self, step: int, seconds: float, values: dict[str, float]) -> None:
        if self._file:
            row: dict[str, float | None] = {"step": step, "seconds": round(seconds, 3)}
            row |= {k: float(f"{v:.6g}") if math.isfinite(v) else None for k, v in values.items()}
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()


class Bar:
    """Progress on a terminal: loss, time left.

    Args:
        total: steps or seconds; None where the run's end is not known.
        shown: None shows the bar on a terminal only.
    """

    def __init__(self, total: float | None, done: float, shown: bool | None) -> None:
        console = Console(stderr=True)
        shown = console.is_terminal if shown is None else shown
        columns = (TextColumn("train"), BarColumn(), TextColumn("{task.fields[text]}"), TimeRemainingColumn())
        self._progress = Progress(*columns, console=console, disable=not shown, transient=True)
        self._task = self._progress.add_task("train", total=total, text="")
        self._progress.update(self._task, completed=done)

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def update(self, done: float, step: int, loss: float) -> None:
        self._progress.update(self._task, completed=done, text=f"step {step}  loss {loss:.3f}")
