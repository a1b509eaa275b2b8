"""``vista doctor``: versions, kernels, file systems and limits of this machine; what will not work here and why."""

from __future__ import annotations

import dataclasses

from tools import console
from tools.options import HomeOfStore, JsonOption


def command(at: HomeOfStore, json: JsonOption = False) -> int:
    """Look at the machine, and say what will not work on it and why. Exit code 3 if something will not."""
    from tools.report import environment

    found = list(environment.checks(at.root, at.store))
    failing = [c for c in found if c.verdict == environment.NO]
    if json:
        console.json_line({"ok": not failing, "checks": [dataclasses.asdict(c) for c in found]})
        return 3 if failing else 0
    console.line(
        f"{len(failing)} things will not work here: {', '.join(c.about for c in failing)}" if failing
        else "everything that was looked at works here", "bold red" if failing else "bold green", width=80,
    )  # fmt: skip
    for check in found:
        mark = {"ok": "", "note": "note ", "no": "NO "}[check.verdict]
        remedy = f" ({check.remedy})" if check.remedy else ""
        console.line(f"{mark}{check.about}: {check.found}{remedy}", width=80)
    return 3 if failing else 0
