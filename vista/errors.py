"""Typed errors of the model side. Each text says what was expected, what was found and what to do next."""

from __future__ import annotations


class VistaError(Exception):
    """Base of every error a user of ``vista`` can cause.

    ``exit_code`` is what the command line returns for it; the table is in docs/operations.md.
    """

    exit_code = 2


class ConfigError(VistaError):
    """A configuration value is out of range or unknown."""


class DataError(VistaError):
    """Input events or tables do not have the declared form."""


class BundleError(VistaError):
    """A model bundle is incomplete, damaged, or of another version."""


class FingerprintMismatch(VistaError):
    """Two artefacts (summaries, index, model) were made by different models."""
