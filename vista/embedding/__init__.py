"""Items and events as vectors.

``encoders``, over ``content`` (what items are about) and ``catalogue_column`` (a table of values by item in a model).
"""

from vista.errors import needs

needs("model", "torch")
