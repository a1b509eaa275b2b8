"""One model for retrieval and ranking over one context: ``ranker``, its ``layer``, ``context_kv`` (what is shared), and
``naive`` (the definition it is tested against).
"""

from vista.errors import needs

needs("model", "torch")
