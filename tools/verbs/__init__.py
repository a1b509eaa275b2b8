"""One module per verb of the command line. A module holds options and printing; the work is done below."""

from __future__ import annotations

import importlib
from collections.abc import Callable

VERBS: dict[str, str] = {
    "demo": "Start",
    "generate": "Data",
    "init": "Data",
    "layouts": "Data",
    "ingest": "Data",
    "train": "Model",
    "items": "Model",
    "evaluate": "Model",
    "plan": "Cache",
    "summarize": "Cache",
    "refresh": "Cache",
    "follow": "Cache",
    "compact": "Store",
    "prune": "Store",
    "rollback": "Store",
    "promote": "Store",
    "forget": "Store",
    "relocate": "Store",
    "push": "Store",
    "pull": "Store",
    "lookup": "Serve",
    "recommend": "Serve",
    "serve": "Serve",
    "status": "Look",
    "runs": "Look",
    "report": "Look",
    "diff": "Look",
    "explain": "Look",
    "verify": "Look",
    "doctor": "Look",
    "config": "Look",
    "bench": "Look",
    "study": "Look",
    "drill": "Look",
}
"""Verb to the section of ``vista --help`` it stands in, in the order shown."""


def load(verb: str) -> Callable[..., object]:
    """The function behind a verb."""
    return importlib.import_module(f"tools.verbs.{verb}").command
