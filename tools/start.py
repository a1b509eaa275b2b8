"""Where the command ``vista`` begins: what it lacks is told as an extra to install, not as a trace."""

from __future__ import annotations

import sys

from tools.extras import told


def main() -> None:
    """Run the command line; exit code 2 where a package of an extra is missing."""
    try:
        from tools.cli import main as run

        run()
    except ModuleNotFoundError as error:
        print(f"vista: {told(error)}", file=sys.stderr)
        sys.exit(2)
