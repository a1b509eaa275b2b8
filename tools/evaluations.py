"""The last evaluation of a bundle, kept beside it: ``MODEL.training/evaluation.json``, for the report and the gate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tools import console
from vista.small_text import small_json


def path(model: Path) -> Path:
    """Where it lies."""
    return model.with_name(f"{model.name}.training") / "evaluation.json"


def keep(model: Path, found: dict[str, Any]) -> None:
    """Write it, or say that this place cannot be written."""
    try:
        path(model).parent.mkdir(exist_ok=True)
        path(model).write_text(json.dumps(console.plain(found), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        console.note(f"the result is not kept for `vista report`: {error}")


def read(model: Path) -> dict[str, Any] | None:
    """The last result, or None where there is none that can be read."""
    try:
        found = small_json(path(model))
        return found if isinstance(found, dict) else None
    except (OSError, ValueError):
        return None
