"""The wheel: its core alone reads a golden store, what it lacks names its extra, and what is only ours is not in it."""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORE = ("numpy", "lmdb", "msgpack", "xxhash", "fsspec")
READ = """
import importlib.util, json, sys, time
began = time.perf_counter()
import cache_store
seconds = time.perf_counter() - began
assert importlib.util.find_spec("torch") is None and "site-packages" in cache_store.__file__
users = json.load(open(sys.argv[2]))["main"]["rows"]
with cache_store.Store.open(sys.argv[1]) as store:
    found = store.lookup([row["user"] for row in users])
    kernel = store.kernel
assert found.status.tolist() == [row["facts"][0] for row in users]
told = []
for use in (lambda: cache_store.SummaryFeature, lambda: __import__("vista.stage2"), lambda: __import__("vista.serving"),
            lambda: __import__("beam_jobs"), lambda: __import__("vista.data.tables")):
    try:
        use()
    except ImportError as error:
        told.append(str(error))
print(json.dumps({"seconds": seconds, "kernel": kernel, "rows": len(users), "told": told}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for package in ("vista", "cache_store", "beam_jobs", "tools"):
        shutil.copytree(
            ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__", "*.so", "*.pyc")
        )
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(out),
        ".",
    ]
    done = subprocess.run(pip, cwd=source, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    (found,) = out.glob("*.whl")
    return found


@pytest.mark.xdist_group("wheel")
def test_the_core_alone_reads_a_golden_store_and_names_the_extra_of_what_it_lacks(wheel, tmp_path):
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "env")], check=True, timeout=120
    )
    (packages,) = (tmp_path / "env/lib").glob("python*/site-packages")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(packages)
    ours = sum(p.stat().st_size for p in packages.rglob("*") if p.is_file())
    for name in CORE:  # as pip would install them, from where they are installed already
        for top in {
            f.parts[0] for f in importlib.metadata.files(name) if f.parts[0] not in ("..", "__pycache__")
        }:
            there = Path(importlib.metadata.distribution(name).locate_file(top))
            if there.exists() and not (packages / top).exists():
                os.symlink(there, packages / top)
    shutil.copytree(ROOT / "tests/golden/store-1-int64", tmp_path / "store")
    done = subprocess.run(
        [str(tmp_path / "env/bin/python"), "-c", READ, str(tmp_path / "store"),
         str(ROOT / "tests/golden/store-1-int64.expected.json")],
        cwd=tmp_path, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout)
    print(
        f"wheel {wheel.stat().st_size} bytes, installed {ours} bytes, import {said['seconds']:.3f} s, {said['kernel']}"
    )
    extras = ("torch", "model", "serve", "jobs", "model")
    assert len(said["told"]) == len(extras)
    for text, extra in zip(said["told"], extras, strict=True):
        assert f"pip install 'vista-cache[{extra}]'" in text
    assert ours < 8 << 20


@pytest.mark.xdist_group("wheel")
def test_what_is_only_ours_is_not_in_the_wheel(wheel):
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
    tops = {n.partition("/")[0] for n in names}
    assert {t for t in tops if not t.endswith(".dist-info")} == {"vista", "cache_store", "beam_jobs", "tools"}
    ours = ("tools/bench/", "tools/studies/", "tools/drills/", "tests/")
    assert not [n for n in names if n.startswith(ours)]
    assert {"cache_store/native/native.c", "cache_store/py.typed", "tools/verbs/lookup.py"} <= set(names)
