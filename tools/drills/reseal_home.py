"""The same for what lies beside the store: run records and receipts, resumable states, bundles, pools, item indexes,
vista.toml, and the tables' facts, metadata, ledger and data files.

    vista drill home --edits 5000

A field is edited, checksums, fingerprints and seals are made right again where the file has some, and the file is read
by what reads it in the product: a typed error, or values of the right types, in bounded time and memory, and nothing
is written outside the home: not into the working folder, the folder of temporary files, nor the user's own.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import torch
import xxhash
from safetensors.torch import load_file

from beam_jobs.run.leftovers import prune_runs, without_users
from beam_jobs.run.record import RunDirectory, RunRecord
from cache_store.format.keys import bucket_of
from tools import log_options, settings
from tools.command_line import command
from tools.drills.asked import asked
from tools.drills.drill import memory_folder
from tools.drills.edits import WORDS, choose, edit, edit_file, text_of
from tools.drills.histories import small_bundle
from tools.home import Home
from vista import bundle as bundles
from vista.data.events import Events
from vista.data.tables import ledger, manifests
from vista.data.tables.appending import append
from vista.data.tables.commits import Addition, commit
from vista.data.tables.compaction import most_files
from vista.data.tables.forgetting import forget_users
from vista.data.tables.ledger import LedgerRow
from vista.data.tables.pruning import prune
from vista.data.tables.reading import read_bucket
from vista.data.tables.undoing import undo
from vista.data.tables.warehouse import Warehouse
from vista.errors import VistaError
from vista.serving import index as indexes
from vista.serving.index import ItemIndex
from vista.serving.kv_pool import KVPool, Ticket
from vista.serving.pool_layout import LAYOUT_BYTES, MAGIC_BYTES
from vista.stage1.resuming import joined
from vista.stage1.state import UserState

SECONDS = 10


def build(root: Path) -> None:
    """One file or folder of each kind."""
    model = bundles.load(small_bundle(root / "model"))
    ItemIndex.build(model.model, np.arange(9), fingerprint=model.fingerprint).save(root / "index")
    KVPool.create(root / "pool", model.model, 2)
    run, record = RunDirectory.start(root / "runs/a", job="refresh", identity={"users": [1]}, started_ms=1)
    run.write_receipt("bucket-00000", {"files": {}, "counts": {"users": 1}, "timings": {"seconds": 1.0}})
    run.finish(record)
    tail = _events([1, 2, 3], [10, 11, 12])
    parts: dict[str, np.ndarray] = {
        "seeds.memory": np.ones((2, 3), np.float32),
        "tokens.count": np.arange(6).reshape(2, 3),
    }
    warehouse = Warehouse(root / "tables").create(num_buckets=2, actions=["view"], surfaces=["home"])
    for k in range(3):
        users = np.arange(k, k + 4)
        events = Events.of([5] * 4, item=np.arange(20) % 7, time=np.arange(20) + 100 * k)
        append(warehouse, users, events, bucket_of(users, 2), f"run{k}", actions=("view", "like"))
        line = LedgerRow(f"log{k}", 10, "d", 20, "events", "r", commit=k + 1)
        commit(warehouse, Addition(f"log{k}", sources=[line], properties={"weights": '{"view": 0.5}'}))
    (root / "state").write_bytes(UserState("ab" * 16, 4, (9, 0, 1, 1, 0), parts, tail).to_bytes())


def _events(items: list[int], times: list[int]) -> Events:
    ones, item, time_ms = np.ones(len(items), np.int64), np.array(items), np.array(times)
    return Events.of(np.array([len(items)]), item=item, time=time_ms, request=0 * ones, action=ones)


def record(root: Path, rng: np.random.Generator) -> str:
    run = RunDirectory(root / "runs/a")
    done = edit_file(rng, choose(rng, [run.path / "run.json", run.path / "receipts/bucket-00000.json"]))
    _each(
        done,
        lambda: RunRecord.load(run.path).as_dict(),
        run.receipts,
        lambda: run.finish(RunRecord.load(run.path)),
        lambda: RunDirectory.start(run.path, job="refresh", identity={"users": [1]}, started_ms=1),
        lambda: without_users(root / "runs", [1]),
        lambda: prune_runs(root / "runs", 1 << 62),
    )
    return done


def state(root: Path, rng: np.random.Generator) -> str:
    fields = msgpack.unpackb((root / "state").read_bytes()[8:])
    done = edit(rng, fields)
    try:
        body = msgpack.packb(fields)
    except (OverflowError, UnicodeEncodeError):
        return "no msgpack"
    new = _events([4], [12])

    def read() -> None:
        found = UserState.from_bytes(xxhash.xxh3_64_digest(body) + body)
        assert found.total >= 0 and isinstance(found.signature, str)
        joined(new, [found])
        found.to_bytes()

    _each(done, read)
    return done


def bundle(root: Path, rng: np.random.Generator) -> str:
    at = root / "model"
    done = edit_file(rng, at / str(rng.choice(["bundle.json", "config.json"])))
    try:
        facts = json.loads((at / "bundle.json").read_text())
        config = json.loads((at / "config.json").read_text())
        facts["fingerprint"] = bundles.model_fingerprint(config, load_file(str(at / "weights.safetensors")))
        if rng.integers(4):
            (at / "bundle.json").write_text(json.dumps(facts))
    except (ValueError, TypeError, AttributeError, RecursionError):
        pass
    reads = (lambda: bundles.load(at).items(), lambda: bundles.load(at).encode([1]))
    _each(done, lambda: bundles.read_meta(at), *reads)
    return done


def pool(root: Path, rng: np.random.Generator) -> str:
    data = bytearray((root / "pool").read_bytes())
    if rng.integers(2):
        layout = json.loads(data[MAGIC_BYTES : MAGIC_BYTES + LAYOUT_BYTES].rstrip(b"\0"))
        done = edit(rng, layout)
        text = text_of(rng, layout)[0].encode("utf-8", "surrogatepass")[:LAYOUT_BYTES]
        data[MAGIC_BYTES : MAGIC_BYTES + LAYOUT_BYTES] = text.ljust(LAYOUT_BYTES, b"\0")
    else:
        at = (MAGIC_BYTES + LAYOUT_BYTES) // 8 + int(rng.integers(9))
        done = f"header word {at}"
        data[at * 8 : at * 8 + 8] = int(choose(rng, WORDS)).to_bytes(8, "little")
    (root / "pool").write_bytes(data)

    def read() -> None:
        attached = KVPool.attach(root / "pool")
        number = int(attached._headers["number"][0])
        attached.get(Ticket(0, number), 1)
        attached.close()

    _each(done, read)
    return done


def index(root: Path, rng: np.random.Generator) -> str:
    at, mark = root / "index", bundles.read_meta(root / "model")[1]
    if rng.integers(2):
        done = edit_file(rng, at / "index.json")
    else:
        done = "items.npy"
        other: Any = choose(rng, [np.zeros(9, np.int64), np.arange(8), np.arange(9.0), np.arange(9).reshape(3, 3),
                                  np.array(["a"] * 9), np.arange(9).astype(np.uint64)])  # fmt: skip
        np.save(at / "items.npy", other)
    try:
        facts = json.loads((at / "index.json").read_text())
        facts.pop("seal", None)
        facts["seal"] = indexes._seal(at, facts, facts.get("fingerprint"))
        (at / "index.json").write_text(json.dumps(facts))
    except (ValueError, TypeError, AttributeError, RecursionError):
        pass

    def read() -> None:
        found = ItemIndex.load(at, mark)
        found.search(torch.ones(1, 1, found.width), 3)

    _each(done, read)
    return done


def settings_file(root: Path, rng: np.random.Generator) -> str:
    """A vista.toml with edited values, now and then no TOML, and a verb of each kind under it."""
    values: dict[str, Any] = {
        "store": "store", "threads": 2, "warehouse": "tables", "codec": ["slots=int8"], "verify": True,
        "lookup": {"max-age-days": 1.5, "line": "main"}, "ingest": {"weight": ["like=1"], "again": True},
        "log": {"columns": {"item_id": "sku"}, "time_unit": "ms", "weights": {"like": 1.0}, "explode": ["a"]},
    }  # fmt: skip
    done = edit(rng, values)
    rows = [f"{k} = {_toml(v)}" for k, v in values.items() if not isinstance(v, dict)]
    for name, table in values.items():
        if isinstance(table, dict):
            rows += [f"[{json.dumps(name)}]", *(f"{json.dumps(k)} = {_toml(v)}" for k, v in table.items())]
    data = "\n".join(rows).encode("utf-8", "surrogatepass")
    if rng.integers(8) == 0:
        data = data[: int(rng.integers(len(data)))] + bytes(rng.integers(0, 256, 3).tolist())
    (root / settings.FILE).write_bytes(data)

    def of(verb: str) -> None:
        asked = command(verb)
        found = settings.read(root).defaults(verb, asked)
        assert set(found) <= {p.name for p in asked.params}

    works = [partial(of, verb) for verb in ("ingest", "lookup", "summarize", "prune")]
    _each(done, *works, lambda: log_options.given_reading(Home(root), None))
    return done


def _toml(value: Any) -> str:
    """JSON is TOML but for objects and null."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return "nan" if value is None else json.dumps(value)


def tables(root: Path, rng: np.random.Generator) -> str:
    """A fact, the metadata, a manifest, or a file of a table; then every read of the tables and some of their verbs."""
    folder = root / "tables"
    names = ("history", "items", "sources", "impressions")
    kind = int(rng.integers(4))
    if kind == 0:
        history = Warehouse(folder).open().history
        facts = {k: v for k, v in history.properties.items() if k.startswith("vista.")}
        key = str(rng.choice(sorted(facts)))
        tree: Any = {"fact": json.loads(facts[key]) if facts[key][:1] in "[{0123456789" else facts[key]}
        done = f"{key}: {edit(rng, tree)}"
        value = tree.get("fact", "")
        text = value if isinstance(value, str) else json.dumps(value)
        if "\0" in text or not text.isprintable():
            return "no text"
        with history.transaction() as transaction:
            transaction.set_properties({key: text})
    else:
        table = folder / "vista" / str(rng.choice(names))
        pattern = ("metadata/*.metadata.json", "metadata/*.avro", "data/**/*.parquet")[kind - 1]
        found = sorted(table.glob(pattern))
        if not found:
            return "no file"
        path = found[-1] if kind == 1 else choose(rng, found)
        if kind == 1:
            done = edit_file(rng, path)
        else:
            data = bytearray(path.read_bytes())
            for at in rng.integers(0, len(data), int(rng.integers(1, 9))):
                data[at] ^= 1 << int(rng.integers(8))
            path.write_bytes(data if rng.integers(4) else data[: int(rng.integers(len(data)))])
            done = f"{path.name}: bytes"

    manifests._kept.clear()

    def opened() -> Warehouse:
        return Warehouse(folder).open()

    def rows() -> None:
        for files in opened().bucket_files().values():
            for batch in read_bucket(files, max_rows=50):
                assert len(batch.users) == batch.events.users

    def since() -> None:
        for snapshot in opened().history.snapshots()[:3]:
            opened().bucket_files(since=snapshot.snapshot_id)

    row = LedgerRow("more", 1, "d", 1, "events")
    _each(
        done, rows, since,
        lambda: (opened().actions, opened().surfaces, opened().weights, opened().user_kind, opened().basis()),
        lambda: (opened().read_items(), opened().read_content(), ledger.entries(opened())),
        lambda: opened().has_commit("run1"), lambda: most_files(opened()),
        lambda: prune(opened(), (), 1 << 62, dry_run=True), lambda: undo(opened(), "run1"),
        lambda: forget_users(opened(), [3]), lambda: commit(opened(), Addition("more", sources=[row])),
        lambda: prune(opened(), (), 1 << 62),
    )  # fmt: skip
    return done


EDITS: tuple[Callable[[Path, np.random.Generator], str], ...] = (
    record, state, bundle, pool, index, settings_file, tables,
)  # fmt: skip


def _each(done: str, *works: Callable[[], object]) -> None:
    for work in works:
        try:
            work()
        except VistaError:
            continue
        except Exception as error:
            raise AssertionError(f"{done}: {type(error).__name__}: {error}") from error


@contextmanager
def _elsewhere(outside: Path) -> Iterator[Path]:
    """Empty folders to work in, for temporary files and as the user's own; as it was at the end."""
    before = os.environ.get("HOME"), tempfile.tempdir
    for name in ("cwd", "tmp", "user"):
        (outside / name).mkdir(parents=True)
    os.environ["HOME"], tempfile.tempdir = str(outside / "user"), str(outside / "tmp")
    try:
        with chdir(outside / "cwd"):
            yield outside
    finally:
        tempfile.tempdir = before[1]
        if before[0] is not None:
            os.environ["HOME"] = before[0]


def run(edits: int, seed: int = 0) -> dict[str, Any]:
    """Edit so often; how often each kind, and every fault with its seed."""
    counts: Counter[str] = Counter()
    faults, slowest = [], 0.0
    torch.set_num_threads(1)
    with (
        tempfile.TemporaryDirectory(dir=memory_folder()) as folder,
        _elsewhere(Path(folder, "else")) as outside,
    ):
        world = Path(folder, "world")
        Path(folder, "home").mkdir()
        build(Path(folder, "home"))  # where it is used: tables know their place
        os.rename(Path(folder, "home"), world)
        for number in range(seed * 1_000_000, seed * 1_000_000 + edits):
            root, rng, began = Path(folder, "home"), np.random.default_rng(number), time.process_time()
            shutil.copytree(world, root)
            kind, wrong = EDITS[number % len(EDITS)], []
            try:
                kind(root, rng)
            except Exception:
                wrong.append(traceback.format_exc()[-700:])
            if wrote := [p for place in outside.iterdir() for p in place.rglob("*")]:
                wrong.append(f"wrote {wrote[:5]} outside the home")
                for path in sorted(wrote, reverse=True):
                    path.rmdir() if path.is_dir() else path.unlink()
            if {*os.listdir(folder)} != {"world", "home", "else"}:
                wrong.append(f"{os.listdir(folder)} beside the home")
            took = time.process_time() - began
            if took > SECONDS:
                wrong.append(f"{took:.1f} s")
            faults += [f"seed {number}, {kind.__name__}: {what}" for what in wrong]
            slowest = max(slowest, took)
            counts[kind.__name__] += 1
            shutil.rmtree(root)
    return {"edits": edits, "kinds": dict(counts), "slowest_cpu_seconds": round(slowest, 3), "faults": faults}


def main() -> None:
    given = asked(__doc__, edits=1_000, seed=0)
    found = run(given.edits, given.seed)
    print(json.dumps(found, indent=1))
    raise SystemExit(1 if found["faults"] else 0)
