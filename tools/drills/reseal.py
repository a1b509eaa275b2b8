"""Fuzzing by one who can seal: a field of any file is edited, the checksums are made right again, everything is run.

    vista drill reseal --edits 20000
    python -m tools.drills.reseal --edits 20000 --seed 7

Of a store with two full generations, a delta, a second line, a forgotten user, an unfinished run, a lease and a
remote copy. Pools, item indexes, bundles and run records are not edited yet. Each edit runs every read and two verbs,
and must end in a typed error or in values that were published, within ten seconds and a bound of memory. The work is
done by a child: its death is a fault that is told, and the next one goes on. One seed is one course of events.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import shutil
import signal
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from cache_store import Status, Store
from cache_store.errors import StoreError
from cache_store.read.snapshot import Lookup
from cache_store.remote.copy import pull, push
from cache_store.testing import STEP, Truth
from tools.drills.asked import asked
from tools.drills.drill import memory_folder
from tools.drills.edits import WORDS, choose, edit, edit_file, text_of

SECONDS, SILENCE, MEMORY = 10, 300, 2 << 30
TEXTS = ("", "-", "00000001", "-00000003", "00000099", "9" * 40, "-5", "x y z", "\x00", "a" * 9_000)
TRUTH = Truth(num_users=16, num_shards=2)
VERSIONS = (STEP, 2 * STEP, 2 * STEP + 1)


@dataclass
class ResealReport:
    """What was done, what it came to, and every fault."""

    edits: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    served: int = 0
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0
    slowest: float = 0.0

    def as_dict(self) -> dict[str, object]:
        return {
            "edits": self.edits, "refused": dict(self.refused), "right_values": self.served, "faults": self.faults,
            "seconds": round(self.seconds, 1), "slowest_cpu_seconds": round(self.slowest, 3),
        }  # fmt: skip


def build(root: Path) -> None:
    """The world that is edited, and which each edit gets a copy of."""
    store = TRUTH.create(root / "s")
    TRUTH.publish(store, "one", VERSIONS[0])
    full = TRUTH.publish(store, "two", VERSIONS[1])
    TRUTH.publish(store, "three", VERSIONS[2], parent=full, base=VERSIONS[1])
    TRUTH.publish(store, "four", VERSIONS[0], line="shadow")
    store.forget(TRUTH.users[:1])
    TRUTH.build(store, "under-way", VERSIONS[1], None)
    push(store, None, f"file://{root / 'remote'}", jobs=1)
    with Store.open(root / "s") as reader:
        reader.lookup(TRUTH.users)
        lease = next((root / "s/leases").glob("*.json")).read_text()
    (root / "s/leases/9-kept.json").write_text(lease)


def _sealed(folder: Path, values: dict, text: str | None = None) -> None:
    """Write a manifest with its seal."""
    raw = (json.dumps(values) if text is None else text).encode("utf-8", "surrogatepass")
    (folder / "manifest.json").write_bytes(raw)
    (folder / "READY").write_bytes((xxhash.xxh3_128_hexdigest(raw) + "\n").encode())


def _generation(root: Path, rng: np.random.Generator) -> tuple[Path, dict]:
    folder = choose(rng, sorted((root / "s/generations").iterdir()))
    return folder, json.loads((folder / "manifest.json").read_text())


def edit_manifest(root: Path, rng: np.random.Generator) -> str:
    folder, values = _generation(root, rng)
    done = "; ".join(edit(rng, values) for _ in range(int(rng.integers(1, 3))))
    try:  # what follows from the rest
        shards = values["shards"]
        facts = [values["kind"], values["fingerprint"], values["schema"], values["num_shards"],
                 [[s["content"], s["state_content"]] for s in shards]]  # fmt: skip
        values["digest"] = xxhash.xxh3_128_hexdigest(json.dumps(facts, sort_keys=True).encode())
        if rng.integers(2):
            values["written"] = sum(s["records"] + s["tombstones"] for s in shards)
            values["expected"] = values["written"] + values["dead_letters"] + values["forgotten"]
    except (KeyError, TypeError, UnicodeEncodeError):
        pass
    text, more = text_of(rng, values)
    _sealed(folder, values, text)
    return f"{folder.name} {done}{more}"


def edit_index(root: Path, rng: np.random.Generator) -> str:
    folder, values = _generation(root, rng)
    path = choose(rng, sorted(folder.glob("*.idx")))
    words = np.frombuffer(path.read_bytes(), np.uint64).copy()
    at = int(rng.integers(len(words)))
    words[at] = np.uint64(choose(rng, WORDS)) if rng.integers(3) else words[at] + np.uint64(1)
    words[6] = xxhash.xxh3_64_intdigest(words[8:]) if at != 6 else words[6]
    words[7] = xxhash.xxh3_64_intdigest(words[:7]) if at != 7 else words[7]
    _replaced(folder, values, path, words.tobytes())
    return f"{path.name} word {at}"


def edit_pages(root: Path, rng: np.random.Generator) -> str:
    folder, values = _generation(root, rng)
    path = choose(rng, sorted(folder.glob("*.mdb")))
    data = bytearray(path.read_bytes())
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.integers(len(data) // 8)) * 8
        data[at : at + 8] = int(choose(rng, WORDS)).to_bytes(8, "little")
    if rng.integers(4) == 0:
        data = data[: len(data) - int(choose(rng, (1, 8, 4_096)))]
    _replaced(folder, values, path, bytes(data))
    return f"{path.name} bytes"


def _replaced(folder: Path, values: dict, path: Path, data: bytes) -> None:
    path.write_bytes(data)
    for shard in values["shards"]:
        if path.name in shard["files"]:
            shard["files"][path.name] = {"bytes": len(data), "digest": xxhash.xxh3_128_hexdigest(data)}
    _sealed(folder, values)


def edit_text(root: Path, rng: np.random.Generator) -> str:
    """FORMAT, a pointer, SEQUENCE, FORGOTTEN, BEGAN: lines that are dropped, doubled, replaced; the check is right."""
    names = ("FORMAT", "CURRENT", "lines/shadow", "SEQUENCE", "FORGOTTEN", "staging/under-way/BEGAN")
    name = choose(rng, names)
    path = root / "s" / name
    lines = path.read_text().splitlines()
    checked = lines[-1].startswith("check ")
    body = lines[:-1] if checked else list(lines)
    at = int(rng.integers(len(body)))
    act = str(rng.choice(["drop", "twice", "swap", "text", "word"]))
    if act == "drop":
        del body[at]
    elif act == "twice":
        body.insert(at, body[at])
    elif act == "swap":
        body.reverse()
    elif act == "text":
        body[at] = choose(rng, TEXTS)
    else:
        parts = body[at].split(" ")
        parts[int(rng.integers(len(parts)))] = str(choose(rng, (*WORDS, -1, "zz", "")))
        body[at] = " ".join(parts)
    if name == "FORMAT" and rng.integers(2) and len(lines) > 1:
        facts = json.loads(lines[1])
        act = edit(rng, facts)
        body = [lines[0], json.dumps(facts, sort_keys=True)]
    text = "".join(f"{line}\n" for line in body)
    if checked:
        of = {"CURRENT": "main\n", "lines/shadow": "shadow\n"}.get(name, "")
        text += f"check {xxhash.xxh3_64_hexdigest((of + text).encode())}\n"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    return f"{name} {act}"


def edit_json(root: Path, rng: np.random.Generator) -> str:
    """A lease, a receipt of the run under way, a manifest at the remote."""
    found = sorted([*root.glob("s/leases/*.json"), *root.glob("s/staging/under-way/*.json")])
    return edit_file(rng, choose(rng, found))


def edit_remote(root: Path, rng: np.random.Generator) -> str:
    """A manifest at the remote, under the name that follows from it, pointed to and with its children renamed."""
    remote = root / "remote"
    chain = sorted((remote / "generations").iterdir())
    which, parent, done = int(rng.integers(len(chain))), "-", ""
    for n, folder in enumerate(chain):
        values = json.loads((folder / "manifest.json").read_text())
        if n == which:
            done = edit(rng, values)
        raw = json.dumps(values).encode()
        digest = xxhash.xxh3_128_hexdigest(f"{parent}\n".encode() + raw)
        name = f"{folder.name.partition('-')[0]}-{digest}"
        (folder / "PARENT").write_text(f"{parent}\n")
        _sealed(folder, values, raw.decode())
        folder.rename(folder.with_name(name))
        parent = name
    check = xxhash.xxh3_64_hexdigest(f"main\n{parent}".encode())
    (remote / "CURRENT").write_text(f"{parent}\ncheck {check}\n")
    return f"remote {which} {done}"


EDITS: dict[Callable[[Path, np.random.Generator], str], float] = {
    edit_manifest: 0.4, edit_index: 0.15, edit_pages: 0.1, edit_text: 0.15, edit_json: 0.1, edit_remote: 0.1,
}  # fmt: skip


def _right(found: Lookup) -> None:
    """Every row that is served has the values of a version that was published."""
    good = np.flatnonzero(np.asarray(found.status) <= Status.STALE)
    counts = np.asarray(found.event_count)[good]
    same = np.isin(counts, VERSIONS)
    if same.any():
        expected = TRUTH.stacked(good[same], counts[same])
        same[same] = (np.asarray(found.tokens)[good][same] == expected).all(axis=(1, 2))
    if not same.all():
        raise AssertionError(f"wrong values of {TRUTH.users[good[~same]].tolist()}")


def _reads(root: Path) -> list[Callable[[], object]]:
    def every() -> None:
        with Store.open(root / "s") as store:
            _right(store.lookup(TRUTH.users))
            _right(store.lookup(TRUTH.users, as_of=VERSIONS[1]))
            store.lookup_raw(TRUTH.users)
            store.states(TRUTH.users)
            store.users(0), store.places(TRUTH.users)
            store.refresh()

    def careless() -> None:
        with Store.open(root / "s", verify=False, line="shadow") as store:
            store.lookup(TRUTH.users)
            store.users(1)

    return [every, careless, lambda: Store(root / "s").verify(), lambda: Store(root / "s").generations()]


def _verbs(root: Path) -> list[Callable[[], object]]:
    def store() -> Store:
        return Store(root / "s")

    def replica() -> None:
        target = TRUTH.create(root / "replica")
        pull(f"file://{root / 'remote'}", target, jobs=1)
        with Store.open(root / "replica") as reader:
            _right(reader.lookup(TRUTH.users))

    return [
        lambda: store().prune(keep=1), lambda: store().rollback(), lambda: store().promote("shadow"),
        lambda: store().compact(), lambda: store().forget(TRUTH.users[3:5]), replica,
        lambda: push(store(), None, f"file://{root / 'other'}", jobs=1),
        lambda: TRUTH.publish(store(), "under-way", VERSIONS[1]),
        lambda: TRUTH.publish(store(), "late", VERSIONS[2], parent="00000002", base=VERSIONS[1]),
    ]  # fmt: skip


def one(world: Path, root: Path, seed: int) -> tuple[str, list[str], int]:
    """One edit of a copy of the world: what was done, names of the errors raised, and reads that were answered."""
    rng = np.random.default_rng(seed)
    shutil.copytree(world, root, symlinks=True)
    makers = list(EDITS)
    done = makers[int(rng.choice(len(makers), p=list(EDITS.values())))](root, rng)
    verbs, errors, served = _verbs(root), [], 0
    picked = [verbs[i] for i in rng.permutation(len(verbs))[:2]]
    if done.startswith("remote"):
        picked.append(verbs[5])
    for work in [*_reads(root), *picked]:
        try:
            work()
            served += 1
        except StoreError as error:
            errors.append(type(error).__name__)
    return done, errors, served


def _worker(world: str, folder: str, seeds: list[int], out: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    # Of memory that is its own; LMDB maps files larger than that while it builds them.
    resource.setrlimit(resource.RLIMIT_DATA, (used + MEMORY, used + MEMORY))
    for seed in seeds:
        root = Path(folder) / f"{seed}"
        out.send(("begin", seed))
        try:
            out.send(("done", *one(Path(world), root, seed)))
        except BaseException:
            out.send(("fault", traceback.format_exc()[-1500:]))
        shutil.rmtree(root, ignore_errors=True)
    out.send(("end",))


def run(edits: int, seed: int = 0) -> ResealReport:
    """Do so many edits; the report tells every fault with its seed."""
    report, start = ResealReport(), time.perf_counter()
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(dir=memory_folder()) as folder:
        world = Path(folder) / "world"
        build(world)
        seeds = [seed * 1_000_000 + n for n in range(edits)]
        while seeds:
            ours, theirs = context.Pipe(duplex=False)
            child = context.Process(target=_worker, args=(str(world), folder, seeds, theirs))
            child.start()
            theirs.close()
            seeds = _follow(child, ours, seeds, report)
            child.kill()
            child.join(60)
    report.seconds = time.perf_counter() - start
    return report


def _follow(child: Any, ours: Connection, seeds: list[int], report: ResealReport) -> list[int]:
    """Listen to a child until it ends, dies or hangs; the seeds that are left."""
    now, began, used = seeds[0], time.monotonic(), 0.0
    said: tuple[Any, ...]
    while True:
        try:
            silent = not ours.poll(SECONDS)
            if silent:
                took = processor_seconds(child.pid) - used
                if took < SECONDS and time.monotonic() - began < SILENCE:
                    continue  # others have the processor
                said = ("fault", f"no answer after {took:.0f} s of processor")
            else:
                said = ours.recv()
        except (EOFError, OSError):
            said, silent = ("fault", "the process died"), True
        if said[0] == "end":
            return []
        if said[0] == "begin":
            now, began, used = said[1], time.monotonic(), processor_seconds(child.pid)
            continue
        report.edits += 1
        if not silent:
            report.slowest = max(report.slowest, processor_seconds(child.pid) - used)
        if said[0] == "done":
            report.refused.update(said[2])
            report.served += said[3]
        else:
            report.faults.append(f"seed {now}: {said[1]}")
        if silent:
            return seeds[seeds.index(now) + 1 :]


def processor_seconds(process: int) -> float:
    """That a process has used; 0 if it is gone."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    given = asked(__doc__, edits=400, seed=0)
    report = run(given.edits, given.seed)
    print(json.dumps(report.as_dict(), indent=1))
    raise SystemExit(1 if report.faults else 0)


if __name__ == "__main__":
    main()
