"""The compiled part, ``native.c``, where it could be built; without it NumPy does the same work.

Both ways give the same bytes and the same verdicts; only the time differs (``vista bench lookup``). ``library`` is None
where there is no compiled part; :func:`kernel` says which way this process takes.
"""

from __future__ import annotations

import ctypes
import sysconfig
from pathlib import Path

import numpy as np

from cache_store.native.crew import Crew


def _at(array: np.ndarray) -> int:
    """Address of an array's first byte; four times as fast as ``array.ctypes.data`` where it is writable."""
    try:
        return ctypes.addressof(ctypes.c_char.from_buffer(array))
    except (TypeError, ValueError, BufferError):  # read-only, empty or strided
        return array.ctypes.data


class Library:
    """The functions of a built ``native.c``. The interpreter is free while they run; they keep nothing.

    Args:
        file: what the compiler made.

    Raises:
        OSError: not there, or of another machine. AttributeError: built from sources of another version.
    """

    def __init__(self, file: Path) -> None:
        # The names carry the version of the arguments: a build of older sources is not called with new ones.
        built = ctypes.CDLL(str(file))
        self._copy_rows, self._find = built.vista_copy_rows_2, built.vista_find_2
        self._hash, self._decode = built.vista_hash_1, built.vista_decode_2
        address, number, flag = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
        self._copy_rows.argtypes = [
            address, address, number, address, number, number, number, address, flag, address, ctypes.c_uint64, flag,
            address, address,
        ]  # fmt: skip
        self._find.argtypes = [address, address, number, *[address] * 3, number, number, address]
        self._hash.argtypes = [address, number, address]
        self._decode.argtypes = [flag, address, *[number] * 4, *[address] * 3, number, flag]
        self._hash.restype = None
        self._find.restype = self._copy_rows.restype = self._decode.restype = flag

    def copy_rows(
        self,
        data: int,
        size: int,
        place: np.ndarray,
        out: np.ndarray,
        streamed: bool,
        payload: int,
        keys: np.ndarray,
        model: int,
        verify: bool,
        head: np.ndarray,
        good: np.ndarray,
        crew: Crew | None,
    ) -> None:
        """Copy the rows around records and judge these; see ``Generation.gather``.

        Args:
            data, size: address and bytes of the mapped range.
            place: int64 [n], byte of each record; its row begins 16 bytes before, at a multiple of 4,096. Rows that
                do not lie in the range come out as zeros.
            out: uint8 [n, row], whole pages.
            streamed: write past the processor's caches.
            payload: bytes of a record behind its header, more than 240.
            keys: uint64 [n] and model: what the headers should say.
            verify: hash the payload, too.
            head: HEADER [n], filled.
            good: bool [n], filled.
            crew: threads that share the work; None for the calling thread alone.
        """
        n, row = out.shape
        if not (
            len(place) == len(keys) == len(head) == len(good) == n
            and place.itemsize == keys.itemsize == 8
            and head.itemsize == 64
            and out.itemsize == good.itemsize == 1
            and place.flags.c_contiguous
            and keys.flags.c_contiguous
            and head.flags.c_contiguous
            and good.flags.c_contiguous
            and out.flags.carray
            and row % 4096 == 0
            and 240 < payload <= row - 80
        ):
            raise ValueError(
                "copy_rows: expected equally many contiguous places, keys, headers and whole pages"
            )
        taken = ctypes.c_int64(0)
        arguments = (
            ctypes.addressof(taken), data, size, _at(place), n, row, payload, _at(out), streamed, _at(keys), model,
            verify, _at(head), _at(good),
        )  # fmt: skip
        if crew is None:
            self._copy_rows(*arguments)
        else:
            crew.each(crew.threads, lambda _: self._copy_rows(*arguments))

    def find(
        self,
        words: int,
        shards: int,
        count: int,
        shard: np.ndarray,
        hashes: np.ndarray,
        second: np.ndarray | None,
        most: int,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """Search the indexes of a generation; see ``index.IndexSet.find``.

        Args:
            words: address of uint64, all indexes.
            shards: address of int64 [count, 7], of each shard:
                directory, shift, entries, hash, second hash, check, offset.
            most: entries that one prefix can have.

        Returns:
            As ``IndexSet.find``; None if a prefix has more entries.
        """
        n = len(hashes)
        if not len(shard) == len(hashes if second is None else second) == n or hashes.itemsize != 8:
            raise ValueError("find: expected a shard and 64-bit hashes of each user")
        found = np.empty((3, n), np.int64)
        shard, hashes = np.ascontiguousarray(shard, np.int64), np.ascontiguousarray(hashes)
        second = None if second is None else np.ascontiguousarray(second)
        altered = self._find(
            words, shards, count, _at(shard), _at(hashes), None if second is None else _at(second), n, most, _at(found),
        )  # fmt: skip
        return None if altered else (found[0], found[1].view(np.uint64), found[2])

    def hash(self, ids: np.ndarray) -> np.ndarray:
        """XXH64 of the keys of int64 ids, uint64 [n]; see ``keys.hash_of``."""
        ids = np.ascontiguousarray(ids, np.int64)
        out = np.empty(len(ids), np.uint64)
        self._hash(_at(ids), len(ids), _at(out))
        return out

    def decode(
        self,
        codec: str,
        codes: np.ndarray,
        scale: np.ndarray | None,
        table: np.ndarray,
        out: np.ndarray,
        streamed: bool,
    ) -> None:
        """Tokens of a group, as ``Codec.decode`` gives them.

        Args:
            codec: one of :data:`CODECS`.
            codes: [n, T, W] as stored, fields of records that lie at equal distances.
            scale: float32 [n, T] of the same records for int8.
            table: float32 [256], what each code of log8 stands for.
            out: float32 [n, T, W], each [T, W] contiguous.
            streamed: write past the processor's caches.
        """
        n, tokens, width = out.shape
        size = 2 if codec == "float16" else 1
        _require(codes.shape == out.shape and out.dtype == np.float32 and out.flags.writeable, "decode: out")
        _require(
            table.dtype == np.float32 and table.shape == (256,) and table.flags.c_contiguous, "decode: table"
        )
        _require(out[:1].flags.c_contiguous and codes[:1].flags.c_contiguous, "decode: contiguous tokens")
        _require(codes.dtype.itemsize == size and (scale is None) == (codec != "int8"), "decode: codes")
        if scale is None:
            tokens, width = 1, tokens * width
        else:
            whole = scale.shape == (n, tokens) and scale.dtype == np.float32 and scale[:1].flags.c_contiguous
            _require(
                whole and (n < 2 or scale.strides[0] == codes.strides[0]),
                "decode: scales of the same records",
            )
        if not n:
            return
        refused = self._decode(
            CODECS.index(codec), codes.ctypes.data, codes.strides[0], n, tokens, width,
            None if scale is None else scale.ctypes.data, _at(table), out.ctypes.data, out.strides[0] // 4, streamed,
        )  # fmt: skip
        _require(not refused, "decode: sizes of a group")


def _require(holds: bool, what: str) -> None:
    """Ask what the compiled part relies on; not by ``assert``, which ``python -O`` takes away."""
    if not holds:
        raise ValueError(f"{what}: expected otherwise; this is a fault of the caller")


CODECS = ("float16", "int8", "log8")
"""Those that the compiled part decodes, in the order of its enumeration."""


def _load() -> Library | None:
    file = Path(__file__).with_name("_native" + (sysconfig.get_config_var("EXT_SUFFIX") or ".so"))
    try:
        return Library(file)
    except (OSError, AttributeError):
        return None


library: Library | None = _load()


def kernel() -> str:
    """``native`` or ``numpy``: what finds users and copies rows in this process."""
    return "numpy" if library is None else "native"
