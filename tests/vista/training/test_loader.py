"""The loader: every slate once, whatever the pieces; buckets joined; orders repeatable and well mixed."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vista.data.events import Events
from vista.data.tables.rows import HISTORY, IMPRESSIONS, Rows, SortedWriter
from vista.training.batches import Visit
from vista.training.examples import ExampleConfig, PopularItems
from vista.training.loader import (
    Arrays,
    Loader,
    LoaderConfig,
    Part,
    Piece,
    WarehouseSource,
    grouped,
    owner_numbers,
    shuffled,
    visit_stream,
)

EXAMPLES = ExampleConfig(lag_jitter_events=0, negatives=3, max_history=1_000, keep_unengaged=1.0)
POPULAR = PopularItems(np.arange(50), np.zeros(50, np.int32), np.ones(50))


def histories(seed: int, users: int, most: int = 30) -> Events:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, most, users)
    n = int(lengths.sum())
    return Events.of(
        lengths,
        item=rng.integers(0, 50, n),
        action=rng.integers(1, 4, n),
        time=rng.integers(0, 60, n) * 1000,
    ).sorted()


@dataclasses.dataclass(frozen=True)
class InPieces:
    """Users of one bucket cut into pieces of at most ``rows`` rows, as the tables give them."""

    users: np.ndarray
    events: Events
    rows: int

    def buckets(self) -> list[int]:
        return [0]

    def pieces(self, bucket: int):
        user = np.repeat(np.arange(self.events.users), self.events.lengths)
        for start in range(0, len(user), self.rows):
            own = user[start : start + self.rows]
            present = np.unique(own)
            rows = self.events.rows(start, start + len(own))
            stop = start + len(own)
            yield Piece(
                self.users[present],
                Events.of(np.bincount(own - own[0])[present - own[0]], **rows.columns),
                None,
                stop < len(user) and user[stop] == own[-1],
            )


def marks(visits: list[Visit]) -> list[tuple]:
    """What identifies a slate: user, time, engaged items."""
    found = []
    for v in visits:
        for k in range(len(v.slates)):
            a, b = v.slates.offsets[k], v.slates.offsets[k + 1]
            engaged = tuple(sorted(v.slates.item[a:b][v.slates.action[a:b] != 0].tolist()))
            history = v.events.item[: v.slates.history[k]]
            found.append((v.owner, int(v.slates.time[k]), engaged, tuple(history[-5:].tolist())))
    return found


@given(st.integers(0, 500), st.integers(1, 40))
def test_a_user_that_spans_pieces_gives_the_slates_it_gives_in_one(seed, rows):
    events = histories(seed, users=4)
    config = dataclasses.replace(EXAMPLES, max_positives=99)
    whole = visit_stream(Arrays(np.arange(4), events), [0], config, 4, POPULAR, (0,))
    cut = visit_stream(InPieces(np.arange(4), events, rows), [0], config, 4, POPULAR, (0,))
    assert sorted(marks(list(cut))) == sorted(marks(list(whole)))


@given(st.integers(0, 500), st.integers(1, 50))
def test_the_shuffle_buffer_loses_and_repeats_nothing(seed, buffer):
    given_ = list(range(100))
    out = list(shuffled(given_, buffer, np.random.default_rng(seed)))  # type: ignore[arg-type]
    assert sorted(out) == given_


def test_batches_mix_users_of_several_buckets():
    events = histories(0, users=400)
    source = Arrays(np.arange(400), events, of=8)
    config = LoaderConfig(slates=64, shuffle_visits=256)
    loader = Loader(source, EXAMPLES, config, 4, POPULAR)
    for batch in list(loader)[:-1]:
        buckets = set((batch.owner % 8).tolist())
        assert len(buckets) >= 2
    # Neighbours in the stream seldom stay together.
    together = [abs(np.diff(np.sort(b.owner // 8))) <= 1 for b in loader]
    assert np.concatenate(together).mean() < 0.9


def test_an_epoch_repeats_exactly_and_two_epochs_differ():
    source = Arrays(np.arange(60), histories(1, users=60), of=4)
    loader = Loader(source, EXAMPLES, LoaderConfig(slates=32, shuffle_visits=20), 4, POPULAR, seed=5)
    first, again = list(loader), list(loader)
    assert all(
        (a.item == b.item).all() and (a.owner == b.owner).all() for a, b in zip(first, again, strict=True)
    )
    loader.epoch = 1
    other = list(loader)
    assert [a.owner.tolist() for a in first] != [b.owner.tolist() for b in other]
    assert sum(len(a) for a in first) == sum(len(b) for b in other)


def test_a_position_in_the_data_resumes_with_the_very_next_batch():
    source = Arrays(np.arange(60), histories(2, users=60), of=4)
    loader = Loader(source, EXAMPLES, LoaderConfig(slates=32, shuffle_visits=20), 4, POPULAR)
    stream = loader.batches()
    seen = [next(stream) for _ in range(12)]
    epoch, taken, _ = seen[6]
    resumed = Loader(source, EXAMPLES, LoaderConfig(slates=32, shuffle_visits=20), 4, POPULAR).batches(
        epoch, taken
    )
    for expected in seen[7:]:
        got = next(resumed)
        assert got[:2] == expected[:2]
        assert (got[2].item == expected[2].item).all() and (got[2].cut == expected[2].cut).all()


def test_processes_share_the_buckets_without_overlap():
    source = Arrays(np.arange(80), histories(3, users=80), of=5)
    whole, shares = 0, []
    for rank in (0, 1):
        batches = list(Loader(source, EXAMPLES, LoaderConfig(), 4, POPULAR, part=Part(rank=rank, world=2)))
        shares.append(set(np.concatenate([b.owner for b in batches]).tolist()))
        whole += sum(len(b) for b in batches)
    assert not shares[0] & shares[1]
    assert whole == sum(len(b) for b in Loader(source, EXAMPLES, LoaderConfig(), 4, POPULAR))


def test_a_batch_ends_at_either_limit_and_never_cuts_a_visit():
    source = Arrays(np.arange(80), histories(4, users=80))
    visits = list(visit_stream(source, [0], EXAMPLES, 4, POPULAR, (0,)))
    for group in grouped(visits, slates=40, events=200):
        assert len(group) == 1 or (
            sum(len(v.slates) for v in group) <= 40 and sum(len(v.events) for v in group) <= 200
        )
    assert sum(len(g) for g in grouped(visits, 40, 200)) == len(visits)


def test_worker_processes_deliver_every_slate_once():
    source = Arrays(np.arange(40), histories(5, users=40), of=4)
    alone = Loader(source, EXAMPLES, LoaderConfig(), 4, POPULAR)
    shared = Loader(source, EXAMPLES, LoaderConfig(workers=2), 4, POPULAR)
    stream = shared.batches()
    count, total = 0, sum(len(b) for b in alone)
    for epoch, _, batch in stream:
        if epoch:
            break
        count += len(batch)
    stream.close()
    assert count == total


def test_owners_are_the_same_number_for_the_same_user_and_never_negative():
    strings = np.array(["ann", "bob", "ann"], object)
    numbers = owner_numbers(strings)
    assert numbers[0] == numbers[2] != numbers[1]
    assert (owner_numbers(np.array([-5, 5])) >= 0).all()


@pytest.fixture
def tables(tmp_path):
    """Two buckets with histories and impressions in two sorted files each; user 3 has impressions only in
    part."""

    def write(kind, bucket, name, users, lengths, columns):
        path = str(tmp_path / f"{kind.name}-{bucket}-{name}.parquet")
        with SortedWriter(path, kind, "int64", bucket) as writer:
            writer.write(Rows(np.array(users), np.array(lengths), columns))
        return path

    history, shown = {}, {}
    for bucket, users in enumerate(([1, 3, 5], [2, 4])):
        history[bucket], shown[bucket] = [], []
        for part in (0, 1):
            lengths = [6] * len(users)
            n = sum(lengths)
            time = np.tile(np.arange(6) * 100 + part * 600, len(users))
            request = time // 100 + 1
            columns = {
                "time": time,
                "request": request,
                "item": np.arange(n) % 7,
                "action": np.ones(n, np.int32),
                "surface": np.zeros(n, np.int32),
            }
            history[bucket].append(write(HISTORY, bucket, part, users, lengths, columns))
            some = [u for u in users if u != 3 or part == 0]
            m = 6 * len(some)
            impressions = {
                "time": np.repeat(columns["time"][: 6 * len(some)], 2),
                "request": np.repeat(columns["request"][: 6 * len(some)], 2),
                "item": np.stack([columns["item"][:m], columns["item"][:m] + 20], 1).ravel(),
                "position": np.tile([0, 1], m).astype(np.int32),
                "action": np.tile([1, 0], m).astype(np.int32),
            }
            shown[bucket].append(write(IMPRESSIONS, bucket, part, some, [12] * len(some), impressions))
    return history, shown


@pytest.mark.parametrize("max_rows", [1_000, 14, 5, 1])
def test_the_bucket_join_finds_every_impression_of_every_user(tables, max_rows):
    history, shown = tables
    source = WarehouseSource(history, shown, max_rows)
    assert pickle.loads(pickle.dumps(source)) == source
    visits = list(visit_stream(source, source.buckets(), EXAMPLES, 4, None, (0,)))
    per_user: dict[int, int] = {}
    for v in visits:
        for k in range(len(v.slates)):
            a, b = v.slates.offsets[k], v.slates.offsets[k + 1]
            assert b - a == 2 and v.slates.action[a:b].tolist() == [1, 0] and v.slates.shown[a:b].all()
            per_user[v.owner] = per_user.get(v.owner, 0) + 1
    # The first request has no history before it.
    assert per_user == {1: 11, 2: 11, 3: 5, 4: 11, 5: 11}


def test_without_impressions_the_tables_give_sampled_negatives(tables):
    history, _ = tables
    visits = list(visit_stream(WarehouseSource(history, None, 100), [0, 1], EXAMPLES, 4, POPULAR, (0,)))
    assert sum(len(v.slates) for v in visits) == 5 * 11
    assert any((~v.slates.shown).any() for v in visits)
