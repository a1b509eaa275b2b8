"""The store of summaries: immutable generations of LMDB shards, published atomically, read at the speed of memory.

    Store.open(path).lookup(users)          tokens [B, S, D], status [B], times; see ``Lookup``
    Store.create, .stage, ShardWriter,      how a job makes a generation
        .publish(…, Publication(…))
    SummaryFeature                          the lookup as a layer of a PyTorch model (extra ``torch``)

To read the code: ``store`` (the face), then ``format`` (what the bytes are), ``read``, ``write``, ``change``
(publish, compact, prune, forget, verify), ``remote`` (push and pull), ``torch``, ``flight``
(readers on other hosts); ``native`` is the same loops in C,
``errors`` what can go wrong, ``testing`` an aid for tests of one's own. docs/format.md says what the bytes are for
readers in other languages.
"""

from typing import TYPE_CHECKING, Any

from cache_store.change.publish import MAX_DEPTH, Publication
from cache_store.format.keys import as_users, bucket_of, key_bytes
from cache_store.format.layout import DEAD_LETTERS
from cache_store.format.manifest import Manifest
from cache_store.format.receipt import ShardReceipt, finished
from cache_store.format.record import Group, RecordSchema, Table
from cache_store.read.options import ReadOptions
from cache_store.read.snapshot import Lookup, RawLookup, Snapshot, Status
from cache_store.store import Store
from cache_store.write.writer import ShardWriter

__version__ = "0.2.0"

if TYPE_CHECKING:
    from cache_store.torch.feature import SummaryFeature

__all__ = [
    "DEAD_LETTERS",
    "MAX_DEPTH",
    "Group",
    "Lookup",
    "Manifest",
    "Publication",
    "RawLookup",
    "ReadOptions",
    "RecordSchema",
    "ShardReceipt",
    "ShardWriter",
    "Snapshot",
    "Status",
    "Store",
    "Table",
    "SummaryFeature",
    "as_users",
    "bucket_of",
    "finished",
    "key_bytes",
]


def __getattr__(name: str) -> Any:
    """``SummaryFeature`` on first use: it needs PyTorch, which the store does not."""
    if name != "SummaryFeature":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from cache_store.torch.feature import SummaryFeature

    return SummaryFeature
