"""Serving: ``recommender`` (users in, ranked items out; on a GPU by graphs, ``captured`` and ``context_graph``),
``index`` (FAISS), ``catalogue`` (items that came later), ``kv_pool`` (contexts across processes) over ``pool_layout``
and ``pool_files``; ``forked`` for children of a process that has loaded all this.
"""

from vista.errors import needs

needs("serve", "torch", "faiss")
