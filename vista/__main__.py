"""``python -m vista`` is the command ``vista``. It stands in ``tools``, above this package: handed over by name."""

import runpy

runpy.run_module("tools", run_name="__main__")
