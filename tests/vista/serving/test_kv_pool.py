"""The pool across real processes: law 6, and that a reused or foreign slot never serves."""

from __future__ import annotations

import dataclasses
import fcntl
import multiprocessing
import os
import pickle

import numpy as np
import pytest
import torch

from tests.vista.serving.test_serving import NOW, Stage2
from vista.data.events import Events
from vista.errors import DataError
from vista.serving.kv_pool import KVPool, PoolError, Ticket
from vista.stage2.context_kv import ContextKV

MODEL = Stage2().eval()


def context(users, recent=3, generation="00000001", fingerprint="m1") -> ContextKV:
    rng = np.random.default_rng(int(users[0]) if not isinstance(users[0], str) else 0)
    tokens = {
        "seeds": torch.from_numpy(rng.normal(size=(len(users), 5, 16)).astype(np.float32)),
        "slots": torch.from_numpy(rng.random((len(users), MODEL.slots.tokens, 16)).astype(np.float32)),
    }
    events = Events.of(
        [recent] * len(users),
        item=rng.integers(0, 50, recent * len(users)),
        time=np.tile(NOW - np.arange(recent)[::-1], len(users)),
    )
    with torch.no_grad():
        return MODEL.ranker.context(
            tokens,
            None,
            events,
            np.full(len(users), NOW),
            np.full(len(users), NOW),
            owner=users,
            generation=generation,
            fingerprint=fingerprint,
        )


@pytest.fixture
def pool(tmp_path):
    pool = KVPool.create(tmp_path / "pool", MODEL, 4)
    yield pool
    pool.close()


def same(a: ContextKV, b: ContextKV) -> bool:
    return all(torch.equal(x, b.tensors()[name]) for name, x in a.tensors().items())


def _rank_elsewhere(path, pipe):
    torch.set_num_threads(1)
    pool = KVPool.attach(path)
    while (work := pipe.recv()) is not None:
        tickets, owners, items, offsets = work

        def compute(missed, owners=owners):
            return ContextKV.concat([context(owners[m : m + 1]) for m in missed])

        ctx = pool.get_or_compute(tickets, owners, compute, generation="00000001", fingerprint="m1")
        with torch.no_grad():
            pipe.send((MODEL.ranker.rank(ctx, items, offsets).numpy(), dict(pool.counts)))


def test_another_process_ranks_over_the_pool_as_this_one_would_and_recomputes_what_is_gone(pool):
    spawn = multiprocessing.get_context("spawn")
    mine, theirs = spawn.Pipe()
    process = spawn.Process(target=_rank_elsewhere, args=(pool.path, theirs))
    process.start()
    users = np.array([7, 8, 9])
    contexts = [context(users[u : u + 1]) for u in range(3)]
    items, offsets = np.arange(9), np.array([0, 2, 5, 9])
    with torch.no_grad():
        expected = MODEL.ranker.rank(ContextKV.concat(contexts), items, offsets).numpy()
    tickets = [pool.put(ctx)[0] for ctx in contexts]
    mine.send((tickets, users, items, offsets))
    logits, counts = mine.recv()
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)
    assert counts == {"hit": 3}
    for other in range(3):  # the fourth slot, then over the first two
        pool.put(context(np.array([100 + other])))
    mine.send((tickets, users, items, offsets))
    logits, counts = mine.recv()
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    assert counts == {"hit": 4, "overwritten": 2, "recomputed": 2}
    mine.send(None)
    process.join()
    assert process.exitcode == 0 and pool.path.exists()


def _overwrite(path, pipe):
    torch.set_num_threads(1)
    pool = KVPool.create(path, MODEL, 2)
    base = context(np.array([0]))
    fill = {n: torch.empty_like(x) for n, x in base.tensors().items()}
    pipe.send(None)
    number = 0
    while not pipe.poll():
        number += 1
        for x in fill.values():
            x.fill_(number % 2 if x.dtype == torch.bool else number)
        pool.put(ContextKV(**fill, owner=np.array([7]), generation=str(number)))
    pipe.send(number)


def test_a_slot_that_is_rewritten_while_it_is_read_is_a_miss_and_never_a_mixture(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    mine, theirs = spawn.Pipe()
    process = spawn.Process(target=_overwrite, args=(tmp_path / "pool", theirs))
    process.start()
    mine.recv()
    pool = KVPool.attach(tmp_path / "pool")
    reads = 0
    while reads < 4_000 or (pool.counts["hit"] < 20 and reads < 400_000):
        reads += 1
        ctx = pool.get(Ticket(0, int(pool._headers[0]["number"])), 7)
        if ctx is not None:
            values = {float(v) for x in ctx.tensors().values() if x.dtype != torch.bool for v in x.unique()}
            assert values == {float(ctx.generation)}
    mine.send(None)
    mine.recv()
    process.join()
    assert process.exitcode == 0
    assert pool.counts["hit"] >= 20 and sum(pool.counts.values()) == reads


def test_what_is_read_is_what_was_put_whatever_the_length(pool):
    for recent in (0, 3, 6):
        ctx = context(np.array([1, 2]), recent)
        for u, ticket in enumerate(pool.put(ctx)):
            assert same(pool.get(ticket, int(ctx.owner[u])), ctx[u])


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 2**-11), (torch.bfloat16, 2**-8)])
def test_a_half_precision_pool_rounds_keys_and_values_within_its_bound_and_nothing_else(
    tmp_path, pool, dtype, bound
):
    half = KVPool.create(tmp_path / "half", MODEL, 2, dtype=dtype)
    ctx = context(np.array([1]))
    (ticket,) = half.put(ctx)
    found = KVPool.attach(half.path).get(ticket, 1)
    for name, x in ctx.tensors().items():
        rounded = name in ("keys", "values")
        assert torch.equal(found.tensors()[name], x.to(dtype).float() if rounded else x)
        if rounded:  # and float16's smallest steps
            assert ((found.tensors()[name] - x).abs() <= bound * x.abs() + 2**-25).all()
    saved = pool.layout["slot_bytes"] - half.layout["slot_bytes"]
    assert saved == 2 * (2 * 12 * 16) * 2  # keys and values, layers x tokens x width, two bytes each
    with torch.no_grad():
        items, offsets = np.arange(9), np.array([0, 9])
        logits = [MODEL.ranker.rank(c, items, offsets).numpy() for c in (ctx, found)]
    np.testing.assert_allclose(*logits, atol=0.02)
    half.close()


def test_what_float16_cannot_hold_is_refused_and_leaves_the_cells_as_they_were(tmp_path):
    half = KVPool.create(tmp_path / "half", MODEL, 2, dtype=torch.float16)
    ctx = context(np.array([1]))
    (ticket,) = half.put(ctx)
    large = dataclasses.replace(ctx, keys=ctx.keys * 1e7)
    with pytest.raises(DataError, match=r"at most 65504.*dtype=torch\.bfloat16"):
        half.put(large)
    assert half.get(ticket, 1) is not None
    wide = KVPool.create(tmp_path / "wide", MODEL, 2, dtype=torch.bfloat16)
    (ticket,) = wide.put(large)
    assert wide.get(ticket, 1).keys.isfinite().all()
    for p in (half, wide):
        p.close()


def test_text_users_keep_trailing_zeros_and_length(pool):
    users = ["a", "a\0", "é" * 200]
    tickets = pool.put(context(users))
    for user, ticket in zip(users, tickets, strict=True):
        for other in users:
            assert (pool.get(ticket, other) is not None) is (user == other)
    assert pool.get(tickets[0], 7) is None and pool.counts["owner"] == 7


def test_another_users_generations_or_models_context_never_serves(pool):
    (ticket,) = pool.put(context(np.array([1])))
    assert pool.get(ticket, 2) is None
    assert pool.get(ticket, 1, generation="00000002") is None
    assert pool.get(ticket, 1, fingerprint="m2") is None
    assert pool.get(ticket, 1, generation="00000001", fingerprint="m1") is not None
    assert pool.counts == {"owner": 1, "generation": 1, "fingerprint": 1, "hit": 1}


def test_slots_are_reused_in_turn_and_an_old_ticket_is_a_miss(pool):
    tickets = [pool.put(context(np.array([u])))[0] for u in range(6)]
    assert [t.cell for t in tickets] == [0, 1, 2, 3, 0, 1]
    assert [pool.get(t, u) is not None for u, t in enumerate(tickets)] == [
        False,
        False,
        True,
        True,
        True,
        True,
    ]
    assert pool.get(Ticket(99, 1), 0) is None
    assert pool.counts == {"overwritten": 3, "hit": 4}


def test_a_reader_goes_on_with_a_pool_made_anew_which_the_old_writers_end_leaves_alone(tmp_path):
    old = KVPool.create(tmp_path / "pool", MODEL, 2)
    old.put(context(np.array([1]), 2))
    reader = KVPool.attach(old.path)
    new = KVPool.create(tmp_path / "pool", MODEL, 2)  # the retrieving process was started again
    (ticket,) = new.put(context(np.array([1]), 3))
    old.close()
    assert new.path.exists()
    assert reader.get(ticket, 1) is not None and reader.counts == {"hit": 1, "reattached": 1}
    assert KVPool.attach(new.path).get(ticket, 1) is not None
    new.close()
    assert not new.path.exists()


def test_what_was_killed_while_it_made_a_pool_gives_its_memory_back_and_whoever_lives_keeps_his(tmp_path):
    names = [f".pool.{k:016x}" for k in range(4)] + [".pool.notes", ".other.0123456789abcdef"]
    dead, empty, new, held, *others = (tmp_path / name for name in names)
    for path in (dead, held, *others):
        path.write_bytes(b"x" * 4096)
    empty.touch()
    os.utime(empty, (0, 0))
    new.touch()
    for path in tmp_path.iterdir():
        path.chmod(0o600)
    with open(held) as maker:
        fcntl.flock(maker, fcntl.LOCK_SH)
        KVPool.create(tmp_path / "pool", MODEL, 2).close()
    assert set(tmp_path.iterdir()) == {new, held, *others}


def test_a_writer_that_died_in_the_middle_of_a_write_leaves_a_miss_until_the_slots_turn(pool):
    tickets = [pool.put(context(np.array([u])))[0] for u in range(4)]
    pool._headers[1]["sequence"] += np.uint64(1)  # as it is while the writer writes
    assert pool.get(tickets[1], 1) is None and pool.counts["torn"] == 1
    later = [pool.put(context(np.array([10 + u])))[0] for u in range(2)]
    assert pool.get(later[1], 11) is not None


def test_a_payload_that_does_not_add_up_is_a_miss(pool):
    (ticket,) = pool.put(context(np.array([1])))
    pool._payload[0, 100] += 1
    assert pool.get(ticket, 1) is None and pool.counts == {"torn": 1}


def test_mixed_hits_and_misses_come_back_in_the_users_order_with_their_own_lengths(pool):
    users = np.array([1, 2, 3])
    contexts = [context(users[u : u + 1], recent) for u, recent in enumerate((6, 0, 2))]
    tickets = [pool.put(contexts[0])[0], None, pool.put(contexts[2])[0]]
    joined = pool.get_or_compute(
        tickets, users, lambda missed: ContextKV.concat([contexts[m] for m in missed])
    )
    items, offsets = np.arange(9), np.array([0, 2, 5, 9])
    with torch.no_grad():
        whole = MODEL.ranker.rank(joined, items, offsets)
        for u in range(3):
            rows = slice(offsets[u], offsets[u + 1])
            alone = MODEL.ranker.rank(contexts[u], items[rows], [0, offsets[u + 1] - offsets[u]])
            torch.testing.assert_close(whole[rows], alone, rtol=1e-5, atol=1e-5)
    assert joined.owner.tolist() == [1, 2, 3] and pool.counts == {"hit": 2, "recomputed": 1}


def test_wrong_uses_are_refused(pool, tmp_path):
    with pytest.raises(DataError, match="larger `recent`"):
        pool.put(context(np.array([1]), 40))
    with pytest.raises(DataError, match="at most 4 users"):
        pool.put(context(np.arange(5)))
    with pytest.raises(DataError, match="only the process that created"):
        KVPool.attach(pool.path).put(context(np.array([1])))
    with pytest.raises(DataError, match="at least 1"):
        KVPool.create(tmp_path / "none", MODEL, 0)
    with pytest.raises(DataError, match="torch.float32, torch.float16, torch.bfloat16"):
        KVPool.create(tmp_path / "none", MODEL, 1, dtype=torch.float64)
    assert KVPool.create(tmp_path / "before", MODEL, slots=3).cells == 3  # as it was called until version 0.1
    with pytest.raises(PoolError, match="start that process first"):
        KVPool.attach(tmp_path / "absent")
    (tmp_path / "other").write_bytes(b"something else" * 400)
    with pytest.raises(PoolError, match="mode 600"):
        KVPool.attach(tmp_path / "other")
    (tmp_path / "other").chmod(0o600)
    with pytest.raises(PoolError, match="magic"):
        KVPool.attach(tmp_path / "other")
    for size in (24, 5_000, 8_000):  # a pool that was cut short
        (tmp_path / "cut").write_bytes(pool.path.read_bytes()[:size])
        (tmp_path / "cut").chmod(0o600)
        with pytest.raises(PoolError, match="cut short"):
            KVPool.attach(tmp_path / "cut")


class Planted:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_nothing_beside_a_pool_is_unpickled_whatever_its_layout_says(pool, tmp_path):
    data = pool.path.read_bytes()
    assert data.count(b'"device": "cpu"') == 1
    place, handle = tmp_path / "forged", tmp_path / "forged.cuda"
    place.write_bytes(data.replace(b'"device": "cpu"', b'"device":"cuda"'))
    handle.write_bytes(pickle.dumps(Planted(tmp_path / "ran")))
    for path in (place, handle):
        path.chmod(0o600)
    with pytest.raises(PoolError):
        KVPool.attach(place)
    assert not (tmp_path / "ran").exists()


def test_a_context_of_another_models_shapes_is_not_put(pool):
    ctx = context(np.array([1]))
    deeper = {n: torch.cat([x, x]) for n, x in ctx.tensors().items() if n in ("keys", "values")}
    with pytest.raises(DataError, match="keys: expected"):
        pool.put(dataclasses.replace(ctx, **deeper))
    with pytest.raises(DataError, match="query: expected"):
        pool.put(dataclasses.replace(ctx, query=ctx.query[:, :1]))


def test_what_was_computed_for_other_users_does_not_serve(pool):
    both = context(np.array([1, 2]))
    assert pool.get_or_compute([None, None], np.array([1, 2]), both.select).owner.tolist() == [1, 2]
    for wrong in (both.select([1, 0]), both[0]):
        with pytest.raises(DataError, match="expected contexts of users"):
            pool.get_or_compute([None, None], np.array([1, 2]), lambda missed, ctx=wrong: ctx)


def test_no_users_are_no_slots_and_an_empty_context(pool):
    nobody = context(np.array([1])).select(np.zeros(0, np.int64))
    assert pool.put(nobody) == []
    assert pool.get_or_compute([], np.zeros(0, np.int64), lambda missed: nobody).users == 0


def test_tickets_are_plain_numbers_that_travel():
    assert pickle.loads(pickle.dumps(Ticket(1, 2))) == Ticket(1, 2)


def _read_on_gpu(path, pipe):
    pool = KVPool.attach(path)
    ctx = pool.get(pipe.recv(), 1)
    pipe.send(None if ctx is None else {n: x.cpu().numpy() for n, x in ctx.tensors().items()})
    pipe.recv()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA IPC needs a GPU")
def test_a_pool_in_gpu_memory_is_read_by_another_process(tmp_path):
    pool = KVPool.create(tmp_path / "pool", MODEL, 2, device="cuda")
    ctx = context(np.array([1]))
    spawn = multiprocessing.get_context("spawn")
    mine, theirs = spawn.Pipe()
    process = spawn.Process(target=_read_on_gpu, args=(pool.path, theirs))
    process.start()
    theirs.close()  # so that a child that dies is an end of file here
    mine.send(pool.put(ctx.to("cuda"))[0])
    assert mine.poll(120)
    found = mine.recv()
    mine.send(None)
    process.join(60)
    assert found is not None
    for name, x in ctx.tensors().items():
        np.testing.assert_array_equal(found[name], x.numpy())
    pool.close()
