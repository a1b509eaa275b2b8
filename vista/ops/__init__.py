"""Operations on packed, jagged batches, each with a plain twin that defines it (``*_naive``)."""
