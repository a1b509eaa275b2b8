"""Law 9: tokens of another model are refused.

Also: by the index, tests/vista/serving/test_retrieval.py; by contexts, tests/vista/stage2/test_ranker.py; by states,
tests/vista/stage1/test_summarizer.py.
"""

from __future__ import annotations

import pytest
from known_stores import KnownStore

from cache_store import Status, Store
from cache_store.errors import FingerprintMismatch


def test_law_9_another_models_tokens_are_refused(tmp_path):
    known = KnownStore(tmp_path / "s")
    known.publish({1: 1})
    with pytest.raises(FingerprintMismatch, match="model-a.*model-b.*vista summarize"):
        known.open(fingerprint="model-b")
    assert known.open(fingerprint="model-a").lookup([1]).status[0] == Status.FRESH
    other = KnownStore(tmp_path / "other", fingerprint="model-b")
    other.publish({1: 1})
    # One shard of the other model under this generation's name: every record says whose it is.
    for name in (p.name for p in (known.path / "generations/00000001").glob("shard-*")):
        source = other.path / "generations/00000001" / name
        (known.path / "generations/00000001" / name).write_bytes(source.read_bytes())
    assert Store.open(tmp_path / "s", verify=False).lookup([1]).status[0] == Status.CORRUPT
