"""Typed errors of the model side. Each text says what was expected, what was found and what to do next."""

from __future__ import annotations

import importlib.util
import sys


class VistaError(Exception):
    """Base of every error a user of ``vista`` can cause.

    ``exit_code`` is what the command line returns for it; the table is in docs/operations.md.
    """

    exit_code = 2


class MissingExtra(VistaError, ModuleNotFoundError):
    """A part was asked for whose packages are not installed; the text names the extra that has them."""


class ConfigError(VistaError):
    """A configuration value is out of range or unknown."""


class DataError(VistaError):
    """Input events or tables do not have the declared form."""


class BundleError(VistaError):
    """A model bundle is incomplete, damaged, or of another version."""


class FingerprintMismatch(VistaError):
    """Two artefacts (summaries, index, model) were made by different models."""


def needs(extra: str, *modules: str) -> None:
    """Ask whether what an extra installs is there.

    Raises:
        MissingExtra: it is not; the text says which to install.
    """
    missing = [name for name in modules if name not in sys.modules and importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtra(
            f"expected {', '.join(missing)}, found none installed; run pip install 'vista-cache[{extra}]'",
            name=missing[0],
        )
