"""The store as torch modules and datasets: ``feature`` (ids in, tokens out), ``decode`` (its arithmetic; on a device
by ``decode_triton``), ``rows`` (as-of training rows), ``sequence`` (exact tables as tokens to attend to).
"""

from cache_store.errors import needs

needs("torch", "torch")
