"""Serving: ``recommender`` (users in, ranked items out), ``index`` (FAISS), ``kv_pool`` (contexts across processes)."""

from vista.errors import needs

needs("serve", "torch", "faiss")
