"""Events on the host: ``events`` (the jagged batch), ``schema`` and ``importer`` (files in), ``tables``
(history and impression tables), ``generator`` (synthetic lives), ``examples`` (training slates)."""
