"""The command line ``vista``, and what measures and tries the product.

``start`` and ``cli`` are the entry (``extras`` names what is to be installed), ``command_line`` and ``invocation``
turn words into a verb's ``options`` with the defaults of ``settings``; ``verbs`` has one module per verb, printing
through ``console``. What several verbs need: ``home`` (where things lie), ``runs``, ``serving``, ``histories``,
``demo_folder``, ``outputs``, ``metrics_text``, ``scores``, ``log_options``, ``evaluations``, ``trackers``; ``report``
is what there is to look at. Three kinds of trials, each reached by one verb: ``bench`` (how fast), ``studies`` (what
it is worth), ``drills`` (what it survives); ``parameters`` reads their ``-p``.
"""
