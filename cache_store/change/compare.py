"""Two generations of a store beside each other: who came, who went, how far what is stored has moved.

Drift of a user is ``|b - a| / |a|`` over the tokens of a group, 0 where nothing moved; of the mass it is the binary
logarithm of ``|b| / |a|``, 0 where it stayed. Of a group of ids (codec ``int64``) the drift is the share of ids that
are not in both. Tokens of two models have no common axes: their drift says nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from cache_store.change.fold import fold
from cache_store.errors import GenerationUnknown, SchemaError
from cache_store.format import manifest as manifests
from cache_store.format.layout import Layout
from cache_store.format.record import RecordSchema
from cache_store.read.generation import Generation
from cache_store.read.snapshot import Snapshot

QUANTILES = (0.1, 0.5, 0.9, 0.99, 1.0)
LENGTHS = (100, 1_000, 10_000, 100_000)
"""Events: bounds of the slices by length of history."""


@dataclass
class Comparison:
    """What differs from ``before`` to ``after``.

    Attributes:
        users: of each.
        added, gone, kept: users of both sides.
        sampled: kept users whose records were read; ``changed`` of them have other bytes, ``grown`` more events.
        same_model: whether the tokens have common axes.
        drift, mass: by group, at :data:`QUANTILES` over the sampled users.
        by_length: rows of ``slice``, ``users``, ``median`` and ``p90`` of the drift over all groups.
        examples: some users added and gone.
    """

    before: str
    after: str
    users: tuple[int, int]
    added: int
    gone: int
    kept: int
    sampled: int = 0
    changed: int = 0
    grown: int = 0
    same_model: bool = True
    drift: dict[str, list[float]] = field(default_factory=dict)
    mass: dict[str, list[float]] = field(default_factory=dict)
    by_length: list[dict[str, Any]] = field(default_factory=list)
    examples: dict[str, list[Any]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "quantiles": list(QUANTILES)}


def floats(schema: RecordSchema) -> np.ndarray:
    """bool [S]: tokens that are numbers, not ids."""
    return np.concatenate([np.full(g.tokens, g.codec != "int64") for g in schema.groups])


def open_generation(layout: Layout, name: str) -> Snapshot:
    """A generation with all below it, whether a line names it or not.

    Raises:
        GenerationUnknown, Damaged, FormatUnknown
    """
    if name not in (known := layout.generation_names()):
        raise GenerationUnknown(f"{layout.root}: no generation {name}; kept: {known}; run `vista status`")
    chain = manifests.chain(layout, name)
    return Snapshot([Generation(layout.generation(m.generation), m, False) for m in chain], False)


def compare(layout: Layout, before: str, after: str, sample: int = 4_096) -> Comparison:
    """Compare two generations.

    Args:
        sample: kept users whose records are read, at most.

    Raises:
        SchemaError: their records cannot be compared. GenerationUnknown, Damaged, FormatUnknown
    """
    a, b = open_generation(layout, before), open_generation(layout, after)
    shards = layout.read_format().num_shards
    rng = np.random.default_rng(0)
    found = Comparison(before, after, (0, 0), 0, 0, 0)
    found.examples = {"added": [], "gone": []}
    kept: list[Any] = []
    sizes = [0, 0]
    for shard in range(shards):
        one, two = fold(a.chain, shard).users, fold(b.chain, shard).users
        both = np.intersect1d(one, two, assume_unique=True)
        sizes[0] += len(one)
        sizes[1] += len(two)
        found.kept += len(both)
        for key, more, less in (("added", two, both), ("gone", one, both)):
            only = np.setdiff1d(more, less, assume_unique=True)
            setattr(found, key, getattr(found, key) + len(only))
            found.examples[key] += only[: 5 - len(found.examples[key])].tolist()
        share = -(-sample // shards)
        kept += both[rng.permutation(len(both))[:share]].tolist()
    found.users = (sizes[0], sizes[1])
    found.same_model = a.chain[0].manifest.fingerprint == b.chain[0].manifest.fingerprint
    if kept:
        _drift(a, b, kept[:sample], found)
    return found


def _drift(a: Snapshot, b: Snapshot, users: Sequence[Any], found: Comparison) -> None:
    if a.schema.as_dict()["groups"] != b.schema.as_dict()["groups"]:
        raise SchemaError(
            f"generations {found.before} and {found.after} have other groups of tokens; nothing can be compared"
        )
    one, two = (s.lookup(list(users)) for s in (a, b))
    ok = (one.event_count > 0) & (two.event_count > 0)
    found.sampled = int(ok.sum())
    if not found.sampled:
        return
    found.grown = int((two.event_count[ok] > one.event_count[ok]).sum())
    worst = np.zeros(found.sampled)
    x, y = one.tokens[ok], two.tokens[ok]
    found.changed = int((x.view(np.uint32) != y.view(np.uint32)).any((1, 2)).sum())
    for name, rows in a.schema.slices.items():
        if not floats(a.schema)[rows][0]:
            drift = _unlike(x[:, rows], y[:, rows])
            found.drift[name] = np.quantile(drift, QUANTILES).tolist()
            worst = np.maximum(worst, drift)
            continue
        p, q = x[:, rows].astype(np.float64), y[:, rows].astype(np.float64)
        size, other = (np.sqrt((v**2).sum((1, 2))) for v in (p, q))
        moved = np.sqrt(((q - p) ** 2).sum((1, 2)))
        drift = np.where(size > 0, moved / np.maximum(size, 1e-30), (moved > 0).astype(float))
        mass = np.log2(np.maximum(other, 1e-30) / np.maximum(size, 1e-30))
        mass = np.where((size > 0) | (other > 0), mass, 0.0)
        found.drift[name] = np.quantile(drift, QUANTILES).tolist()
        found.mass[name] = np.quantile(mass, QUANTILES).tolist()
        worst = np.maximum(worst, drift)
    names = [f"under {LENGTHS[0]:,}", *(f"{m:,} to {n:,}" for m, n in zip(LENGTHS, LENGTHS[1:], strict=False)),
             f"over {LENGTHS[-1]:,}"]  # fmt: skip
    place = np.searchsorted(LENGTHS, two.event_count[ok], "right")
    for k, name in enumerate(names):
        mine = worst[place == k]
        if len(mine):
            middle, most = np.quantile(mine, (0.5, 0.9)).tolist()
            found.by_length.append({"slice": name, "users": len(mine), "median": middle, "p90": most})


def _unlike(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """float64 [n]: share of each row's ids that are not in both; ids lie two floats to one."""
    one, two = (np.ascontiguousarray(v).reshape(len(v), -1).view(np.int64) for v in (x, y))
    out = np.zeros(len(one))
    for row, (a, b) in enumerate(zip(one, two, strict=True)):
        either = len(np.union1d(a, b))
        out[row] = 1 - len(np.intersect1d(a, b)) / either if either else 0.0
    return out
