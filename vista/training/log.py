"""What a training run shows: the loss curve on disk, and how fast it goes and how long it still takes."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn


class Curve:
    """Loss curve as JSON lines; lines beyond the step a run resumes from are dropped.

    Args:
        also: called with the step and the finite values of each line (a tracker of experiments, say).
    """

    def __init__(
        self,
        path: Path,
        step: int,
        quiet: bool = False,
        also: Callable[[int, dict[str, float]], None] | None = None,
    ) -> None:
        self.path, self.quiet, self._also = path, quiet, also
        if quiet:
            return
        kept = []
        if path.exists() and step:
            kept = [row for row in _rows(path) if row["step"] <= step]
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
        loss = [row["loss"] for row in _rows(self.path) if row.get("loss") is not None]
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
            if self._also is not None:
                self._also(step, {name: value for name, value in values.items() if math.isfinite(value)})


class Pace:
    """Steps a second and the time that is left: a bar on a terminal, else a line now and then.

    Args:
        done: share of the run that was over before, 0 to 1.
        shown: False shows nothing; None and True a bar on a terminal, else lines.
        every: seconds between lines.
    """

    def __init__(
        self,
        step: int,
        done: float,
        shown: bool | None,
        *,
        every: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
        console: Console | None = None,
    ) -> None:
        self._console = console or Console(stderr=True)
        self._bar = Progress(
            TextColumn("train"),
            BarColumn(),
            TextColumn("{task.fields[text]}"),
            console=self._console,
            disable=shown is False or not self._console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task("train", total=1.0, text="")
        self._lines = shown is not False and not self._console.is_terminal
        self._step, self._done, self._every, self._clock = step, done, every, clock
        self._began = self._said = clock()

    def __enter__(self) -> Pace:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def update(self, step: int, done: float, loss: float) -> None:
        now = self._clock()
        took = max(now - self._began, 1e-9)
        text = f"step {step:,}  loss {loss:.3f}  {(step - self._step) / took:.1f} steps/s"
        if done > self._done:
            text += f"  {_span(took * (1 - done) / (done - self._done))} left"
        self._bar.update(self._task, completed=done, text=text)
        if self._lines and now - self._said >= self._every:
            self._said = now
            self._console.print(f"train: {text}", highlight=False, soft_wrap=True)


def _span(seconds: float) -> str:
    """A time in its largest unit."""
    for unit, length in (("h", 3_600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def _rows(path: Path) -> list[dict[str, Any]]:
    """Lines of a curve; what a kill or a hand has left of others is passed over."""
    found = []
    for line in path.read_text("utf-8", "replace").splitlines():
        with contextlib.suppress(ValueError, RecursionError):
            row = json.loads(line)
            if isinstance(row, dict) and isinstance(row.get("step"), int):
                found.append(row)
    return found
