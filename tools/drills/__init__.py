"""What it survives: processes killed at every step, bytes flipped everywhere, readers beside a publisher.

``cache_store.testing`` is a store whose every value is a function of user and version, so a wrong or mixed value is
recognised, and ``watch`` readers that compare all they see with it. ``killing`` runs work that dies at a chosen step
(options of each by ``asked``); ``drill`` kills, ``race`` lets two publishers meet, ``corruption`` damages, ``storm``
publishes as fast as it can, ``storage`` fills the disk, ``serving`` kills `vista serve` under load; ``histories``
plays random sequences of real jobs on a home beside ``expected_rows``, ``soak`` an hour of them under readers
(``onlooker``); ``reseal`` alters fields by ``edits`` and seals them anew, ``reseal_home`` those of records, states,
bundles, pools and indexes; ``verbs`` kills whole command lines and gives them again (``receiver`` takes what
they deliver), ``missing`` takes files away;
``sanitize`` tries the compiled part, ``mutate`` the tests. ``logs`` are files that nobody would write. What was drilled
and counted is in docs/faults.md.
"""
