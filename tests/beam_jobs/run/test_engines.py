"""Jobs on real daemons of Spark, Ray and Dask, on the loopback: the digests of the local run, also after kills.

Each engine needs its extra (Spark Java, too); without it its tests are skipped, and say so.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_worlds import NOW, World, all_events

from beam_jobs.errors import EngineAway, EngineUnfit, OptionsError
from beam_jobs.generation import fold, refresh, summarize
from beam_jobs.ingest import job as ingest
from beam_jobs.ingest.options import IngestOptions
from beam_jobs.run import engines
from beam_jobs.run.clusters import TRIES
from beam_jobs.run.record import RunDirectory
from beam_jobs.tables import compact, forget
from cache_store import Store
from cache_store.format.layout import digest_file
from tools.bench import clusters
from vista.data.tables.warehouse import Warehouse

pytestmark = pytest.mark.xdist_group("engines")
T0 = 1_600_000_000_000
QUICK_JAVA = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
"""For processes of Java that live for seconds."""

# Every Python of a cluster imports this at its start: one dies (SIGKILL) as it leaves a receipt, where ARMED lies.
DIES = """
import os, signal, sys
def hook(event, args):
    if event == "os.rename" and {target!r} in str(args[1]):
        try:
            os.unlink({armed!r})
        except OSError:
            return
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
"""


@dataclass
class Cluster:
    engine: str
    address: str
    armed: Path

    @property
    def args(self) -> list[str]:
        return engines.engine_args(self.engine, self.address)


@pytest.fixture(scope="module", params=clusters.MODULES)
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if why := clusters.missing(request.param):
        pytest.skip(f"engine {request.param} is not tested: {why}")
    place = tmp_path_factory.mktemp("site")
    armed = place / "armed"
    (place / "sitecustomize.py").write_text(DIES.format(target="/receipts/", armed=str(armed)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAVA_TOOL_OPTIONS", QUICK_JAVA)
        env = {"PYTHONPATH": str(place), "OMP_NUM_THREADS": "1"}
        with clusters.cluster(request.param, env, applications=2) as address:
            yield Cluster(request.param, address, armed)


@pytest.fixture(scope="module")
def connected(cluster: Cluster) -> Iterator[None]:
    """A connection that the caller has opened and jobs use and leave open, as in a notebook. Workers of Spark and Ray
    are a connection's own, and take longer to start than these jobs to run."""
    if cluster.engine == "spark":
        from pyspark import SparkConf, SparkContext

        conf = SparkConf().setMaster(cluster.address).setAppName("tests").set("spark.cores.max", "2")
        conf.set("spark.task.maxFailures", str(TRIES)).set("spark.ui.enabled", "false")
        conf.set("spark.ui.showConsoleProgress", "false").set("spark.log.level", "OFF")
        with SparkContext(conf=conf):
            yield
    elif cluster.engine == "ray":
        import ray

        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        yield
        ray.shutdown()
    else:
        yield


def log(path: Path, seed: int, start: int) -> str:
    rng = np.random.default_rng(seed)
    n = 600
    columns = {
        "user_id": rng.integers(0, 40, n),
        "item_id": rng.integers(0, 300, n),
        "action": rng.integers(0, 3, n),
        "surface": rng.integers(0, 3, n),
        "timestamp_ms": start + rng.integers(0, 10**6, n) * 1000,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return str(path)


def every_job(folder: Path, bundle: Path, args: list[str]) -> list[Any]:
    """Ingest, summarize, ingest, refresh, compact both, and a full summary again, and what each came to."""
    world = World(folder, bundle)
    logs = [log(folder / f"log-{n}.parquet", n, T0 + n * 10**10) for n in range(2)]
    found: list[Any] = []
    jobs = [("first", logs[0]), (summarize, world.summarize), ("second", logs[1]), (refresh, world.refresh)]
    for job, what in jobs:
        if isinstance(job, str):
            options = IngestOptions(
                (what,), str(folder / "tables"), str(folder / job), num_buckets=4, chunk_rows=150,
                actions=("0", "1", "2"),
            )  # fmt: skip
            found.append(ingest.run(options, args, clock=lambda: NOW / 1000, progress=False).counts)
        else:
            found.append(job.run(what(max_events_in_memory=200), args).digests)
    merged = compact.CompactOptions(
        str(folder / "tables"), str(folder / "compact"), everything=True, progress=False
    )
    found.append(compact.run(merged, args).counts)
    folded = fold.run(fold.FoldOptions(str(world.path / "store"), str(folder / "fold"), progress=False), args)
    found.append((folded.digests, folded.counts["users"], folded.counts["deltas"]))
    files = Warehouse(folder / "tables").open().bucket_files()
    found.append([[digest_file(f.path.removeprefix("file://")) for f in row] for row in files.values()])
    found.append(summarize.run(world.summarize(run="again", store="full"), args).digests)
    return [*found, forgotten(world, folder / "forget", args)]


def forgotten(world: World, run_dir: Path, args: list[str]) -> Any:
    """Two users out of tables and store; what is left of both, to the byte."""
    options = forget.ForgetOptions(
        [3, 17], str(world.path / "tables"), [str(world.path / "store")], now_ms=NOW, run_dir=str(run_dir)
    )  # fmt: skip
    done = forget.run(options, args).as_dict()
    files = Warehouse(world.path / "tables").open().bucket_files()
    kept = [[(f.rows, digest_file(f.path.removeprefix("file://"))) for f in row] for row in files.values()]
    with world.store() as store:
        digests = [m.digest for m in store.generations()]
        assert store.verify().problems == [] and store.states([3, 17]) == [None, None]
    return done["tables"], [report["generations"] for report in done["stores"].values()], kept, digests


def test_a_worker_of_another_environment_or_without_the_folder_refuses(
    small_world, cluster, tmp_path, monkeypatch
):
    # The first of all: this job opens a connection of its own, and ends it, or the others could open none.
    here = engines.environment()
    monkeypatch.setattr(engines, "environment", lambda: {**here, "torch": "1.0"})
    with pytest.raises(EngineUnfit, match=r"worker .*: expected torch 1\.0, as the driver has, found \d"):
        summarize.run(small_world.summarize(attempts=1), cluster.args)
    monkeypatch.undo()
    run, _ = RunDirectory.start(tmp_path / "r", job="j", identity={}, started_ms=1)
    fit = engines.Fit(len, here, run, "another")
    assert "expected the run of the driver in" in fit([1])
    shutil.rmtree(run.path)
    assert fit([1]).endswith("found nothing") and fit([1]).startswith("worker ")
    relative = engines.Fit(len, here, RunDirectory("r"), "another")
    assert "name all by paths from / on" in relative([1])


@pytest.fixture(scope="module")
def local(tmp_path_factory, bundle_path):
    return every_job(tmp_path_factory.mktemp("local"), bundle_path, [])


def test_every_job_comes_to_the_same_on_a_cluster_as_here(tmp_path, bundle_path, local, cluster, connected):
    assert every_job(tmp_path, bundle_path, cluster.args) == local


def test_a_worker_that_is_killed_in_a_task_and_a_driver_that_is_killed_change_nothing(
    small_world, tmp_path, cluster, connected
):
    wanted = summarize.run(small_world.summarize(store="local", run="run-local")).digests
    cluster.armed.touch()
    killed = summarize.run(small_world.summarize(store="killed", run="run-killed"), cluster.args)
    assert killed.digests == wanted and not cluster.armed.exists()

    # A driver that dies as all tasks are done and nothing is published yet.
    options = small_world.summarize(store="driver", run="run-driver")
    code = (
        "import sys; from beam_jobs.generation import summarize; from pathlib import Path\n"
        f"summarize.run(summarize.SummarizeOptions(**{vars(options)!r}), {cluster.args!r})"
    )
    assert driver_killed_at("dead-letters.parquet", code, tmp_path) == -signal.SIGKILL
    assert not (small_world.path / "driver" / "generations").exists() or not any(
        (small_world.path / "driver" / "generations").iterdir()
    )
    assert summarize.run(options, cluster.args).digests == wanted

    # A chain that is folded: a worker dies of it, and (seen with Dask alone, for time) a driver as it takes it live.
    one = tuple(all_events(small_world)[0][:1].tolist())
    folds = {}
    for store in ("local", "killed"):
        refresh.run(small_world.refresh(store=store, run=f"delta-{store}", users=one), [engines.HERE])
        folds[store] = fold.FoldOptions(
            str(small_world.path / store), str(small_world.path / f"fold-{store}"), progress=False
        )
    if cluster.engine == "dask":
        code = (
            "import sys; from beam_jobs.generation import fold\n"
            f"fold.run(fold.FoldOptions(**{vars(folds['killed'])!r}), {cluster.args!r})"
        )
        (tmp_path / "fold").mkdir()
        assert driver_killed_at("manifest.json", code, tmp_path / "fold") == -signal.SIGKILL
    cluster.armed.touch()
    done = fold.run(folds["killed"], cluster.args)
    assert done.digests == fold.run(folds["local"], [engines.HERE]).digests and done.counts["deltas"] == 1
    assert not cluster.armed.exists()


def test_forgetting_goes_on_when_a_worker_or_the_driver_is_killed(small_world, tmp_path, cluster, connected):
    for store in ("here", "there"):
        summarize.run(small_world.summarize(store=store, run=f"run-{store}"))

    def digest(store: str) -> str:
        with small_world.store(store) as opened:
            assert opened.verify().problems == []
            return opened.manifest.digest

    def asked(user: int, run: str) -> forget.ForgetOptions:
        return forget.ForgetOptions(
            [user], str(small_world.path / "tables"), [str(small_world.path / "there")], now_ms=NOW,
            run_dir=str(small_world.path / run),
        )  # fmt: skip

    first, second = all_events(small_world)[0][:2].tolist()
    cluster.armed.touch()
    forget.run(asked(first, "forget-1"), cluster.args)
    assert not cluster.armed.exists()
    Store(small_world.path / "here").forget([first])
    assert digest("there") == digest("here") and first not in all_events(small_world)[0].tolist()

    # A driver that dies as it takes a rewritten generation live, the tables are done by then.
    code = (
        "import sys; from beam_jobs.tables import forget\n"
        f"forget.run(forget.ForgetOptions(**{vars(asked(second, 'forget-2'))!r}), {cluster.args!r})"
    )
    assert driver_killed_at("manifest.json", code, tmp_path) == -signal.SIGKILL
    forget.run(asked(second, "forget-2"), cluster.args)
    Store(small_world.path / "here").forget([second])
    assert digest("there") == digest("here") and second not in all_events(small_world)[0].tolist()


def driver_killed_at(target: str, code: str, folder: Path) -> int:
    """How a process ended that was to die as it gives a file of that name its name."""
    armed, place = folder / "armed", folder / "site"
    place.mkdir()
    armed.touch()
    (place / "sitecustomize.py").write_text(DIES.format(target=target, armed=str(armed)))
    driver = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(place)})
    try:
        return driver.wait(150)
    finally:
        driver.kill()


@pytest.mark.parametrize(
    "engine, address, error, text",
    [
        ("spark", "spark://127.0.0.1:1", EngineAway, "nothing answers at spark://127.0.0.1:1"),
        ("flink", "h:1", OptionsError, "--engine: expected beam, spark, ray, dask"),
        ("ray", None, OptionsError, "no address"),
    ],
)
def test_an_engine_that_is_unknown_or_away_is_told(small_world, engine, address, error, text):
    with pytest.raises(error, match=text):
        summarize.run(small_world.summarize(), engines.engine_args(engine, address))
