"""The compiled part gives what NumPy gives, and touches no byte outside what it was given."""

from __future__ import annotations

import ctypes.util
import mmap
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from cache_store.format import index
from cache_store.format.quantize import Codec
from cache_store.format.record import HEADER, header_check
from cache_store.native import library as native
from cache_store.native.crew import Crew

needs_library = pytest.mark.skipif(native.library is None, reason="the compiled part was not built here")
PAGE, MODEL = 4096, 77
OUTSIDE = [-(1 << 63), -PAGE, -2, -1, 0, 15, 17, PAGE, PAGE + 15, 40 * PAGE + 16, (1 << 63) - 1]
"""Places at which no row of 40 pages begins."""


def test_a_machine_with_a_compiler_has_the_compiled_part():
    if not (shutil.which("cc") or shutil.which("gcc")):
        pytest.skip("no C compiler")
    assert native.kernel() == "native"


def test_what_is_no_library_of_this_version_is_not_used(tmp_path):
    with pytest.raises(OSError):
        native.Library(tmp_path / "absent.so")
    (tmp_path / "text.so").write_text("no library")
    with pytest.raises(OSError):
        native.Library(tmp_path / "text.so")
    with pytest.raises(AttributeError):
        native.Library(Path(ctypes.util.find_library("c") or "libc.so.6"))


def _file(pages: int, payload: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bytes of 40 pages with as many records as fit, their keys, and their places."""
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 256, 40 * PAGE, np.uint8)
    place = np.arange(0, 40 - pages + 1, pages) * PAGE + 16
    keys = rng.integers(0, 1 << 63, len(place), np.uint64)
    for at, key in zip(place.tolist(), keys, strict=True):
        header = data[at : at + 64].view(HEADER)
        header["key_hash"], header["model"], header["format"] = key, MODEL, 1
        header["flags"] = header["zero"] = 0
        header["payload_hash"] = xxhash.xxh3_64_intdigest(data[at + 64 : at + 64 + payload].tobytes())
        header["check"] = header_check(header)
    return data, keys, place


def _copy(data, place, keys, pages, payload, verify=True, streamed=False, crew=None, shift=0):
    room = np.full(len(place) * pages * PAGE + 64, 9, np.uint8)
    first = (-room.ctypes.data) % 16 + shift
    out = room[first : first + len(place) * pages * PAGE].reshape(len(place), pages * PAGE)
    head, good = np.ones(len(place), HEADER), np.ones(len(place), bool)
    native.library.copy_rows(
        data.ctypes.data, len(data), place, out, streamed, payload, keys, MODEL, verify, head, good, crew
    )  # fmt: skip
    assert (room[:first] == 9).all() and (room[first + out.size :] == 9).all()
    return out, head, good


@needs_library
@given(
    pages=st.integers(1, 3), missing=st.integers(0, PAGE - 400), seed=st.integers(0, 99), streamed=st.booleans(),
    shift=st.sampled_from([0, 1, 8]), threads=st.sampled_from([None, 1, 3]),
)  # fmt: skip
def test_rows_of_any_size_are_copied_and_hashed_as_xxhash_does(
    pages, missing, seed, streamed, shift, threads
):
    payload = pages * PAGE - 80 - missing
    data, keys, place = _file(pages, payload, seed)
    crew = None if threads is None else Crew(threads)
    out, head, good = _copy(data, place, keys, pages, payload, True, streamed, crew, shift)
    rows = np.stack([data[at - 16 : at - 16 + pages * PAGE] for at in place.tolist()])
    assert (out == rows).all() and (head.view(np.uint8).reshape(-1, 64) == rows[:, 16:80]).all()
    assert good.all()


@needs_library
@pytest.mark.parametrize("payload", [241, 255, 256, 257, 1024, 1088, 1089, 2048, 4016])
@pytest.mark.parametrize("streamed", [False, True])
def test_one_flipped_bit_anywhere_in_a_record_shows(payload, streamed):
    data, keys, place = _file(1, payload, payload)
    at = int(place[5])
    for byte in (*range(64), 64, 64 + payload // 2, 64 + payload - 65, 64 + payload - 1):
        data[at + byte] ^= 16
        good = _copy(data, place, keys, 1, payload, True, streamed)[2]
        assert not good[5] and good.sum() == len(place) - 1, byte
        data[at + byte] ^= 16
    assert _copy(data, place, keys, 1, payload, True, streamed)[2].all()


@needs_library
def test_without_verification_a_record_of_another_user_model_or_kind_still_shows():
    data, keys, place = _file(1, 1000, 0)
    for row, field in enumerate(["key_hash", "model", "format", "flags", "zero"]):
        data[place[row] : place[row] + 64].view(HEADER)[field] ^= 1
    good = _copy(data, place, keys, 1, 1000, verify=False)[2]
    assert good.tolist() == [False] * 5 + [True] * (len(place) - 5)


@contextmanager
def _guarded(content: np.ndarray) -> Iterator[np.ndarray]:
    """A copy of an array that ends where a page begins that nobody may read; one like it lies before its first page."""
    size = content.nbytes + -content.nbytes % PAGE
    libc, memory = ctypes.CDLL(None, use_errno=True), mmap.mmap(-1, size + 2 * PAGE)
    whole = np.frombuffer(memory, np.uint8)
    fences = [ctypes.c_void_p(whole.ctypes.data + at) for at in (0, PAGE + size)]
    view = whole[PAGE + size - content.nbytes : PAGE + size].view(content.dtype)
    view[:] = content
    assert not any(libc.mprotect(at, PAGE, 0) for at in fences)
    yield view
    assert not any(libc.mprotect(at, PAGE, mmap.PROT_READ | mmap.PROT_WRITE) for at in fences)


@needs_library
@pytest.mark.parametrize("verify", [False, True])
def test_places_outside_the_range_are_zeros_and_no_byte_out_there_is_read(verify):
    whole, keys, _ = _file(40, 40 * PAGE - 80, 3)
    asked = np.array([*OUTSIDE, 16, *OUTSIDE], np.int64)
    with _guarded(whole) as data:
        out, head, good = _copy(data, asked, np.repeat(keys, len(asked)), 40, 40 * PAGE - 80, verify, True)
        inside = asked == 16
        assert (good == inside).all() and (out[inside] == data).all()
        assert not out[~inside].any() and not head[~inside].view(np.uint8).any()


@needs_library
@given(st.integers(0, 400), st.booleans(), st.integers(0, 2**32 - 1), st.integers(0, 6))
def test_an_index_altered_in_any_way_is_searched_as_by_numpy_and_not_outside_itself(n, text, seed, flips):
    rng = np.random.default_rng(seed)
    hashes, second = rng.integers(0, 1 << 64, (2, n), np.uint64, endpoint=False)
    words = index.build(hashes, second if text else None, hashes ^ second, np.arange(n) + 16, None, 99)
    shape = index.shape(words, "i")
    for at in rng.integers(index.HEADER_WORDS, len(words), flips):
        words[at] = rng.choice(np.array([0, 1, n, n + 1, 1 << 40, (1 << 63) + 5, (1 << 64) - 1], np.uint64))
    asked = np.concatenate([hashes, rng.integers(0, 1 << 64, 20, np.uint64, endpoint=False)])
    others = np.concatenate([second, asked[n:]]) if text else None
    shard = np.zeros(len(asked), np.int64)
    with _guarded(words) as held:
        table = index.IndexSet(held, [0], [shape])
        entry, check, offset = native.library.find(*table._addresses, shard, asked, others, 1000)
        numpy_entry, numpy_check, numpy_offset = table._find(shard, asked, others)
        known = entry >= 0
        assert (entry == numpy_entry).all()
        assert (check == numpy_check)[known].all() and (offset == numpy_offset)[known].all()
        assert n == 0 or native.library.find(*table._addresses, shard, asked, others, 0) is None or flips


@needs_library
@given(
    codec=st.sampled_from(native.CODECS), n=st.integers(0, 4), tokens=st.integers(1, 5), width=st.integers(1, 67),
    before=st.integers(0, 3), streamed=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_bytes_decode_as_by_numpy_and_no_other_token_is_touched(
    codec, n, tokens, width, before, streamed, seed
):
    rng, kind = np.random.default_rng(seed), Codec(codec, tokens, width)
    size = np.dtype(kind.fields).itemsize
    rows = rng.integers(0, 256, (n, size + 8), np.uint8)  # records at a distance of more than their size
    record = rows[:, 8:].view(kind.fields)[:, 0]
    found = np.full((n, before + tokens + 1, width), 9, np.float32)
    expected = found.copy()
    part = slice(before, before + tokens)
    kind.decode(record, found[:, part], streamed)
    with pytest.MonkeyPatch.context() as patch, np.errstate(all="ignore"):
        patch.setattr(native, "library", None)
        kind.decode(record, expected[:, part])
    assert np.array_equal(found, expected, equal_nan=True)
