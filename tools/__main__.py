"""``python -m tools``, and by way of vista/__main__.py ``python -m vista``: the command line."""

from tools.start import main

main()
