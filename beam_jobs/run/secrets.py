"""What a run's record must not hold: passwords and keys of catalogs and runners."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from vista.data import paths

HIDDEN = "***"
_NAME = re.compile(
    r"secret|token|passw|credential|(^|[-_.])key|auth|(^|[-_.])sas|signature|header", re.IGNORECASE
)
_OPTION = re.compile(r"--?([^=\s]+)(=?)")


def redacted(value: Any) -> Any:
    """``value`` (JSON-able) without secrets: of names that sound like one the value is hidden, of an address the login.

    What is hidden decides no result, so runs are compared without it.
    """
    if isinstance(value, Mapping):
        return {name: _hidden(str(name), redacted(entry)) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        words, hide = [], False
        for word in value:
            option = _OPTION.match(word) if isinstance(word, str) else None
            secret = option is not None and _NAME.search(option[1]) is not None
            if hide and option is None:
                words.append(HIDDEN)
            elif option is not None and secret and option[2]:
                words.append(option[0] + HIDDEN)
            else:
                words.append(redacted(word))
            hide = option is not None and secret and not option[2]
        return words
    return paths.without_login(value) if isinstance(value, str) else value


def _hidden(name: str, value: Any) -> Any:
    return HIDDEN if isinstance(value, str) and _NAME.search(name) else value
