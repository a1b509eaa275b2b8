"""Where the command ``vista`` begins: what it lacks is told as an extra to install, not as a trace."""

from __future__ import annotations

import sys

from tools.extras import told

LOOKING = ("status", "runs")
"""Verbs that must answer at once."""


class _NoPandas:
    """PyArrow asks once for pandas: a third of a second where it is installed, for nothing that these verbs do."""

    def find_spec(self, name: str, *_: object) -> None:
        if name == "pandas":
            sys.meta_path.remove(self)
            raise ModuleNotFoundError(name, name=name)


def main() -> None:
    """Run the command line; exit code 2 where a package of an extra is missing."""
    if sys.argv[1:2] and sys.argv[1] in LOOKING:
        sys.meta_path.insert(0, _NoPandas())
    try:
        from tools.cli import main as run

        run()
    except ModuleNotFoundError as error:
        print(f"vista: {told(error)}", file=sys.stderr)
        sys.exit(2)
