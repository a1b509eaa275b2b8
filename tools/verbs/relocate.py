"""``vista relocate``: a copied or moved home stands on its own."""

from __future__ import annotations

from dataclasses import asdict

from tools import console
from tools.options import DryRunOption, HomeAlone, JsonOption


def command(at: HomeAlone, dry_run: DryRunOption = False, json: JsonOption = False) -> None:
    """Rewrite the paths in the metadata of HOME's tables, after HOME was copied or moved.

    Nothing outside HOME is read or written. Runs that were under way are begun anew with another run directory.
    """
    from vista.data.tables.relocating import relocate

    done = relocate(at.warehouse, dry_run)
    if json:
        return console.json_line(asdict(done))
    console.fields(
        "at home already" if done.old == done.new else "would relocate" if dry_run else "relocated",
        {"from": done.old, "to": done.new, "files": done.files},
    )
