"""Building shards: ``sorted_file`` (one LMDB file with its index), ``writer`` (records, tombstones, states)."""
