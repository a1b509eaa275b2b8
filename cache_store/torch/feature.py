"""User ids in, summary tokens ``[B, S, D]`` on the device out.

    feature = SummaryFeature(Store.open(path, fingerprint=...), missing="learned").to("cuda")
    found = feature(users)                          # found.tokens [B, S, D], found.mask [B], found.groups["seeds"]
    seen = found.sequence(ItemVectors.read(bundle / "vectors.npz").to("cuda"))     # what users did, to attend to

    for batch, found in SummaryLoader(loader, feature, users="user", depth=2):      # looks up ahead
        ...

The way of a batch to another device: a user given twice is read once; records are gathered as stored, quantised,
into pinned memory; one copy on a stream of its own takes records, status and times across; there one kernel
decodes them into the B rows (``decode``). On the CPU the store decodes straight into the tensor.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from cache_store.errors import MissingUsers, SchemaError, StoreError
from cache_store.format import manifest as manifests
from cache_store.format.keys import Users, as_users
from cache_store.format.manifest import Manifest
from cache_store.format.record import RecordSchema
from cache_store.read.options import wall_clock
from cache_store.read.prefetch import LookAhead
from cache_store.read.snapshot import Status
from cache_store.store import Store
from cache_store.torch.decode import RecordDecoder
from cache_store.torch.sequence import ItemVectors, TokenSequence, sequence, whole_numbers

MISSING_POLICIES = ("zeros", "learned", "raise")

T = TypeVar("T")

_HOUR_MS = 3_600_000.0


@dataclass(frozen=True)
class TokenBatch:
    """Summaries of B users in the caller's order; all tensors on the module's device.

    Attributes:
        tokens: [B, S, D] in the module's dtype.
        status: uint8 [B], values of ``cache_store.read.snapshot.Status``.
        mask: bool [B]; True where the tokens are the user's own (FRESH or STALE).
        event_count, last_event_ms, summarized_ms: int64 [B]; 0 where the mask is False.
        ages: float32 [B, 3], log(1 + hours) since the last event seen, since summarising, since publication; 0 where
            the mask is False. None unless the module was made with ``ages=True``.
        generation: name of the generation that was read; "" if none is old enough for ``as_of``.
        slices: group name to its rows of ``[S, D]``.
        schema: of the records.
        numbers: group of codec ``int64`` to its whole numbers, int64 [B, n]; in ``tokens`` these are bits, or zeros in
            any type but float32.
    """

    tokens: Tensor
    status: Tensor
    mask: Tensor
    event_count: Tensor
    last_event_ms: Tensor
    summarized_ms: Tensor
    ages: Tensor | None
    generation: str
    slices: dict[str, slice]
    schema: RecordSchema
    numbers: dict[str, Tensor]

    def group(self, name: str) -> Tensor:
        """Tokens of one group, [B, S_g, D], a view.

        Raises:
            SchemaError: there is no such group.
        """
        if name not in self.slices:
            raise SchemaError(f"group: expected one of {list(self.slices)}, found {name!r}")
        return self.tokens[:, self.slices[name]]

    def sequence(
        self, vectors: ItemVectors, tokens: int = 512, places: int | None = None, ages: bool = False
    ) -> TokenSequence:
        """What these users did as a sequence to attend to, heaviest first: items, then clusters with the rest.

        Args:
            vectors: of items and clusters, the bundle's (:meth:`ItemVectors.read`) or your own.
            tokens: S, at most.
            places: how many of them stand for clusters; a quarter by default.
            ages: also tell when each was touched last.

        Raises:
            SchemaError: the records have no table of items, or none of clusters, or tell no ages (before version 0.2);
                or ``vectors`` is of other clusters, or more places than tokens are asked for.
        """
        return sequence(self.schema, self.groups, self.numbers, self.mask, vectors, tokens, places, ages)

    @property
    def groups(self) -> dict[str, Tensor]:
        """All groups by name, views."""
        return {name: self.tokens[:, rows] for name, rows in self.slices.items()}


@dataclass(frozen=True)
class Fetched:
    """A lookup on its way to the device; hand it to :class:`SummaryFeature` once.

    Attributes:
        rows: uint8 [U, row_bytes] of the distinct users on the device, or None where ``tokens`` is decoded.
        tokens: float32 [U, S, D] on the CPU, or None.
        facts: int64 [4, U]: status, event count, last event time, summarising time.
        inverse: int64 [B], the distinct user of each row; None where all are distinct.
        absent: int64 [rows], rows of the batch that have no tokens of their own; known before anything is waited for.
        generation: name of what was read, "" if no generation is old enough.
        manifest: of that generation; of the live one where nothing was read.
        ready: CUDA event behind the copy, or None.
    """

    rows: Tensor | None
    tokens: Tensor | None
    facts: Tensor
    inverse: Tensor | None
    absent: Tensor
    generation: str
    manifest: Manifest
    ready: Any = None


class SummaryFeature(nn.Module):
    """Looks summaries up and gives them as tensors: calling it is :meth:`forward`, users to :class:`TokenBatch`. The
    default record is tables, not vectors: attend to ``found.sequence(vectors)``, not to ``found.tokens``.

    The only parameter is ``cold_start`` [S, D], with ``missing="learned"``: what users without a summary get. Its
    gradient is the sum over them.

    Args:
        store: open; read by this module, and refreshed by :meth:`refresh` alone.
        groups: which groups, in which order; None for all.
        dtype: of the tokens.
        missing: users that are MISSING or CORRUPT get ``zeros`` or the ``learned`` token; ``raise`` refuses missing
            ones (corrupt ones get zeros). A store opened with its own policy
            only matters if that is ``raise``.
        ages: also give age features.
        on_device: decode on the module's device; None does so on every device but the CPU.

    Raises:
        SchemaError: unknown group. StoreError: unknown policy.
    """

    def __init__(
        self,
        store: Store,
        *,
        groups: Sequence[str] | None = None,
        dtype: torch.dtype = torch.float32,
        missing: str = "zeros",
        ages: bool = False,
        on_device: bool | None = None,
    ) -> None:
        super().__init__()
        if missing not in MISSING_POLICIES:
            raise StoreError(f"missing: expected one of {MISSING_POLICIES}, found {missing!r}")
        self.store, self.dtype, self.missing = store, dtype, missing
        self.ages, self.on_device = ages, on_device
        self.decoder = RecordDecoder(store.manifest.schema, groups)
        self._row_bytes = self.decoder.schema.row_bytes
        self._whole = self.decoder.groups == self.decoder.schema.groups
        self.cold_start: nn.Parameter | None = None
        if missing == "learned":
            self.cold_start = nn.Parameter(torch.zeros(self.decoder.tokens, self.decoder.width))
        self._manifests: dict[str, Manifest] = {}
        self._staging = _Staging()

    @property
    def device(self) -> torch.device:
        """Where the tokens appear; moves with ``.to``."""
        return self.decoder.log8.device

    @property
    def slices(self) -> dict[str, slice]:
        """Group name to its rows of ``[S, D]``."""
        return self.decoder.slices

    def refresh(self) -> str:
        """Move the store to the live generation; its name. Between batches only."""
        return self.store.refresh()

    def fetch(self, users: Users | Tensor, as_of: int | None = None) -> Fetched:
        """Read users and begin their way to the device; for a thread that works ahead. No gradient.

        Args:
            users: int64 [B] (array or tensor) or B strings.
            as_of: as in ``Store.lookup``.

        Raises:
            As ``Store.lookup``. SchemaError: the generation has other groups than this module was made for.
        """
        ids, inverse = _distinct(as_ids(users, self.store.format.user_kind))
        device, n = self.device, len(ids)
        on_device = device.type != "cpu" if self.on_device is None else self.on_device
        if not on_device and self._whole and device.type == "cpu":
            # NumPy's memory comes in huge pages where torch's does not; for tens of megabytes that is most of the time.
            tokens = np.empty((n, self.decoder.tokens, self.decoder.width), np.float32)
            found = self.store.lookup(ids, out=tokens, as_of=as_of)
            self._refuse_missing(ids, found.status)
            facts = _facts(found, np.empty((4, n), np.int64))
            name = str(found.generation)  # one time for all rows, so one name
            spread = None if inverse is None else torch.from_numpy(inverse)
            absent = torch.from_numpy(_absent(found.status, inverse))
            given = torch.from_numpy(tokens), torch.from_numpy(facts)
            return Fetched(None, *given, spread, absent, name, self._manifest(name))
        size, b = self._row_bytes, 0 if inverse is None else len(inverse)
        parts = [n * size, 4 * n * 8, b * 8]
        with self._staging.buffer(sum(parts) + max(b, n) * 8, device) as staged:
            rows, facts, places, last = staged.host.split([*parts, max(b, n) * 8])
            raw = self.store.lookup_raw(ids, out=rows.view(n, size).numpy(), as_of=as_of)
            self._refuse_missing(ids, raw.status)
            name = str(raw.generation)
            manifest = self._manifest(name)
            _facts(raw, facts.view(torch.int64).view(4, n).numpy())
            if inverse is not None:
                places.view(torch.int64).numpy()[:] = inverse
            alone = _absent(raw.status, inverse)
            last.view(torch.int64).numpy()[: len(alone)] = alone
            flat, ready = staged.send(device, sum(parts) + len(alone) * 8)
        rows, facts, places, last = flat.split([*parts, len(alone) * 8])
        numbers = facts.view(torch.int64).view(4, n)
        spread = None if inverse is None else places.view(torch.int64)
        return Fetched(
            rows.view(n, size), None, numbers, spread, last.view(torch.int64), name, manifest, ready
        )

    def forward(
        self, users: Users | Tensor | Fetched, *, as_of: int | None = None, now_ms: int | Tensor | None = None
    ) -> TokenBatch:
        """Tokens of B users.

        Args:
            users: as for :meth:`fetch`, or what it returned.
            as_of: as in ``Store.lookup``.
            now_ms: for the ages: one time, or int64 [B]; the wall clock by default.

        Raises:
            As :meth:`fetch`.
        """
        fetched = users if isinstance(users, Fetched) else self.fetch(users, as_of)
        if fetched.ready is not None:
            _wait(fetched)
        with torch.no_grad():
            if fetched.rows is None:
                tokens = fetched.tokens.to(self.dtype)  # type: ignore[union-attr]
                tokens = tokens if fetched.inverse is None else tokens[fetched.inverse]
            else:
                tokens = self.decoder(fetched.rows, self.dtype, fetched.inverse)
            facts = fetched.facts if fetched.inverse is None else fetched.facts[:, fetched.inverse]
            numbers = {
                n: x if fetched.inverse is None else x[fetched.inverse] for n, x in self._numbers(fetched)
            }
            status = facts[0].to(torch.uint8)
            mask = status < int(Status.MISSING)
            ages = self._ages(facts, mask, now_ms, fetched.manifest) if self.ages else None
        self._fill(tokens, fetched.absent)
        return TokenBatch(
            tokens, status, mask, facts[1], facts[2], facts[3], ages, fetched.generation,
            self.slices, self.decoder.schema, numbers,
        )  # fmt: skip

    def _numbers(self, fetched: Fetched) -> Iterator[tuple[str, Tensor]]:
        """Whole numbers of each group that holds such, int64 [U, n]."""
        for name in (g.name for g in self.decoder.groups if g.codec == "int64"):
            if fetched.rows is not None:
                yield name, whole_numbers(self.decoder.schema, name, self.decoder.numbers(fetched.rows, name))
            elif fetched.tokens is not None:
                yield name, whole_numbers(self.decoder.schema, name, fetched.tokens[:, self.slices[name]])

    def _fill(self, tokens: Tensor, absent: Tensor) -> None:
        """Write the rows that have no tokens of their own, in place; the gradient reaches ``cold_start`` alone."""
        if self.cold_start is not None:
            tokens[absent] = self.cold_start.to(tokens.dtype)
        elif len(absent):
            tokens[absent] = 0

    def _refuse_missing(self, ids: np.ndarray, status: np.ndarray) -> None:
        absent = ids[status == Status.MISSING].tolist() if self.missing == "raise" else []
        if absent:
            raise MissingUsers(
                f"{self.store.layout.root}: {len(absent)} users have no summary, first {absent[0]!r}; run "
                f"`vista refresh`, or make the SummaryFeature with missing='zeros' or 'learned'",
                absent,
            )

    def _ages(self, facts: Tensor, mask: Tensor, now_ms: int | Tensor | None, manifest: Manifest) -> Tensor:
        now = wall_clock() if now_ms is None else now_ms
        now = torch.as_tensor(now, dtype=torch.int64, device=facts.device).expand(len(mask))
        since = torch.stack([now - facts[2], now - facts[3], now - manifest.published_ms], dim=1)
        return torch.log1p(since.clamp_min(0).float() / _HOUR_MS) * mask[:, None]

    def _manifest(self, name: str) -> Manifest:
        """Manifest of a generation just read, with the groups that this module expects."""
        known = self._manifests.get(name)
        if known is None:
            live = self.store.manifest
            # "" stands for an as-of time before every generation: nothing was read.
            same = name in ("", live.generation)
            known = live if same else manifests.read(self.store.layout.generation(name))
            self._manifests = {**dict(list(self._manifests.items())[-15:]), name: known}
        if known.schema != self.decoder.schema:
            raise SchemaError(
                f"{self.store.layout.generation(name)}: holds groups {known.schema.groups}, this feature was made for "
                f"{self.decoder.schema.groups}; open the store of the model's own line, or make a new SummaryFeature"
            )
        return known

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_staging": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._staging = _Staging()


class SummaryLoader(Generic[T]):
    """Batches with their summaries, looked up while the batch before is in use.

    Iterating gives ``(batch, TokenBatch)``. Every ``iter`` is one pass; leaving it early ends its thread
    (``LookAhead``). Loader workers, forked or spawned, stay what they are: ids come out of them, and the lookup
    happens in this process.

    Args:
        batches: any iterable, a ``torch.utils.data.DataLoader`` for one.
        feature: its :meth:`~SummaryFeature.fetch` runs ahead, its ``forward`` in the caller's thread.
        users: the user ids of a batch: a function, or the key or attribute that holds them.
        as_of: the as-of time of a batch, a function; None reads the pinned generation.
        depth: lookups that may wait.
    """

    def __init__(
        self,
        batches: Iterable[T],
        feature: SummaryFeature,
        users: str | Callable[[T], Any],
        *,
        as_of: Callable[[T], int] | None = None,
        depth: int = 2,
    ) -> None:
        self.feature, self._users, self._as_of = feature, users, as_of
        self._ahead: LookAhead[T, Fetched] = LookAhead(batches, self._fetch, depth)

    def _fetch(self, batch: T) -> Fetched:
        name = self._users
        if callable(name):
            users = name(batch)
        else:
            users = batch[name] if hasattr(batch, "__getitem__") else getattr(batch, name)
        return self.feature.fetch(users, None if self._as_of is None else self._as_of(batch))

    def __iter__(self) -> Iterator[tuple[T, TokenBatch]]:
        stream = iter(self._ahead)
        try:
            for batch, fetched in stream:
                yield batch, self.feature(fetched)
        finally:
            stream.close()

    def __len__(self) -> int:
        return len(self._ahead)

    def close(self) -> None:
        """End the threads of passes under way."""
        self._ahead.close()


def as_ids(users: Users | Tensor, kind: str) -> np.ndarray:
    """Ids as the store takes them; a tensor's values are brought to the CPU.

    Raises:
        KeyKind: not of ``kind``.
    """
    return as_users(users.detach().cpu().numpy() if isinstance(users, Tensor) else users, kind)


def _distinct(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Distinct ids and the place of each row among them; the ids as they are and None where none repeats."""
    distinct, inverse = np.unique(ids, return_inverse=True)
    return (ids, None) if len(distinct) == len(ids) else (distinct, inverse.reshape(-1))


def _absent(status: np.ndarray, inverse: np.ndarray | None) -> np.ndarray:
    return np.flatnonzero((status if inverse is None else status[inverse]) >= Status.MISSING)


def _facts(found: Any, out: np.ndarray) -> np.ndarray:
    out[0], out[1], out[2], out[3] = found.status, found.event_count, found.last_event_ms, found.summarized_ms
    return out


def _wait(fetched: Fetched) -> None:
    """Let this thread's stream wait for the copy, and keep the memory until this stream is done with it."""
    stream = torch.cuda.current_stream(fetched.facts.device)
    stream.wait_event(fetched.ready)
    for part in (fetched.rows, fetched.facts, fetched.inverse, fetched.absent):
        if part is not None:
            part.record_stream(stream)


class _Buffer:
    """One host buffer and the event behind its last copy."""

    def __init__(self, size: int, pinned: bool) -> None:
        self.memory = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
        self.host = self.memory
        self.copied: Any = None
        self.stream: Any = None

    def send(self, device: torch.device, size: int) -> tuple[Tensor, Any]:
        """The first ``size`` bytes on the device, and the event that says when they are there."""
        if self.stream is None:
            return self.host[:size].to(device, copy=True), None
        with torch.cuda.stream(self.stream):
            flat = torch.empty(size, dtype=torch.uint8, device=device)
            flat.copy_(self.host[:size], non_blocking=True)
            self.copied = torch.cuda.Event()
            self.copied.record(self.stream)
        return flat, self.copied


class _Staging:
    """Host buffers that are used again once their copy is done; pinned, and with a copy stream, for CUDA."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free: list[_Buffer] = []
        self._streams: dict[torch.device, Any] = {}

    @contextmanager
    def buffer(self, size: int, device: torch.device) -> Iterator[_Buffer]:
        """A host buffer of ``size`` bytes for one copy to ``device``; after the block it may be used again."""
        held = self._take(size, device)
        try:
            yield held
        finally:
            with self._lock:
                self._free.append(held)
                # A few batches are under way at most; what is smaller than all of them is of no more use.
                if len(self._free) > 8:
                    self._free.remove(min(self._free, key=lambda b: len(b.memory)))

    def _take(self, size: int, device: torch.device) -> _Buffer:
        cuda = device.type == "cuda"
        with self._lock:
            stream = None
            if cuda:
                stream = self._streams.get(device) or torch.cuda.Stream(device)
                self._streams[device] = stream
            fitting = [b for b in self._free if len(b.memory) >= size and b.memory.is_pinned() == cuda]
            held = min(fitting, key=lambda b: len(b.memory), default=None)
            if held is not None:
                self._free.remove(held)
        if held is None:
            # Powers of two, so that a stream of uneven batches soon stops allocating.
            held = _Buffer(1 << max(12, (size - 1).bit_length()), cuda)
        if held.copied is not None:
            held.copied.synchronize()
            held.copied = None
        held.host, held.stream = held.memory[:size], stream
        return held
