"""Serving: ``recommender`` (users in, ranked items out), ``index`` (FAISS), ``kv_pool`` (contexts across processes)."""
