"""What the tests of ``vista follow`` share."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest
from small_worlds import CONFIG, save_bundle

from beam_jobs.follow.service import FollowOptions
from vista.model import VistaModel

ACTIONS = CONFIG.actions


@pytest.fixture
def options(tmp_path: Path) -> FollowOptions:
    bundle = save_bundle(tmp_path / "model", VistaModel(CONFIG).eval())
    return FollowOptions(
        warehouse=str(tmp_path / "warehouse"), bundle=str(bundle), store=str(tmp_path / "store"),
        run_dir=str(tmp_path / "runs"), reading={"num_buckets": 2, "actions": ACTIONS}, batch_events=40, growth=1,
        batch_s=0.01,
    )  # fmt: skip


@pytest.fixture
def redis_server(tmp_path: Path):
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed")
    redis = pytest.importorskip("redis")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        "redis-server",
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--dir",
        str(tmp_path),
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        client = redis.Redis(port=port)
        for _ in range(100):
            try:
                client.ping()
                break
            except redis.ConnectionError:
                time.sleep(0.05)
        yield client, f"redis://127.0.0.1:{port}?stream=events"
        server.kill()
