"""One model for retrieval and ranking over one context.

Read in this order: ``ranker``, ``sequences`` (a context before its first ``layer``), ``readers`` (what is known without
attention), ``context_kv`` (what is shared), and ``naive`` (the definition it is tested against).
"""

from vista.errors import needs

needs("model", "torch")
