"""Items in a FAISS index: one call gives ids and vectors, and the vectors are the ranking candidates.

On disk, built under a temporary name; the last step gives it its name, or exchanges it with the one that has it::

    INDEX/
      index.faiss   the FAISS index over item vectors (row r is item items[r])
      items.npy     int64 [M], item id of every row
      index.json    format, kind, fingerprint of the model that made the vectors, catalogue, width, count, options,
                    seal

The seal is a BLAKE2b of the facts and of both other files, keyed with the model's fingerprint: FAISS reads what it is
given without asking, so nothing is given to it that this bundle's index was not. It tells a wrong or altered file, not
a forger who knows the fingerprint: take indexes only from whom you take bundles.

Vectors are ``ItemEncoder.vector``: L2-normalised, so inner product is cosine. What the index returns goes to
``Ranker.rank(..., vectors=...)`` unchanged; nothing is embedded twice (UniPinRec, arXiv 2606.00422, serving).

Kinds, with when to take which:

=======  ======================================================================  =======================
exact    every vector is compared; up to about a million items on a CPU            recall 1
hnsw     graph; millions of items and few candidates; 0.3 to 0.5 KB per item more   by ``search``
ivf      inverted lists; fast to build and small; loses the most                    by ``search``
=======  ======================================================================  =======================

:meth:`ItemIndex.recall_vs_exact` tells the recall of an index on given queries.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import hashlib
import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import faiss
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vista.data.events import whole
from vista.errors import DataError, FingerprintMismatch, VistaError
from vista.serving.forked import settle
from vista.small_text import building, small_json

if TYPE_CHECKING:
    from vista.model import VistaModel

FORMAT = "vista-index 2"
KINDS = ("exact", "hnsw", "ivf")
FILES = ("index.faiss", "items.npy", "index.json")
_AGAIN = "build the index again (`vista recommend`)"
_CLASSES = {"exact": faiss.IndexFlat, "hnsw": faiss.IndexHNSW, "ivf": faiss.IndexIVF}
_HNSW_LINKS, _HNSW_BUILD = 32, 80
_IVF_TRAIN_PER_LIST = 39  # fewer points per list and FAISS warns that its k-means is starved


class IndexDamaged(VistaError):
    """An index directory is incomplete, of another version, or does not agree with itself."""


class Found(NamedTuple):
    """Candidates of U users, best first.

    Attributes:
        ids: int64 [U, k]; -1 behind the last one found.
        vectors: float32 [U, k, D]; zeros there.
        scores: float32 [U, k], best inner product over the user's queries; -inf there.
        counts: int64 [U], how many were found. Test this, not the ids: an item may be called -1.
    """

    ids: NDArray[np.int64]
    vectors: NDArray[np.float32]
    scores: NDArray[np.float32]
    counts: NDArray[np.int64]


class ItemIndex:
    """A searchable catalogue. Build one with :meth:`build` or open one with :meth:`load`.

    Attributes:
        kind: ``exact``, ``hnsw`` or ``ivf``.
        items: int64 [M].
        fingerprint: of the model that made the vectors; None where unknown (then nothing is refused).
        search_effort: candidates kept open per query (hnsw, at least twice k) or lists probed (ivf).
        catalogue: ``Bundle.catalogue`` of the items; "" where none came after training.
    """

    def __init__(
        self,
        index: faiss.Index,
        items: NDArray[np.int64],
        kind: str,
        fingerprint: str | None,
        search_effort: int,
        catalogue: str = "",
    ) -> None:
        self._index = index
        self.items, self.kind, self.fingerprint, self.search_effort = items, kind, fingerprint, search_effort
        self.catalogue = catalogue

    def __len__(self) -> int:
        """M, the number of items."""
        return len(self.items)

    @property
    def width(self) -> int:
        """D."""
        return self._index.d

    # --- build -----------------------------------------------------------------------------------------

    @staticmethod
    def build(
        model: VistaModel,
        items: NDArray[np.int64],
        kind: str = "exact",
        *,
        fingerprint: str | None = None,
        search_effort: int | None = None,
    ) -> ItemIndex:
        """Index of the vectors that ``model.items`` gives to ``items`` (int64 [M], distinct).

        Raises:
            DataError: no items, an item twice or no whole number, a vector that is not finite, or an unknown kind.
        """
        items = whole("index items", items)
        made_by: Any = {"fingerprint": fingerprint, "search_effort": search_effort}
        return ItemIndex.of_vectors(items, model.items.vectors(items), kind, **made_by)

    @staticmethod
    def of_vectors(
        items: NDArray[np.int64],
        vectors: NDArray[np.float32],
        kind: str = "exact",
        *,
        fingerprint: str | None = None,
        search_effort: int | None = None,
    ) -> ItemIndex:
        """Index of given vectors (float32 [M, D], L2-normalised), see :meth:`build`."""
        items = whole("index items", items)
        vectors = np.ascontiguousarray(vectors, np.float32)
        if kind not in KINDS:
            raise DataError(f"index kind: expected one of {KINDS}, found {kind!r}")
        if len(items) == 0 or vectors.ndim != 2 or len(vectors) != len(items):
            raise DataError(
                f"index items: expected at least one item and a vector each, found {len(items)} items and "
                f"vectors {vectors.shape}; is the catalogue empty? (`vista ingest` writes it)"
            )
        if len(np.unique(items)) != len(items):
            raise DataError("index items: an item appears twice; keep one row per item in the catalogue")
        broken = np.flatnonzero(~np.isfinite(vectors).all(1))
        if len(broken):
            raise DataError(
                f"index vectors: expected finite numbers, found others for {len(broken)} items (item "
                f"{items[broken[0]]} for one), which no search would find; is the model trained? (`vista train`)"
            )
        width, count = vectors.shape[1], len(items)
        if kind == "exact":
            index, effort = faiss.IndexFlatIP(width), 0
        elif kind == "hnsw":
            index, effort = faiss.IndexHNSWFlat(width, _HNSW_LINKS, faiss.METRIC_INNER_PRODUCT), 256
            index.hnsw.efConstruction = _HNSW_BUILD
        else:
            lists = max(1, min(int(4 * math.sqrt(count)), count // _IVF_TRAIN_PER_LIST))
            index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, lists, faiss.METRIC_INNER_PRODUCT)
            index.train(vectors)
            effort = max(1, lists // 16)
        index.add(vectors)
        return ItemIndex(index, items, kind, fingerprint, effort if search_effort is None else search_effort)

    # --- search ----------------------------------------------------------------------------------------

    def search(self, query: Tensor | NDArray[np.float32], k: int, *, fingerprint: str | None = None) -> Found:
        """The k best items of each user: ids, vectors and scores in one call.

        Each of a user's Q queries searches for k; an item found by several keeps its best score.

        Args:
            query: float32 [U, Q, D] (``Ranker.query``). One that is not finite finds nothing.
            k: candidates per user; fewer come back where the index (or the lists probed) holds fewer.
            fingerprint: of the model that made the queries.

        Raises:
            FingerprintMismatch: the queries are of another model than the vectors.
            DataError: queries of another width, or ``k`` below 0.
        """
        self.expect(fingerprint)
        settle()
        if isinstance(query, Tensor):
            query = query.detach().float().cpu().numpy()
        query = np.ascontiguousarray(query, np.float32)
        if k < 0:
            raise DataError(f"k: expected 0 or more candidates per user, found {k}")
        if query.ndim != 3 or query.shape[2] != self.width:
            raise DataError(f"queries: expected [U, Q, {self.width}], found {query.shape}")
        users, queries, width = query.shape
        if users == 0 or k == 0:
            rows, scores = np.zeros((users, k), np.int64), np.zeros((users, k), np.float32)
            return Found(rows, np.zeros((users, k, width), np.float32), scores, np.zeros(users, np.int64))
        scores, rows, vectors = self._index.search_and_reconstruct(
            query.reshape(-1, width), k, params=self._effort(k)
        )
        if queries > 1:
            rows, scores, vectors = _best_of(
                rows.reshape(users, -1), scores.reshape(users, -1), vectors.reshape(users, -1, width), k
            )
        real = rows >= 0
        return Found(
            np.where(real, self.items[rows], -1),
            np.where(real[..., None], vectors, np.float32(0)),
            np.where(real, scores, np.float32(-np.inf)),
            real.sum(1),
        )

    def _effort(self, k: int) -> faiss.SearchParameters | None:
        if self.kind == "hnsw":
            return faiss.SearchParametersHNSW(efSearch=max(self.search_effort, 2 * k))
        if self.kind == "ivf":
            return faiss.SearchParametersIVF(nprobe=min(self.search_effort, self._index.nlist))
        return None

    def vectors(self) -> NDArray[np.float32]:
        """float32 [M, D], the stored vectors in the order of ``items``."""
        if self.kind == "ivf":
            self._index.make_direct_map()
        return self._index.reconstruct_n(0, len(self))

    def recall_vs_exact(self, query: Tensor | NDArray[np.float32], k: int) -> float:
        """Mean share of the exact k best that this index finds, over the users of ``query`` [U, Q, D]."""
        exact = ItemIndex.of_vectors(self.items, self.vectors(), "exact").search(query, k)
        mine = self.search(query, k)
        hits = [
            len(np.intersect1d(a[:n], b[:m])) / max(n, 1)
            for a, n, b, m in zip(exact.ids, exact.counts, mine.ids, mine.counts, strict=True)
        ]
        return float(np.mean(hits)) if hits else 1.0

    def expect(self, fingerprint: str | None) -> None:
        """Raise unless the model of ``fingerprint`` made these vectors (None on either side: unknown)."""
        if fingerprint is not None and self.fingerprint is not None and fingerprint != self.fingerprint:
            raise FingerprintMismatch(
                f"item index: expected vectors of model {fingerprint}, found those of {self.fingerprint}; "
                "build the index again with this model (`vista recommend`)"
            )

    # --- disk ------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the directory ``path`` (replaced if it is an index already).

        Raises:
            DataError: something else is there, or beside the files of an index.
        """
        path = Path(path)
        replaces = _is_index(path)
        if path.exists() and not replaces and not (path.is_dir() and not any(path.iterdir())):
            raise DataError(
                f"{path}: expected nothing or an item index there, found something else; name another"
            )
        with building(path) as folder:
            faiss.write_index(self._index, str(folder / "index.faiss"))
            np.save(folder / "items.npy", self.items)
            facts = {
                "format": FORMAT,
                "kind": self.kind,
                "fingerprint": self.fingerprint,
                "width": self.width,
                "count": len(self),
                "search_effort": self.search_effort,
                **({"catalogue": self.catalogue} if self.catalogue else {}),
            }
            facts["seal"] = _seal(folder, facts, self.fingerprint)
            (folder / "index.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
            for name in FILES:
                with open(folder / name, "rb") as file:
                    os.fsync(file.fileno())
            if replaces:
                _exchange(folder, path)  # the old one is now what is removed
            else:
                folder.rename(path)

    @staticmethod
    def load(path: str | os.PathLike[str], fingerprint: str | None = None) -> ItemIndex:
        """Open an index.

        Args:
            path: directory written by :meth:`save`.
            fingerprint: of the model that will query it; None only opens an index that was saved without one.

        Raises:
            IndexDamaged: a file is missing, unreadable, not what the seal states, or disagrees with the others.
            FingerprintMismatch: made by another model.
        """
        path = Path(path)
        while True:
            before = _identity(path)
            try:
                result = ItemIndex._read(path, fingerprint)
            except IndexDamaged:
                if _identity(path) == before:
                    raise
                continue  # it was replaced meanwhile; what is there now has not been looked at
            if _identity(path) == before:
                return result

    @staticmethod
    def _read(path: Path, fingerprint: str | None) -> ItemIndex:
        facts = _facts(path)
        mark = facts["fingerprint"]
        if mark is not None and mark != fingerprint:
            found = "none was given" if fingerprint is None else f"found {fingerprint}"
            raise FingerprintMismatch(
                f"{path}: expected to be asked for by model {mark}, which made it, {found}; name the bundle's "
                "fingerprint, or build the index again with this model (`vista recommend`)"
            )
        try:
            if facts["seal"] != _seal(path, {n: v for n, v in facts.items() if n != "seal"}, mark):
                raise IndexDamaged(
                    f"{path}: index.faiss, items.npy or index.json is not what was sealed; {_AGAIN}"
                )
            index = faiss.read_index(str(path / "index.faiss"))
            items = np.load(path / "items.npy", allow_pickle=False)
            told = facts["kind"], mark, facts["search_effort"], facts.get("catalogue", "")
            result = ItemIndex(index, items, *told)
            expected, rows = (facts["count"], facts["width"]), (len(result.items), result._index.d)
        except (OSError, EOFError, ValueError, RuntimeError, MemoryError, TypeError) as error:
            raise IndexDamaged(f"{path}: expected {', '.join(FILES)}, found {error!r}; {_AGAIN}") from error
        if not isinstance(result._index, _CLASSES[result.kind]):
            raise IndexDamaged(
                f"{path}: expected an index of kind {result.kind}, found {type(result._index).__name__}; {_AGAIN}"
            )
        if items.dtype != np.int64 or items.ndim != 1 or len(np.unique(items)) != len(items):
            raise IndexDamaged(
                f"{path}/items.npy: expected distinct int64 ids, found {items.dtype} {items.shape} with "
                f"{len(np.unique(items))} different ones; build the index again (`vista recommend`)"
            )
        if expected != rows or result._index.ntotal != expected[0]:
            raise IndexDamaged(
                f"{path}: expected {expected[0]} items of width {expected[1]}, found {rows[0]} ids and "
                f"{result._index.ntotal} vectors of width {rows[1]}; build the index again "
                "(`vista recommend`)"
            )
        return result


def kind_at(path: Path) -> str:
    """Kind of the index at a path.

    Raises:
        IndexDamaged: there is none.
    """
    return str(_facts(path)["kind"])


def _facts(path: Path) -> dict:
    """What index.json says, every field of its type and range.

    Raises:
        IndexDamaged
    """
    file = path / "index.json"
    try:
        if file.stat().st_size > 1 << 20:
            raise ValueError("more than 1 MiB")
        if not all((path / name).is_file() for name in FILES):
            raise ValueError(f"without {FILES}, each a regular file")
        facts = small_json(file)
    except (OSError, ValueError, RecursionError) as error:
        raise IndexDamaged(f"{file}: expected a JSON object, found {error!r}; {_AGAIN}") from error
    found = facts.get("format") if isinstance(facts, dict) else type(facts).__name__
    if found != FORMAT:
        raise IndexDamaged(f"{file}, field format: expected {FORMAT!r}, found {str(found)[:60]!r}; {_AGAIN}")
    numbers = ("width", "count", "search_effort")
    right = {
        "kind": facts.get("kind") in KINDS,
        "fingerprint": facts.get("fingerprint", 0) is None or isinstance(facts.get("fingerprint", 0), str),
        "seal": isinstance(facts.get("seal"), str),
        "catalogue": isinstance(facts.get("catalogue", ""), str),
        **{n: type(facts.get(n)) is int and 0 <= facts[n] < 1 << 40 for n in numbers},
    }
    for name, fine in right.items():
        if not fine:
            raise IndexDamaged(f"{file}, field {name}: found {str(facts.get(name))[:60]!r}; {_AGAIN}")
    return facts


def _seal(path: Path, facts: dict, fingerprint: str | None) -> str:
    key = hashlib.blake2b((fingerprint or "").encode(), digest_size=32).digest()
    keyed = functools.partial(hashlib.blake2b, digest_size=32, key=key)
    digest = keyed(json.dumps(facts, sort_keys=True).encode())
    for name in FILES[:2]:
        with open(path / name, "rb") as file:
            digest.update(hashlib.file_digest(file, keyed).digest())
    return digest.hexdigest()


def _best_of(
    rows: NDArray[np.int64], scores: NDArray[np.float32], vectors: NDArray[np.float32], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]:
    """The k best distinct rows per user of several queries' results put side by side ([U, Q * k])."""
    scores = np.where(rows >= 0, scores, -np.inf)
    order = np.argsort(-scores, axis=1, kind="stable")
    rows, scores = np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1)
    by_row = np.argsort(rows, axis=1, kind="stable")  # stable: the best copy of a row comes first
    sorted_rows = np.take_along_axis(rows, by_row, 1)
    first = np.ones_like(rows, bool)
    first[:, 1:] = sorted_rows[:, 1:] != sorted_rows[:, :-1]
    keep = np.empty_like(first)
    np.put_along_axis(keep, by_row, first & (sorted_rows >= 0), 1)
    pick = np.argsort(~keep, axis=1, kind="stable")[:, :k]
    kept = np.take_along_axis(keep, pick, 1)
    place = np.take_along_axis(order, pick, 1)
    return (
        np.where(kept, np.take_along_axis(rows, pick, 1), -1),
        np.take_along_axis(scores, pick, 1),
        np.take_along_axis(vectors, place[..., None], 1),
    )


def _identity(path: Path) -> tuple[int, int, int] | None:
    """Of the folder that has this name now."""
    try:
        there = path.stat()
    except OSError:
        return None
    return there.st_dev, there.st_ino, there.st_ctime_ns


def _exchange(new: Path, live: Path) -> None:
    """Two folders change names in one step, so that ``live`` is there at every moment."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:  # a C library without the call
        code = errno.ENOSYS
    else:
        code = ctypes.get_errno() if rename(-100, os.fsencode(new), -100, os.fsencode(live), 2) else 0
    if code in (errno.ENOSYS, errno.EINVAL):  # nor a filesystem: for a moment there is no index
        old = new.with_suffix(".old")
        live.rename(old)
        new.rename(live)
        old.rename(new)
    elif code:
        raise OSError(code, os.strerror(code), str(live))


def _is_index(path: Path) -> bool:
    """Whether a folder is an index, of any version, and holds nothing else: it may be replaced."""
    try:
        facts = small_json(path / "index.json")
        mine = str(facts["format"]).startswith("vista-index ")
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return mine and {p.name for p in path.iterdir()} <= set(FILES)
