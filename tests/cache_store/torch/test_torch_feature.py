"""From user ids to tensors: the same tokens as the store's own decoding, on every way there."""

from __future__ import annotations

import copy
import io
import pickle
import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset

from cache_store import Group, Publication, RecordSchema, ShardWriter, Status, Store
from cache_store.errors import KeyKind, MissingUsers, SchemaError, StoreError
from cache_store.format.quantize import CODECS
from cache_store.format.record import PAGE_HEADER, as_rows
from cache_store.testing import FINGERPRINT, Truth
from cache_store.torch.decode import RecordDecoder
from cache_store.torch.feature import SummaryFeature, SummaryLoader

ON_DEVICE = pytest.mark.parametrize("on_device", [False, True], ids=["host-decode", "device-decode"])
DEVICES = ["cpu"] + ([pytest.param("cuda", marks=pytest.mark.gpu)] if torch.cuda.is_available() else [])


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Version 1001 over 1000: users that are missing, changed and removed."""
    truth = Truth(num_users=60)
    path = tmp_path_factory.mktemp("feature") / "store"
    store = truth.create(path)
    full = truth.publish(store, "full", 1000, published_ms=1_000)
    truth.publish(store, "delta", 1001, parent=full, base=1000, published_ms=3_600_000)
    return truth, path


def ask(truth, at):
    return truth.users[np.asarray(at)]


def encoded(schema: RecordSchema, tokens: dict[str, np.ndarray]) -> np.ndarray:
    """Rows as ``lookup_raw`` gives them, uint8 [n, row_bytes]."""
    n = len(next(iter(tokens.values())))
    zeros = np.zeros(n, np.int64)
    records = schema.encode(tokens, zeros.astype(np.uint64), zeros.astype(np.uint64), 1, zeros, zeros, zeros)
    rows = np.zeros((n, schema.row_bytes), np.uint8)
    rows[:, PAGE_HEADER : PAGE_HEADER + schema.record_bytes] = as_rows(records)
    return rows


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("codec", CODECS)
@given(data=st.data())
def test_decoding_in_torch_equals_numpy_bit_for_bit(codec, device, data):
    tokens, width = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 37))
    others = data.draw(st.lists(st.sampled_from(CODECS), max_size=2))
    groups = tuple(Group(f"g{i}", tokens + i, width, c) for i, c in enumerate([codec, *others]))
    schema = RecordSchema(groups)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    n = data.draw(st.integers(1, 4))
    scale = 10.0 ** rng.uniform(-6, 4, (n, 1, 1))
    values = {}
    for g in groups:
        x = rng.standard_normal((n, g.tokens, width)) * scale
        x[rng.random(x.shape) < 0.1] = 0
        values[g.name] = (np.abs(x) if g.codec == "log8" else x).astype(np.float32)
    rows = encoded(schema, values)
    expected = np.empty((n, schema.tokens, width), np.float32)
    schema.decode(
        rows[:, PAGE_HEADER : PAGE_HEADER + schema.record_bytes].copy().view(schema.dtype)[:, 0], expected
    )
    found = RecordDecoder(schema).to(device)(torch.from_numpy(rows).to(device)).cpu().numpy()
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


@given(st.permutations([g for g in CODECS]), st.integers(1, 6))
def test_groups_come_by_name_in_the_order_asked_for(codecs, count):
    schema = RecordSchema(tuple(Group(c, 2, 8, c) for c in CODECS))
    rng = np.random.default_rng(0)
    values = {c: np.abs(rng.standard_normal((3, 2, 8))).astype(np.float32) for c in CODECS}
    rows = torch.from_numpy(encoded(schema, values))
    whole, some = RecordDecoder(schema), RecordDecoder(schema, codecs[:count])
    assert list(some.slices) == codecs[:count]
    for name, place in some.slices.items():
        torch.testing.assert_close(some(rows)[:, place], whole(rows)[:, whole.slices[name]], rtol=0, atol=0)


@ON_DEVICE
@given(at=st.lists(st.integers(0, 59), max_size=40))
def test_the_module_gives_what_the_store_gives_in_the_callers_order(world, on_device, at):
    truth, path = world
    with Store.open(path) as store:
        found = SummaryFeature(store, on_device=on_device)(ask(truth, np.array(at, int)))
        plain = store.lookup(ask(truth, np.array(at, int)))
    truth.check(found, np.array(at, int), 1001)
    np.testing.assert_array_equal(found.tokens.numpy(), plain.tokens)
    for name in ("status", "event_count", "last_event_ms", "summarized_ms"):
        np.testing.assert_array_equal(getattr(found, name).numpy(), getattr(plain, name))
    assert found.mask.tolist() == (plain.status <= Status.STALE).tolist()
    assert found.generation == plain.generation
    assert {name: x.shape for name, x in found.groups.items()} == {
        g.name: (len(at), g.tokens, g.width) for g in truth.schema.groups
    }


@ON_DEVICE
def test_group_names_choose_and_order_the_tokens(world, on_device):
    truth, path = world
    store = Store.open(path)
    found = SummaryFeature(store, groups=["small", "seeds"], on_device=on_device)(truth.users)
    written = truth.written(1001)
    here = np.flatnonzero(written >= 0)
    expected = truth.tokens(here, written[here])
    np.testing.assert_array_equal(found.group("seeds")[here].numpy(), expected["seeds"])
    np.testing.assert_array_equal(
        found.tokens[here].numpy(), np.concatenate([expected["small"], expected["seeds"]], 1)
    )
    with pytest.raises(SchemaError, match="slots"):
        found.group("slots")
    with pytest.raises(SchemaError, match="other"):
        SummaryFeature(store, groups=["seeds", "other"])
    with pytest.raises(StoreError, match="missing"):
        SummaryFeature(store, missing="nothing")


@ON_DEVICE
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_dtype_asked_for_is_a_cast_of_float32(world, on_device, dtype):
    truth, path = world
    store = Store.open(path)
    whole = SummaryFeature(store)(truth.users).tokens
    found = SummaryFeature(store, dtype=dtype, missing="learned", on_device=on_device)(truth.users).tokens
    assert found.dtype == dtype
    torch.testing.assert_close(found, whole.to(dtype), rtol=0, atol=0)


@ON_DEVICE
def test_the_cold_start_token_serves_missing_users_and_learns_from_them_alone(world, on_device):
    truth, path = world
    feature = SummaryFeature(Store.open(path), missing="learned", on_device=on_device)
    with torch.no_grad():
        feature.cold_start.copy_(torch.arange(feature.cold_start.numel()).view_as(feature.cold_start))
    at = np.array([*range(60), 3, 3, 59])
    users = np.concatenate([truth.users[at], [10**12, 10**12]])
    found = feature(users)
    absent = ~found.mask
    assert absent[-2:].all() and absent.sum() > 2
    assert (found.tokens[absent] == feature.cold_start).all()
    with torch.no_grad():
        truth.check(feature(truth.users[at]), at, 1001)
    weight = torch.randn(found.tokens.shape, generator=torch.Generator().manual_seed(0))
    (found.tokens * weight).sum().backward()
    torch.testing.assert_close(feature.cold_start.grad, weight[absent].sum(0))
    assert list(feature.state_dict()) == ["cold_start"]


@ON_DEVICE
def test_missing_raise_names_the_users_and_zeros_gives_zeros(world, on_device):
    truth, path = world
    store = Store.open(path)
    with pytest.raises(MissingUsers, match="vista refresh") as error:
        SummaryFeature(store, missing="raise", on_device=on_device)(np.array([10**12, int(truth.users[0])]))
    assert 10**12 in error.value.users
    found = SummaryFeature(store, on_device=on_device)(np.array([10**12]))
    assert not found.tokens.any() and found.status.tolist() == [Status.MISSING]
    cold = Store.open(path, missing=np.float32(7))
    assert not SummaryFeature(cold, on_device=on_device)(np.array([10**12])).tokens.any()


@ON_DEVICE
def test_ages_are_the_logarithm_of_hours_since_each_of_the_three_clocks(world, on_device):
    truth, path = world
    feature = SummaryFeature(Store.open(path), ages=True, on_device=on_device)
    now = 2_000_000_000
    found = feature(truth.users, now_ms=now)
    written, here = truth.written(1001), truth.written(1001) >= 0
    last = truth.last_event_ms(np.arange(60), written)
    hours = np.stack([now - last, now - written, np.full(60, now - 3_600_000)], 1) / 3.6e6
    expected = np.where(here[:, None], np.log1p(np.maximum(hours, 0)), 0)
    np.testing.assert_allclose(found.ages.numpy(), expected, rtol=1e-5)
    each = feature(truth.users, now_ms=torch.full((60,), now))
    torch.testing.assert_close(each.ages, found.ages)
    assert (feature(truth.users, now_ms=0).ages == 0).all()
    assert SummaryFeature(Store.open(path))(truth.users).ages is None


def test_ids_may_be_tensors_arrays_or_strings_and_the_wrong_kind_is_refused(world, tmp_path):
    truth, path = world
    feature = SummaryFeature(Store.open(path))
    ids = truth.users[:9]
    for users in (ids, ids.tolist(), torch.from_numpy(ids)):
        truth.check(feature(users), np.arange(9), 1001)
    with pytest.raises(KeyKind):
        feature(["user-1"])
    strings = Truth(num_users=12, strings=True)
    strings.publish(strings.create(tmp_path / "s"), "r", 1000)
    at = np.array([0, 3, 3, 11])
    for on_device in (False, True):
        found = SummaryFeature(Store.open(tmp_path / "s"), on_device=on_device)(
            [strings.users[i] for i in at]
        )
        strings.check(found, at, 1000)


@ON_DEVICE
def test_a_refresh_moves_the_module_between_batches_and_other_groups_are_refused(tmp_path, on_device):
    truth = Truth(num_users=20)
    store = truth.create(tmp_path / "s")
    truth.publish(store, "a", 1000)
    feature = SummaryFeature(Store.open(tmp_path / "s"), on_device=on_device)
    fetched = feature.fetch(truth.users)
    truth.publish(store, "b", 2000)
    truth.check(feature(fetched), np.arange(20), 1000)
    truth.check(feature(truth.users), np.arange(20), 1000)
    feature.refresh()
    truth.check(feature(truth.users), np.arange(20), 2000)
    # Same bytes per record, another meaning.
    other = RecordSchema((Group("seeds", 2, 16, "bfloat16"), *truth.schema.groups[1:]))
    receipts = []
    for shard in range(2):
        with ShardWriter(store.stage("c"), shard, 2, other, fingerprint=FINGERPRINT) as writer:
            receipts.append(writer.finish())
    store.publish(
        store.stage("c"), receipts, Publication(fingerprint=FINGERPRINT, watermark_ms=1, expected=0)
    )
    feature.refresh()
    with pytest.raises(SchemaError, match="SummaryFeature"):
        feature(truth.users)


@ON_DEVICE
def test_copies_and_pickles_of_the_module_read_the_same(world, on_device):
    truth, path = world
    feature = SummaryFeature(Store.open(path), missing="learned", on_device=on_device)
    feature(truth.users)
    saved = io.BytesIO()
    torch.save(feature.state_dict(), saved)
    for other in (copy.deepcopy(feature), pickle.loads(pickle.dumps(feature))):
        truth.check(other.eval().requires_grad_(False)(truth.users), np.arange(60), 1001)


class Batches(Dataset):
    """Batches of user indices for loader workers; with ``path``, the worker reads the store itself."""

    def __init__(self, truth, store=None):
        self.truth, self.store = truth, store

    def __len__(self):
        return 6

    def __getitem__(self, number):
        at = np.random.default_rng(number).integers(0, self.truth.num_users, 17)
        users = self.truth.users[at]
        out = {"at": torch.from_numpy(at), "user": torch.from_numpy(users)}
        if self.store is not None:
            found = self.store.lookup(users)
            self.truth.check(found, at, 1001)
            out["tokens"] = torch.from_numpy(found.tokens)
        return out


@pytest.mark.parametrize(
    "on_device,workers,method",
    [(False, 0, None), (True, 0, None), (False, 2, "fork"), (True, 2, "fork"), (True, 1, "spawn")],
)
def test_looking_ahead_of_a_loader_gives_every_batch_its_own_tokens(world, on_device, workers, method):
    truth, path = world
    with Store.open(path) as store:
        reads = Batches(truth, store) if on_device else Batches(truth)
        loader = DataLoader(reads, batch_size=None, num_workers=workers, multiprocessing_context=method)
        ahead = SummaryLoader(loader, SummaryFeature(store, on_device=on_device), "user", depth=3)
        assert len(ahead) == 6
        for _ in range(2 if workers == 0 else 1):
            numbers = 0
            for batch, found in ahead:
                truth.check(found, batch["at"].numpy(), 1001)
                if on_device:
                    torch.testing.assert_close(batch["tokens"], found.tokens, rtol=0, atol=0)
                numbers += 1
            assert numbers == 6


def test_leaving_a_loader_early_or_by_an_error_ends_its_thread(world):
    truth, path = world
    feature = SummaryFeature(Store.open(path))
    batches = [{"user": truth.users[:4]}] * 20 + [{"user": ["no such kind"]}]
    with_function = SummaryLoader(batches[:20], feature, lambda b: b["user"])
    for _ in with_function:
        break
    with pytest.raises(KeyKind):
        for _ in SummaryLoader(batches, feature, "user"):
            pass
    assert not [t for t in threading.enumerate() if t.name == "look-ahead"]
