"""The command line ``vista``.

``cli`` names the verbs, ``verbs/`` holds one module per verb, ``bench/`` one per benchmark.
"""
