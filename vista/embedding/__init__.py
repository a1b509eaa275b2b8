"""Items and events as vectors: ``encoders``, and ``catalogue_column`` (a table of values by item inside a model)."""

from vista.errors import needs

needs("model", "torch")
