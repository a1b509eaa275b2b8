"""A full disk and a read-only one: a typed error with the remedy, the earlier generation live, nothing to clean up."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from cache_store import Store
from cache_store.errors import ReadOnlyStorage
from cache_store.testing import Truth
from tools.drills import storage

needs_mount = pytest.mark.skipif(not storage.mountable(), reason="needs the right to mount a small tmpfs")


@needs_mount
def test_a_full_disk_is_a_typed_error_and_the_same_work_is_done_once_there_is_space():
    counts = storage.full_disk(40, 1)
    print(dict(counts))
    assert sum(counts.values()) == 40
    assert {name.partition(":")[0] for name in counts if name.endswith("StorageFull")} >= {
        "full",
        "delta",
        "pull",
    }


@needs_mount
def test_a_read_only_filesystem_refuses_all_work_and_serves_all_readers():
    assert storage.read_only() == [
        "full", "delta", "compact", "forget", "promote", "rollback", "pull", "prune",
    ]  # fmt: skip


def test_folders_without_write_permission_refuse_work_and_serve_readers():
    truth = Truth(num_users=20)
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        root = Path(place) / "store"
        truth.publish(truth.create(root), "a", 1000)
        for folder, _, files in os.walk(root):
            os.chmod(folder, 0o555)
            for name in files:
                os.chmod(Path(folder, name), 0o444)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                if os.getuid() == 0:
                    os.setgroups([])
                    os.setgid(65534)
                    os.setuid(65534)
                with Store.open(root) as store:
                    truth.check_all(store, 1000)
                for work in (
                    lambda s: truth.publish(s, "b", 2000),
                    lambda s: s.prune(),
                    lambda s: s.promote("main"),
                ):
                    with pytest.raises(ReadOnlyStorage, match="live generation is untouched"):
                        work(Store(root))
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0
        for folder, _, _ in os.walk(root):
            os.chmod(folder, 0o755)
