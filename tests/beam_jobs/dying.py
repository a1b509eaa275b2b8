"""Tasks for the tests of children that stay, in a module of its own: each child imports it, and nothing heavy."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path


def dies_once(task: int, folder: Path) -> dict[str, int]:
    """Kills its process at task 2, the first time."""
    if task == 2 and not (folder / "killed").exists():
        (folder / "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return {"done": 1, f"by-{os.getpid()}": 1}


def waits(task: int, folder: Path) -> dict[str, int]:
    """Says its process, and then works for as long as it may."""
    (folder / f"pid-{os.getpid()}").touch()
    threading.Event().wait(120)
    return {}
