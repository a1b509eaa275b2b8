"""Threads that share pieces of one task."""

from __future__ import annotations

import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from cache_store.native.crew import Crew


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("count", [0, 1, 2, 100])
def test_every_piece_is_done_once(threads, count):
    done = []
    Crew(threads).each(count, done.append)
    assert sorted(done) == list(range(count))


def test_callers_do_not_wait_for_a_helper_that_others_keep_busy():
    crew, release, begun = Crew(2), threading.Event(), threading.Semaphore(0)

    def stuck(_: int) -> None:
        begun.release()
        release.wait()

    with ThreadPoolExecutor(1) as other:
        waiting = other.submit(crew.each, 2, stuck)
        begun.acquire()
        begun.acquire()  # the other caller and the helper are both inside
        done = []
        crew.each(10, done.append)
        assert sorted(done) == list(range(10))
        release.set()
        waiting.result()


def test_an_error_in_a_piece_reaches_the_caller_after_all_threads_have_stopped():
    inside = []

    def work(i: int) -> None:
        inside.append(i)
        try:
            if i == 3:
                raise KeyError(i)
        finally:
            inside.remove(i)

    with pytest.raises(KeyError):
        Crew(3).each(50, work)
    assert not inside


def test_a_crew_goes_through_pickle():
    done = []
    pickle.loads(pickle.dumps(Crew(2))).each(5, done.append)
    assert sorted(done) == list(range(5))


def test_a_forked_child_hires_helpers_of_its_own():
    crew = Crew(2)
    crew.each(2, lambda i: None)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            together = threading.Barrier(2, timeout=30)  # passed only by two threads at once
            crew.each(2, lambda i: together.wait())
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
