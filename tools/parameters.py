"""``-p KEY=VALUE`` words as the arguments that a benchmark or study declares."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any

import typer

TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def typed(
    run: Callable[..., Any], words: Sequence[str], *, given: Sequence[str] = ("quick",)
) -> dict[str, Any]:
    """Parameter to value, each read as ``run`` annotates it; a tuple is its parts with commas between.

    Args:
        given: parameters that have options of their own.

    Raises:
        typer.BadParameter: no such parameter, one given twice, or a text that is no value of its type.
    """
    known = {
        name: parameter.annotation
        for name, parameter in inspect.signature(run, eval_str=True).parameters.items() if name not in given
    }  # fmt: skip
    found: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals:
            raise typer.BadParameter(f"--param takes KEY=VALUE, found {word!r}")
        if name not in known:
            raise typer.BadParameter(f"--param: expected one of {', '.join(known) or 'none'}; found {name!r}")
        if name in found:
            raise typer.BadParameter(f"--param {name}=... given twice; expected once")
        try:
            found[name] = _read(known[name], text)
        except (KeyError, ValueError):
            kind = getattr(known[name], "__name__", None) if isinstance(known[name], type) else known[name]
            raise typer.BadParameter(f"--param {name}: expected {kind}, found {text!r}") from None
    return found


def _read(annotation: Any, text: str) -> Any:
    kinds = typing.get_args(annotation)
    if isinstance(annotation, types.UnionType):
        if text.lower() == "none" and type(None) in kinds:
            return None
        for kind in (k for k in kinds if k is not type(None)):
            try:
                return _read(kind, text)
            except (KeyError, ValueError):
                continue
        raise ValueError(text)
    if typing.get_origin(annotation) in (tuple, list):
        return typing.get_origin(annotation)(_read(kinds[0], part) for part in text.split(",") if part)
    if annotation is bool:
        return TRUTH[text.lower()]
    if annotation is int:
        return int(text.replace("_", ""))
    return annotation(text) if isinstance(annotation, type) else text
