"""``ContextKV``: what stage 2 computed of a request's context, a value of its own.

Retrieval computes it, ranking reads it; in the same process as an argument, in another through
:class:`vista.serving.kv_pool.KVPool` (UniPinRec, arXiv 2606.00422, serving: one key-value cache for two stages).
It says whose it is, which generation of summaries it was made from and by which model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypedDict

import numpy as np
import torch
from torch import Tensor

from vista.errors import FingerprintMismatch


class Origin(TypedDict, total=False):
    """Whose a context is, from which summaries and of which model; see :class:`ContextKV`."""

    owner: np.ndarray | Sequence[int | str] | None
    generation: str | None
    fingerprint: str | None


@dataclass(frozen=True)
class ContextKV:
    """Per-layer keys and values of U contexts of T = S + R + 1 tokens, and what candidates read beside them.

    The tokens are S summary tokens, R recent events (padded at the end) and one *now* token.

    Attributes:
        keys, values: [L, U, T, H, E].
        mask: bool [U, T]; False where a summary is missing or a recent event is padding. The now token is
            always there, so every user can be scored.
        query: [U, Q, D], L2-normalised retrieval queries.
        slots: float32 [U, S_slot, D], what candidates read by their own keys: served slots, then places, then the
            groups of exact tokens, whose ids are bits.
        token: float32 [U, S_t, D], unit vectors of the exact tokens as a sequence.
        token_mass: float32 [U, S_t, H].
        elapsed_ms: int64 [U], from the summary's last event to now.
        recent_item: int64 [U, R].
        recent_age_ms: int64 [U, R], age at now.
        summarized: bool [U], False for users served without a summary.
        hidden: [U, T, D], outputs of the last layer at every token; only where asked for (training).
        owner: user ids [U], or None.
        generation: name of the summaries' generation, or None.
        fingerprint: of the model, or None.
    """

    keys: Tensor
    values: Tensor
    mask: Tensor
    query: Tensor
    slots: Tensor
    token: Tensor
    token_mass: Tensor
    elapsed_ms: Tensor
    recent_item: Tensor
    recent_age_ms: Tensor
    summarized: Tensor
    hidden: Tensor | None = None
    owner: np.ndarray | Sequence[int | str] | None = None
    generation: str | None = None
    fingerprint: str | None = None

    @property
    def users(self) -> int:
        """U."""
        return self.mask.shape[0]

    @property
    def length(self) -> int:
        """T."""
        return self.mask.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(x.numel() * x.element_size() for x in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """Tensors by name, without ``hidden``; users are axis 1 of keys and values, axis 0 of others."""
        return {name: getattr(self, name) for name in TENSORS}

    def select(self, users: np.ndarray | Tensor | slice) -> ContextKV:
        """The contexts of ``users`` (positions, any order, repeats allowed; a slice makes views)."""
        index = users if isinstance(users, slice) else torch.as_tensor(users, device=self.mask.device)
        tensors = self.tensors().items()
        picked: dict[str, Any] = {n: x[:, index] if n in LAYERED else x[index] for n, x in tensors}
        owner = self.owner
        if owner is not None:
            host = index if isinstance(index, slice) else index.cpu().numpy()
            owner = np.asarray(owner)[host]
        hidden = None if self.hidden is None else self.hidden[index]
        return replace(self, **picked, hidden=hidden, owner=owner)

    def __getitem__(self, users: int | slice) -> ContextKV:
        """One user, or a slice of users, as views."""
        return self.select(slice(users, users + 1) if isinstance(users, int) else users)

    @staticmethod
    def concat(contexts: Sequence[ContextKV]) -> ContextKV:
        """The users of several contexts one after the other; recent events are padded to the longest.

        ``hidden`` is dropped. Generation and fingerprint stay where all agree, owners where all have them.
        """
        if len(contexts) == 1:
            return contexts[0]
        longest = max(c.recent_item.shape[1] for c in contexts)
        parts = [c._padded(longest) for c in contexts]
        joined = {name: torch.cat([p[name] for p in parts], 1 if name in LAYERED else 0) for name in TENSORS}
        owners = [c.owner for c in contexts]
        known = all(owner is not None for owner in owners)
        generations = {c.generation for c in contexts}
        fingerprints = {c.fingerprint for c in contexts}
        return ContextKV(
            **joined,
            owner=np.concatenate([np.asarray(owner) for owner in owners]) if known else None,
            generation=generations.pop() if len(generations) == 1 else None,
            fingerprint=fingerprints.pop() if len(fingerprints) == 1 else None,
        )

    def _padded(self, recent: int) -> dict[str, Tensor]:
        """The tensors with room for ``recent`` events; the room is masked and lies before the now token."""
        tensors, more = self.tensors(), recent - self.recent_item.shape[1]
        if more:
            for name in (*LAYERED, "mask"):
                axis = 1 if name == "mask" else 2
                x = tensors[name]
                room = x.new_zeros(*x.shape[:axis], more, *x.shape[axis + 1 :])
                tensors[name] = torch.cat(
                    [x.narrow(axis, 0, self.length - 1), room, x.narrow(axis, self.length - 1, 1)], axis
                )
            for name in ("recent_item", "recent_age_ms"):
                tensors[name] = torch.cat([tensors[name], tensors[name].new_zeros(self.users, more)], 1)
        return tensors

    def to(self, device: torch.device | str) -> ContextKV:
        moved: dict[str, Any] = {name: x.to(device) for name, x in self.tensors().items()}
        return replace(self, **moved, hidden=None if self.hidden is None else self.hidden.to(device))

    def expect(self, fingerprint: str | None) -> None:
        """Raise unless the model of ``fingerprint`` made this context (None on either side: unknown)."""
        if fingerprint is not None and self.fingerprint is not None and fingerprint != self.fingerprint:
            raise FingerprintMismatch(
                f"context: expected model {fingerprint}, found one made by {self.fingerprint}; "
                "compute it again with this model (`vista recommend` does)"
            )


class Field(NamedTuple):
    """One tensor of a context: its axes beside that of the users, by letter, and its type.

    ``L`` layers, ``T`` context tokens, ``H`` heads, ``E`` width of a head, ``Q`` queries, ``D`` width, ``A`` addressed
    tokens, ``S`` tokens of the sequence, ``M`` horizons of their masses, ``R`` recent events.
    """

    axes: str
    dtype: torch.dtype

    @property
    def user_axis(self) -> int:
        return 1 if self.axes.startswith("L") else 0


FIELDS = {
    "keys": Field("LTHE", torch.float32),
    "values": Field("LTHE", torch.float32),
    "mask": Field("T", torch.bool),
    "query": Field("QD", torch.float32),
    "slots": Field("AD", torch.float32),
    "token": Field("SD", torch.float32),
    "token_mass": Field("SM", torch.float32),
    "elapsed_ms": Field("", torch.int64),
    "recent_item": Field("R", torch.int64),
    "recent_age_ms": Field("R", torch.int64),
    "summarized": Field("", torch.bool),
}
"""What a context is made of, here and in a pool (:mod:`vista.serving.kv_pool`)."""

TENSORS = tuple(FIELDS)
LAYERED = tuple(name for name, f in FIELDS.items() if f.user_axis)
