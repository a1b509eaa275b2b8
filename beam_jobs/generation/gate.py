"""The publish gate: a generation that is outside its bounds does not go live, and is kept for looking at.

    shards ──enter──▶ generation that no line names ──checks──▶ inside: the line's pointer
                                                        └─────▶ outside: line NAME-refused, exit code 4

Bounds are a TOML file of the names below (``vista summarize --gate FILE``, by default ``HOME/gate.toml``); what it
leaves out has its default. ``vista promote GENERATION`` takes what was refused live by hand.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from beam_jobs.errors import OptionsError
from cache_store import Store
from cache_store.change.compare import compare, floats, open_generation
from cache_store.change.fold import fold
from cache_store.errors import StoreError
from cache_store.format import lines
from vista.small_text import small_json, small_text

REFUSED = "-refused"
"""Added to a line's name: the line of what was refused."""


@dataclass(frozen=True)
class Bounds:
    """What a generation must keep to.

    Attributes:
        sample: users whose records are read, at most.
        max_not_finite: share of them with NaN or infinity in their tokens.
        min_rms, max_rms, max_outside: root mean square of a user's tokens, and the share that may lie outside.
        max_empty: share without events.
        max_dead_letters: share of the users that the run had to write.
        max_gone: share of the live generation's users who are not in the new one.
        max_drift: median drift against the live generation (``cache_store.change.compare``), of the group that moved
            most; None does not look. Nor does it where the model is another.
        canaries: users that must be there, with events and finite tokens.
        quality: least value by name of a figure on held-out requests, of the bundle or its last `vista evaluate`.
        worse_than_chance: False refuses a model that is shown to rank worse than chance (its gain's interval, below 0).
    """

    sample: int = 2_048
    max_not_finite: float = 0.0
    min_rms: float = 1e-9
    max_rms: float = 1e6
    max_outside: float = 0.01
    max_empty: float = 0.5
    max_dead_letters: float = 0.2
    max_gone: float = 0.5
    max_drift: float | None = None
    canaries: tuple[int | str, ...] = ()
    quality: Mapping[str, float] = field(default_factory=dict)
    worse_than_chance: bool = False


@dataclass(frozen=True)
class Check:
    """One comparison with a bound."""

    name: str
    found: float | str
    bound: float | str
    ok: bool

    def __str__(self) -> str:
        value = f"{self.found:.4g}" if isinstance(self.found, float) else self.found
        return f"{self.name}: expected {self.bound}, found {value}"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


_RIGHT: dict[str, Callable[[Any], bool]] = {
    "worse_than_chance": lambda value: isinstance(value, bool),
    "canaries": lambda value: isinstance(value, list) and all(isinstance(v, (int, str)) for v in value),
    "quality": lambda value: isinstance(value, dict) and all(map(_is_number, value.values())),
}


def bounds(file: str | Path | None) -> Bounds:
    """Bounds of a file; the defaults for None.

    Raises:
        OptionsError: not TOML, an unknown name, or a value of another kind.
    """
    if file is None:
        return Bounds()
    try:
        given = tomllib.loads(small_text(file))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise OptionsError(
            f"{file}: expected bounds as TOML, found {error}; see docs/operations.md"
        ) from error
    known = {f.name: f.default for f in dataclasses.fields(Bounds)}
    for name, value in given.items():
        if name not in known:
            raise OptionsError(
                f"{file}: expected one of {', '.join(known)}; found {name!r}; see docs/operations.md"
            )
        if not _RIGHT.get(name, _is_number)(value):
            raise OptionsError(
                f"{file}: {name}: found {value!r}, which is of another kind; see docs/operations.md"
            )
    if "canaries" in given:
        given["canaries"] = tuple(given["canaries"])
    return Bounds(**given)


def judge(
    store: Store, generation: str, line: str, limits: Bounds, bundle: Path, expected: int, dead: int
) -> list[Check]:
    """Every check of a generation that is not live yet.

    Args:
        line: with whose live generation it is compared, if there is one.
        expected, dead: users the run had to write, and those it could not.

    Raises:
        StoreError: it cannot be read.
    """
    found = _records(store, generation, limits)
    if expected:
        found.append(_most("dead_letters", dead / expected, limits.max_dead_letters))
    pointer = lines.read_pointer(store.layout, line)
    if pointer is not None and pointer.live != generation:
        found += _against(store, pointer.live, generation, limits)
    return found + _quality(bundle, limits)


def _records(store: Store, generation: str, limits: Bounds) -> list[Check]:
    snapshot = open_generation(store.layout, generation)
    users: list[Any] = []
    share = -(-limits.sample // store.format.num_shards)
    for shard in range(store.format.num_shards):
        here = fold(snapshot.chain, shard).users
        users += here[np.random.default_rng(shard).permutation(len(here))[:share]].tolist()
    checks: list[Check] = []
    if users:
        read = snapshot.lookup(users)
        numbers = read.tokens[:, floats(snapshot.schema)]
        finite = np.isfinite(numbers).all((1, 2))
        checks.append(_most("not_finite", float((~finite).mean()), limits.max_not_finite))
        rms = np.sqrt((np.nan_to_num(numbers).astype(np.float64) ** 2).mean((1, 2)))
        outside = (rms < limits.min_rms) | (rms > limits.max_rms)
        checks.append(_most("outside", float(outside.mean()), limits.max_outside))
        checks.append(_most("empty", float((read.event_count == 0).mean()), limits.max_empty))
    if limits.canaries:
        read = snapshot.lookup(list(limits.canaries))
        well = (read.event_count > 0) & np.isfinite(read.tokens[:, floats(snapshot.schema)]).all((1, 2))
        lost = [str(user) for user, fine in zip(limits.canaries, well, strict=True) if not fine]
        checks.append(Check("canaries", ", ".join(lost) or "all there", "all there", not lost))
    return checks


def _against(store: Store, live: str, generation: str, limits: Bounds) -> list[Check]:
    try:
        moved = compare(store.layout, live, generation, limits.sample)
    except StoreError:  # other groups of tokens, or a live generation that is damaged: nothing to be like
        return []
    found = [_most("gone", moved.gone / max(moved.users[0], 1), limits.max_gone)]
    if limits.max_drift is not None and moved.same_model and moved.drift:
        found.append(_most("drift", max(d[1] for d in moved.drift.values()), limits.max_drift))
    return found


def _quality(bundle: Path, limits: Bounds) -> list[Check]:
    figures = _figures(bundle)
    found = []
    for name, least in limits.quality.items():
        value = figures.get(name)
        ok = value is not None and value >= least
        found.append(Check(name, "nothing" if value is None else float(value), f"{least} or more", ok))
    high = figures.get("ranking.gain.high")
    if not limits.worse_than_chance and high is not None and figures.get("ranking.auc", 1.0) <= 0.5:
        text = f"AUC {figures['ranking.auc']:.3f}, gain at most {high:+.3f}"
        found.append(Check("chance", text, "not worse than chance", high >= 0))
    return found


def _figures(bundle: Path) -> dict[str, float]:
    """Figures of a bundle: of its last evaluation, if that was of this model, over those of its training."""
    from vista.bundle import read_meta

    meta, mark = read_meta(bundle)
    figures = dict(meta.metrics)
    try:
        path = bundle.with_name(f"{bundle.name}.training") / "evaluation.json"
        found = small_json(path)
        if found["fingerprint"] == mark:
            figures |= {k: m["value"] for k, m in found["measures"].items() if m["value"] is not None}
            gain = found["measures"].get("ranking.gain") or {}
            figures |= {} if gain.get("high") is None else {"ranking.gain.high": gain["high"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return {k: v for k, v in figures.items() if v == v}  # a figure that could not be computed is no figure


def _most(name: str, found: float, bound: float) -> Check:
    return Check(name, found, f"at most {bound:g}", found <= bound)
