"""What items are about, from files of vectors and words to a ranking; and items that come after training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cache_store import Store
from tools.cli import main
from vista import bundle

T0 = 1_700_000_000_000
NICHES, EACH, WIDTH, USERS = 6, 8, 6, 36
OLD = NICHES * EACH
CONFIG = {
    "model": {
        "width": 16,
        "embedding": {"rows": 509, "surfaces": 4},
        "tokens": {"items": 64, "clusters": 16, "sequence": 16, "places": 4},
        "summarizer": {"chunk": 32},
        "ranker": {"layers": 1, "recent": 8},
    },
    "lr": 1e-2,
    "warmup": 5,
    "validation_slates": 0,
}


def vista(capsys, *words: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as done:
        main([str(w) for w in words])
    out, err = capsys.readouterr()
    return int(done.value.code or 0), out, err


def vectors(rng: np.random.Generator) -> np.ndarray:
    """Of the old items by niche, of one new item per niche, of as many new ones at random."""
    centre = np.eye(NICHES, WIDTH, dtype=np.float32)
    near = np.repeat(np.arange(NICHES), EACH)
    noise = rng.standard_normal((OLD + NICHES, WIDTH)).astype(np.float32) * 0.15
    known = centre[np.concatenate([near, np.arange(NICHES)])] + noise
    return 3 * np.concatenate([known, rng.standard_normal((NICHES, WIDTH)).astype(np.float32)])


def log(path: Path, rng: np.random.Generator) -> None:
    """Each user likes a niche: five in six of the events are of it."""
    n = USERS * 40
    user = np.repeat(np.arange(USERS), 40)
    liked = rng.random(n) < 5 / 6
    item = np.where(liked, user % NICHES * EACH + rng.integers(0, EACH, n), rng.integers(0, OLD, n))
    pq.write_table(
        pa.table(
            {
                "user_id": user,
                "item_id": item,
                "action": np.where(liked, "like", "skip"),
                "timestamp_ms": T0 + np.tile(np.arange(40), USERS) * 3_600_000,
            }
        ),
        path,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A home that was trained with vectors of the old items, and files beside it."""
    root = tmp_path_factory.mktemp("items")
    rng = np.random.default_rng(5)
    log(root / "events.parquet", rng)
    np.save(root / "all.npy", vectors(rng))
    found = np.load(root / "all.npy")
    flat = pa.array(found[:OLD].ravel())
    pq.write_table(
        pa.table(
            {
                "sku": np.arange(OLD),
                "title": [f"Old {i}" for i in range(OLD)],
                "embed": pa.FixedSizeListArray.from_arrays(flat, WIDTH),
            }
        ),
        root / "old.parquet",
    )
    (root / "config.json").write_text(json.dumps(CONFIG))
    home = ("--home", root / "home")
    columns = [w for m in ("item_id=sku", "name=title", "vector=embed") for w in ("--item-column", m)]
    for words in (
        ("ingest", root / "events.parquet", "--items", root / "old.parquet", *columns, "--buckets", 2, *home),
        ("train", "--config", root / "config.json", "--steps", 60, *home),
        ("summarize", *home),
    ):
        with pytest.raises(SystemExit) as done:
            main([str(w) for w in words])
        assert not done.value.code
    return root


def test_vectors_of_the_tables_reach_the_encoder_the_clusters_and_the_index(trained):
    loaded = bundle.load(trained / "home" / "model")
    found = np.load(trained / "all.npy")[:OLD]
    e = loaded.config.embedding
    assert (e.content_width, e.words_width) == (WIDTH, 0)
    expected = found / np.linalg.norm(found, axis=1, keepdims=True)
    np.testing.assert_allclose(loaded.model.items.content.values.numpy(), expected, atol=1e-6)
    cluster = loaded.model.tokens.cluster_of.values.numpy()
    niche = np.arange(OLD) // EACH
    assert sum(len(set(niche[cluster == c])) > 1 for c in set(cluster)) == 0  # none mixes two niches
    assert loaded.items()["name"][0].as_py() == "Old 0"


@pytest.fixture
def home(trained, tmp_path, capsys) -> Path:
    shutil.copytree(trained / "home", tmp_path / "home")
    assert vista(capsys, "relocate", "--home", tmp_path / "home")[0] == 0
    return tmp_path / "home"


def test_a_new_item_like_what_a_user_likes_ranks_above_a_random_one(trained, home, tmp_path, capsys):
    before = bundle.load(home / "model")
    fresh = np.arange(OLD, OLD + 2 * NICHES)
    np.savez(tmp_path / "new.npz", ids=fresh, vectors=np.load(trained / "all.npy")[OLD:])
    code, out, err = vista(capsys, "ingest", "--items", tmp_path / "new.npz", "--home", home, "--json")
    counts = json.loads(out.splitlines()[-1])["counts"]
    assert (code, counts["items"], counts["vectors"]) == (0, 2 * NICHES, 2 * NICHES), err
    code, out, _ = vista(capsys, "items", "refresh", "--home", home, "--json")
    said = json.loads(out)
    assert code == 0 and said["fingerprint"] == before.fingerprint
    assert (said["new"], said["with_content"], said["hashed_only"]) == (2 * NICHES, 2 * NICHES, 0)
    users = list(range(USERS))
    _, out, err = vista(capsys, "recommend", *users, "-k", 100, "--home", home, "--json")
    assert "building the item index" not in err
    above = []
    random = list(range(OLD + NICHES, OLD + 2 * NICHES))
    for user, answer in zip(users, json.loads(out)["users"], strict=True):
        place = {row["item"]: k for k, row in enumerate(answer["items"])}
        assert answer["status"] == "FRESH" and set(fresh.tolist()) <= set(place)
        above += [place[OLD + user % NICHES] < place[other] for other in random]
    assert np.mean(above) > 0.75  # one half by chance; random vectors lie near a niche now and then


def test_a_refresh_tells_what_is_only_hashed_shows_later_names_and_leaves_summaries_as_they_are(
    trained, home, tmp_path, capsys
):
    log = pq.read_table(trained / "events.parquet").slice(0, 40)  # of user 0, who likes niche 0
    later = log.set_column(3, "timestamp_ms", pa.array(T0 + 10**9 + np.arange(40)))
    later = later.set_column(1, "item_id", pa.array(np.where(np.arange(40) % 2, 900, np.arange(40) % EACH)))
    pq.write_table(later, tmp_path / "later.parquet")
    (tmp_path / "names.csv").write_text("item_id,name\n900,Nine\n3,Third\n901,Nothing known of it\n")
    words = ("ingest", tmp_path / "later.parquet", "--items", tmp_path / "names.csv", "--home", home)
    assert vista(capsys, *words)[0] == 0
    _, out, _ = vista(capsys, "recommend", 0, "-k", 100, "--home", home, "--json")
    assert 900 not in {row["item"] for row in json.loads(out)["users"][0]["items"]}
    digests = []
    for _ in range(2):
        assert vista(capsys, "summarize", "--home", home, "--json")[0] == 0
        _, out, _ = vista(capsys, "status", "--home", home, "--json")
        with Store.open(home / "store") as store:
            digests.append(store.manifest.digest)
        code, out, err = vista(capsys, "items", "refresh", "--home", home, "--json")
        said = json.loads(out)
        assert (code, said["new"], said["hashed_only"], said["placed"]) == (0, 1, 1, 1)
        assert said["renamed"] == 1 and said["left_out"] == 1
        assert "1 of 1 new items have only hashed vectors" in err
    assert digests[0] == digests[1]  # stage 1 knows nothing of new items
    _, out, _ = vista(capsys, "recommend", 0, "-k", 100, "--home", home, "--json")
    names = {row["item"]: row["name"] for row in json.loads(out)["users"][0]["items"]}
    assert (names[900], names[3], names[4]) == ("Nine", "Third", "Old 4")
    with np.load(home / "model.items.npz") as found:
        assert 900 in found["ids"] and len(found["vectors"]) == OLD + 1
