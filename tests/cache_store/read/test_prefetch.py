"""Working ahead changes when work is done, never what comes out."""

from __future__ import annotations

import gc
import multiprocessing
import pickle
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_store.read.prefetch import LookAhead


def square(x):
    return x * x


def threads():
    return [t for t in threading.enumerate() if t.name == "look-ahead"]


@given(st.lists(st.integers(), max_size=20), st.integers(1, 5))
def test_a_pass_gives_every_batch_with_its_result_in_order(values, depth):
    ahead = LookAhead(values, square, depth)
    assert list(ahead) == [(v, v * v) for v in values]
    assert list(ahead) == [(v, v * v) for v in values]
    assert len(ahead) == len(values)
    assert not threads()


@given(st.integers(1, 4), st.integers(0, 6))
def test_no_more_results_wait_than_the_depth_allows(depth, taken):
    begun, gate = [], threading.Event()

    def source():
        for i in range(50):
            begun.append(i)
            if len(begun) == taken + depth:
                gate.set()
            yield i

    with LookAhead(source(), square, depth) as ahead:
        stream = iter(ahead)
        for _ in range(taken):
            next(stream)
        assert gate.wait(60)
        assert len(begun) == taken + depth  # all that it has permits for
    assert len(begun) <= taken + depth + 1
    assert not threads()


@pytest.mark.parametrize("where", ["source", "work"])
@given(at=st.integers(0, 6), depth=st.integers(1, 4))
def test_an_error_comes_where_its_result_would_have_come_and_ends_the_pass(where, at, depth):
    def source():
        for i in range(7):
            if where == "source" and i == at:
                raise KeyError(i)
            yield i

    def work(i):
        if where == "work" and i == at:
            raise KeyError(i)
        return i

    got, stream = [], iter(LookAhead(source(), work, depth))
    with pytest.raises(KeyError, match=str(at)):
        for pair in stream:
            got.append(pair)
    assert got == [(i, i) for i in range(at)]
    assert list(stream) == []
    assert not threads()


def test_breaking_off_closes_the_source_and_ends_the_thread():
    closed = threading.Event()

    def source():
        try:
            yield from range(1000)
        finally:
            closed.set()

    with LookAhead(source(), square, 3) as ahead:
        for batch, _ in ahead:
            if batch == 5:
                break
    assert closed.is_set()
    assert not threads()


def test_forgetting_a_pass_ends_its_thread():
    stream = iter(LookAhead(iter(range(1000)), square, 2))
    assert next(stream) == (0, 0)
    (thread,) = threads()
    del stream
    gc.collect()
    thread.join(60)
    assert not thread.is_alive()


def _sum_ahead(ahead, out):
    out.put(sum(r for _, r in ahead))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_an_unstarted_look_ahead_works_in_a_forked_and_in_a_spawned_process(method):
    context = multiprocessing.get_context(method)
    out = context.SimpleQueue()
    ahead = LookAhead(range(10), square, 2)
    list(ahead)
    child = context.Process(target=_sum_ahead, args=(ahead, out))
    child.start()
    assert out.get() == 285
    child.join()
    assert list(pickle.loads(pickle.dumps(ahead))) == list(ahead)


def test_depth_below_one_is_refused():
    with pytest.raises(ValueError, match="depth"):
        LookAhead([], square, 0)
