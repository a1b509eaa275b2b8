"""Homes made before still serve: their bundles, their stores with resumable states, and run records.

``home-1`` came from 40 generated users: ``logs/a.parquet`` was ingested into 2 buckets, a small model trained for ten
steps and all summarised; then ``logs/b.parquet`` was ingested and refreshed. ``expected.npz`` holds what that version
read and computed: tokens of all users as served and before quantising, and logits of four items for each. ``home-2``
(records of exact tokens), ``home-3`` (with newest touches) and ``home-4`` (of the heaviest clusters alone) are of the
same logs; ``make_home.py`` made them.
"""

import io
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from beam_jobs.run.record import RunRecord
from cache_store import Store
from cache_store.errors import SchemaError
from cache_store.torch.feature import SummaryFeature
from cache_store.torch.sequence import ItemVectors
from vista import bundle as bundles
from vista.data.events import Events
from vista.stage1.state import UserState

HOME = Path(__file__).parent / "home-1"
HOMES = {
    "home-1": ("seeds", "slots"),
    "home-2": ("items", "masses", "clusters"),
    "home-3": ("items", "masses", "last", "clusters", "clusters_last"),
    "home-4": ("items", "masses", "last", "cluster_numbers", "clusters", "clusters_last"),
}
"""Groups of each home's records."""


def histories(*names: str, users: np.ndarray) -> Events:
    """Histories of ``users`` in contract order; this log has surfaces and requests of its own."""
    tables = [pq.read_table(HOME / "logs" / f"{n}.parquet") for n in names]
    columns = {k: np.concatenate([t[k].to_numpy() for t in tables]) for k in tables[0].column_names}
    owner = {u: i for i, u in enumerate(users.tolist())}
    mine = np.array([owner.get(u, -1) for u in columns["user_id"].tolist()])
    order = np.argsort(mine, kind="stable")
    order = order[mine[order] >= 0]
    lengths = np.bincount(mine[order], minlength=len(users))
    return Events.of(
        lengths,
        item=columns["item_id"][order],
        time=columns["timestamp_ms"][order],
        action=1 << columns["action"][order].astype(np.int64),
        surface=columns["surface"][order],
        request=columns["request_id"][order],
    ).sorted()


class Home:
    """One of them, and what was expected of it."""

    def __init__(self, name: str) -> None:
        self.path, self.groups = HOME.with_name(name), HOMES[name]
        self.expected = dict(np.load(self.path / "expected.npz"))
        self.bundle = bundles.load(self.path / "model")

    def same(self, tokens: dict[str, np.ndarray], rows: np.ndarray | slice = slice(None)) -> None:
        for name in self.groups:
            found, wanted = tokens[name], self.expected[name][rows]
            if name in ("items", "cluster_numbers"):  # bits of whole numbers, which may be no numbers
                assert found.tobytes() == wanted.tobytes()
            else:
                np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module", params=HOMES)
def home(request) -> Home:
    return Home(request.param)


@pytest.fixture()
def store(home: Home, tmp_path: Path):
    shutil.copytree(home.path / "store", tmp_path / "store")
    with Store.open(tmp_path / "store") as opened:
        yield opened


def test_tokens_read_from_the_store_are_those_that_were_read_before(home, store):
    found = store.lookup(home.expected["users"])
    assert found.tokens.tobytes() == home.expected["tokens"].tobytes()
    assert (found.status == 0).all() and store.verify().problems == []
    assert tuple(store.manifest.schema.slices) == home.groups


def test_the_bundle_has_its_fingerprint_and_summarises_as_before(home, store):
    assert home.bundle.fingerprint == str(home.expected["fingerprint"]) == store.manifest.fingerprint
    events = histories("a", "b", users=home.expected["users"])
    with torch.inference_mode():
        home.same(home.bundle.model.summarizer.summarize(events).tokens)


def ranked(bundle, tokens: dict[str, np.ndarray], events: Events) -> np.ndarray:
    """Logits [4 U, A] of four items for each user, just after the last event of the log."""
    recent = events.select(np.arange(events.users))
    now = np.full(events.users, int(events.time.max()) + 1_000)
    items = np.tile(bundle.items()["item_id"].to_numpy()[:4], events.users)
    with torch.inference_mode():
        context = bundle.model.ranker.context(
            {k: torch.from_numpy(v) for k, v in tokens.items()}, None, recent, torch.from_numpy(now)
        )
        offsets = torch.arange(0, len(items) + 1, 4)
        return bundle.model.ranker.rank(context, torch.from_numpy(items), offsets).numpy()


def test_the_bundle_ranks_as_before(home):
    tokens = {name: home.expected[name] for name in home.groups}
    logits = ranked(home.bundle, tokens, histories("b", users=home.expected["users"]))
    np.testing.assert_allclose(logits, home.expected["logits"], rtol=1e-3, atol=1e-4)


def test_states_kept_before_are_resumed(home, store):
    new = sorted(set(pq.read_table(HOME / "logs/b.parquet")["user_id"].to_pylist()))
    with store.pin() as pinned:
        states = [UserState.from_bytes(s) for s in pinned.states(np.array(new)) if s is not None]
    assert len(states) == len(new)
    nothing = histories("a", users=np.zeros(0, np.int64))
    empty = Events.of([0] * len(new), **{k: v[:0] for k, v in nothing.columns.items()})
    tokens = home.bundle.model.summarizer.summarize(empty, states).tokens
    home.same(tokens, np.searchsorted(home.expected["users"], new))


def test_what_users_did_reads_as_a_sequence_with_ages_where_the_records_tell_them(home, store):
    items, cluster = home.bundle.items()["item_id"].to_numpy(), home.bundle.model.config.tokens.clusters
    file = io.BytesIO()
    bundles.publish_vectors(file, home.bundle.model, home.bundle.items())
    file.seek(0)
    vectors, found = ItemVectors.read(file), SummaryFeature(store)(home.expected["users"])
    if home.groups == HOMES["home-1"]:
        with pytest.raises(SchemaError, match="table of items"):
            found.sequence(vectors)
        return
    seen = found.sequence(vectors, tokens=8, places=min(4, cluster))
    assert seen.last is None and np.isin(seen.items[seen.log_mass[:, :4] > -torch.inf].numpy(), items).all()
    if "last" not in home.groups:
        with pytest.raises(SchemaError, match="group last for ages=True"):
            found.sequence(vectors, ages=True)
        return
    last = found.sequence(vectors, tokens=8, places=4, ages=True).last
    some = (seen.masses[..., 0] > 0).numpy()
    assert last.shape == (*seen.log_mass.shape, 2) and (last.numpy()[some] >= [1, 0]).all()


def test_run_records_are_read():
    for job in ("summarize-1", "refresh-1"):
        record = RunRecord.load(HOME / "runs" / job)
        assert record.counts["users"] > 0 and record.job == job.partition("-")[0]
