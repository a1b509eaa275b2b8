"""Options of a drill on its command line, by name and default."""

from __future__ import annotations

import argparse
from typing import Any


def asked(what: str | None, **options: Any) -> argparse.Namespace:
    """What was asked of a drill: ``--seed 7`` for ``seed=0``.

    Args:
        what: docstring of the drill, for ``--help``.
        options: name to default, whose type is that of the option, False being a flag; a type alone where the
            default is nothing. A pair holds a help text beside it.
    """
    parser = argparse.ArgumentParser(description=what, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, given in options.items():
        default, text = given if isinstance(given, tuple) else (given, None)
        kind = default if isinstance(default, type) else type(default)
        word = "--" + name.replace("_", "-")
        if kind is bool:
            parser.add_argument(word, action="store_true", help=text)
        else:
            parser.add_argument(word, type=kind, default=None if default is kind else default, help=text)
    return parser.parse_args()
