"""What a run will need of disk and memory, told before it writes anything."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from beam_jobs.errors import OptionsError, RunStorageFull

SPARE = 1.1
"""Room beside what is needed that a run leaves free."""


def check_disk(
    needs: Mapping[str | Path, int], most: int | None, free: Callable[[Path], int] | None = None
) -> None:
    """Refuse a run that would fill a disk or its budget.

    Args:
        needs: bytes at least, by local folder; those of one file system add up.
        most: the budget in bytes, or None.
        free: bytes left where a folder is or will be; asks the file system by default.

    Raises:
        OptionsError: over the budget. RunStorageFull: less is free.
    """
    total = sum(needs.values())
    if most is not None and total > most:
        raise OptionsError(
            f"--max-bytes: the run needs at least {size(total)}, allowed are {size(most)}; nothing was begun. "
            f"Allow more, or see vista plan --help for what a job would take"
        )
    disks: dict[int, tuple[Path, int]] = {}
    for name, n in needs.items():
        folder = _existing(Path(name))
        path, before = disks.get(folder.stat().st_dev, (folder, 0))
        disks[folder.stat().st_dev] = (path, before + n)
    for folder, n in disks.values():
        left = free(folder) if free else shutil.disk_usage(folder).free
        if n * SPARE > left:
            raise RunStorageFull(
                f"{folder}: the run needs at least {size(n)}, there is {size(left)}; nothing was begun. Free some "
                f"(vista prune removes what no reader needs), or name folders on another disk"
            )


def check_memory(workers: int, worker_bytes: int, total: int | None = None) -> None:
    """Refuse local workers that this machine could not hold at their largest.

    Args:
        total: memory of this machine in bytes; asks it by default.

    Raises:
        OptionsError
    """
    total = memory_bytes() if total is None else total
    if workers * worker_bytes > total:
        raise OptionsError(
            f"--workers {workers}: each may hold {size(worker_bytes)}, this machine has {size(total)}; nothing was "
            f"written. Take fewer --workers, or a smaller --memory-events (vista plan tells what each takes)"
        )


def memory_bytes() -> int:
    """Memory of this machine, or of the group of processes that this one is confined to."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            return min(total, int(Path(name).read_text()))
        except (OSError, ValueError):
            continue
    return total


def size(n: int) -> str:
    """Bytes for a reader."""
    power = min(max(n, 1).bit_length() - 1, 49) // 10
    return f"{n / 1024**power:.{min(power, 1)}f} {('bytes', 'KB', 'MB', 'GB', 'TB')[power]}"


def _existing(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path
