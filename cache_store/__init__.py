"""The store of summaries: immutable generations of LMDB shards, published atomically, read at the speed of memory.

Read in this order: ``layout`` (what lies where), ``record`` (bytes of one user), ``quantize`` (codecs), ``keys``,
``index`` and ``pages`` (where a record lies), ``writer`` (one shard), ``manifest``, ``publish`` and ``lines`` (what
is live), ``generation`` and ``reader`` (a batch), ``native`` (its loops in C), ``views`` (which generation), ``store``
(the object that users hold).
Then what one looks for: ``compact``, ``prune``, ``verify``, ``forget``, ``remote`` (push and pull), ``torch_feature``,
``metrics``. docs/format.md says the same for readers in other languages.
"""

from cache_store.format.keys import bucket_of, key_bytes
from cache_store.format.manifest import Manifest
from cache_store.format.receipt import ShardReceipt, finished
from cache_store.format.record import Group, RecordSchema
from cache_store.read.snapshot import Lookup, RawLookup, Snapshot, Status
from cache_store.store import Store
from cache_store.write.writer import ShardWriter

__all__ = [
    "Group",
    "Lookup",
    "Manifest",
    "RawLookup",
    "RecordSchema",
    "ShardReceipt",
    "ShardWriter",
    "Snapshot",
    "Status",
    "Store",
    "bucket_of",
    "finished",
    "key_bytes",
]
