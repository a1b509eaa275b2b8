"""What every job writes into its record: when, where, how long."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any


def now_ms(given: int | None) -> int:
    """The clock of a run: the time given, else now."""
    return int(time.time() * 1000) if given is None else given


def step_times(receipts: Mapping[str, Mapping[str, Any]], started: float) -> dict[str, float]:
    """Seconds of each step summed over buckets, and the wall time of the driver since ``started``."""
    sums: dict[str, float] = {}
    for receipt in receipts.values():
        for name, s in receipt["timings"].items():
            sums[name] = sums.get(name, 0.0) + s
    return {
        **{name: round(s, 3) for name, s in sums.items()},
        "wall": round(time.perf_counter() - started, 3),
    }


def environment(beam_args: Sequence[str], **more: Any) -> dict[str, Any]:
    """What is worth keeping about where a run ran; nothing in it changes the result."""
    return {
        "beam_args": list(beam_args),
        "beam": version("apache-beam"),
        "python": platform.python_version(),
        "host": platform.node(),
        **more,
    }
