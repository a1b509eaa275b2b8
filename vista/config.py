"""What a model is: frozen dataclasses that check themselves, one JSON text form, one fingerprint.

Every field that changes a result is here; nothing else is. Sizes are in tokens, widths in floats,
times in milliseconds.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import xxhash

from vista.errors import ConfigError
from vista.small_text import small_text

T = TypeVar("T")


MOST_LAYERS, MOST_CHUNK = 1_000, 1 << 20


def _check(ok: bool, where: str, expected: str, found: Any) -> None:
    if not ok:
        raise ConfigError(
            f"{where}: expected {expected}, found {found!r}; edit the configuration and run again"
        )


def _check_least(config: Any, part: str, **least: int) -> None:
    """Fields of a configuration that are not to be less than so much."""
    for name, low in least.items():
        found = getattr(config, name)
        _check(found >= low, f"{part}{name}", f"at least {low}" if low else "0 or more", found)


@dataclass(frozen=True)
class EmbeddingConfig:
    """Items and events as vectors (vista/embedding/encoders.py).

    Attributes:
        tables: hash tables per item; an item's vector is the concatenation of one row of each.
        rows: rows per table. Two items collide in all tables with probability rows ** -tables.
        content_width: width of content rows read beside the hashed rows (vista/embedding/content.py); 0 for none.
            ``vista train`` takes it from the tables.
        words_width: how much of that are words of texts and categories.
        surfaces: rows of the surface table; surface ids are taken modulo this.
    """

    tables: int = 2
    rows: int = 65_536
    content_width: int = 0
    words_width: int = 0
    surfaces: int = 64

    def __post_init__(self) -> None:
        _check_least(self, "embedding.", tables=1, rows=2, content_width=0, surfaces=1)
        words, most = self.words_width, self.content_width
        _check(0 <= words <= most, "embedding.words_width", "0 to embedding.content_width", words)


SIZES = {"whole": (1_920, 768), "half": (576, 1_152), "small": (320, 512), "tiny": (128, 272)}
"""Items, and clusters told (0: all), of records that fill 8, 4, 2 and 1 pages of 4 KiB at width 64."""


@dataclass(frozen=True)
class TokenConfig:
    """Exact tokens (vista/stage1/tokens.py): the items and clusters that matter to a user, each with its masses.

    By default 1,920 items (an id of 8 bytes, a byte for each of 3 masses, 3 for the newest touch) and the 768 heaviest
    of 4,096 clusters (a number of 2 bytes, 3 masses, 2 bytes for the newest touch) are 32,320 bytes with the header: a
    record fills 8 pages of 4 KiB.

    Attributes:
        items: K, items kept, the heaviest by recency-weighted mass; 0 turns the tokens off.
        clusters: counters of clusters, which every event reaches; 0 for none.
        half_lives_events: a mass halves after so many later events of the user; ``inf`` counts all. The first
            finite one decides which items are kept.
        sequence: of these, the tokens that stage 2's now token attends to, heaviest first.
        places: how many of them stand for clusters: what is in the history and no token of its own.
        last: of each item and cluster also its newest touch: how many events and hours ago; of items with which action.
        clusters_told: how many clusters a record holds, the heaviest, each with its number; 0, or as many as there
            are: all, in their order. States count all of them either way.
    """

    items: int = 1_920
    clusters: int = 4_096
    half_lives_events: tuple[float, ...] = (float("inf"), 2_048.0, 256.0)
    sequence: int = 256
    places: int = 64
    last: bool = True
    clusters_told: int = 768

    @staticmethod
    def named(size: str) -> TokenConfig:
        """A size by name; in a configuration file the name may stand in the place of the fields.

        Raises:
            ConfigError: no size has that name.
        """
        _check(size in SIZES, "tokens", f"one of {sorted(SIZES)}, or an object", size)
        items, told = SIZES[size]
        return TokenConfig(items=items, clusters_told=told)

    @property
    def horizons(self) -> int:
        return len(self.half_lives_events)

    @property
    def enabled(self) -> bool:
        return self.items > 0

    @property
    def told(self) -> int:
        """Clusters that a record holds with their numbers; 0 where it holds all, in their order."""
        return self.clusters_told if self.clusters_told < self.clusters else 0

    @property
    def bytes(self) -> int:
        """Of a record: an id of 8 bytes or a number of 2, a byte for every mass, three or two for the newest touch."""
        h, last = self.horizons, self.last
        cluster = self.told * (2 + h + 2 * last) or self.clusters * (h + 2 * last)
        return self.items * (8 + h + 3 * last) + cluster

    def __post_init__(self) -> None:
        _check_least(self, "tokens.", items=0, clusters=0)
        told = self.clusters_told
        fits = 0 <= told and (not self.told or self.clusters <= 1 << 16)
        _check(fits, "tokens.clusters_told", "0 for all, or how many, of at most 65536 clusters", told)
        lives, where = self.half_lives_events, "tokens.half_lives_events"
        fits = all(1 <= h <= 2.0**24 or h == float("inf") for h in lives)
        _check(fits, where, "1 to 2**24 events, or inf", lives)
        _check(any(h < float("inf") for h in lives), where, "at least one finite number", lives)
        _check(0 <= self.places <= self.sequence, "tokens.places", "0 to tokens.sequence", self.places)


@dataclass(frozen=True)
class SlotConfig:
    """Hashed slots (vista/stage1/slots.py): decayed masses in hashed buckets. Off by default: the exact tokens of
    :class:`TokenConfig` have no collisions. (3,210 buckets and 16 ``qla`` seeds were the record until version 0.1.)

    Attributes:
        rows: independent hash rows; a candidate reads one bucket of each.
        buckets: buckets per hash row; 0 turns slot tokens off.
        clusters: buckets addressed by the item's cluster; 0 for none.
        half_lives_days: time horizons; a mass halves after so many days. ``inf`` never decays.
        half_lives_events: count horizons; a mass halves after so many later events of the user.
    """

    rows: int = 2
    buckets: int = 0
    clusters: int = 4_096
    half_lives_days: tuple[float, ...] = (float("inf"), 30.0)
    half_lives_events: tuple[float, ...] = (256.0,)

    @property
    def horizons(self) -> int:
        return len(self.half_lives_days) + len(self.half_lives_events)

    @property
    def enabled(self) -> bool:
        return self.buckets > 0

    def __post_init__(self) -> None:
        _check_least(self, "slots.", rows=1, buckets=0, clusters=0)
        _check(self.horizons >= 1, "slots.half_lives_*", "at least one horizon", self.horizons)
        for h in self.half_lives_days + self.half_lives_events:
            _check(h > 0, "slots.half_lives_*", "positive", h)


@dataclass(frozen=True)
class SummarizerConfig:
    """Stage 1 (vista/stage1/summarizer.py).

    Attributes:
        kind: of seed tokens: ``qla``, quasi-linear attention, or ``places`` (vista/stage1/places.py).
        rows: what quasi-linear attention reads of an event: ``items``, the item alone, or ``events``, also action,
            surface and time, which is the paper's form. With ``events`` the tokens of all users become one in
            training: 7 % of a mean event vector tells one person from another, 95 % of a mean item vector.
        layers, heads: of the quasi-linear attention.
        chunk: C, events per causal chunk; 0 is the paper's full (bidirectional) form, which cannot resume.
        seeds: seed tokens; 0 turns them off.
        max_events: events of a user that are kept, the newest; 0 keeps all.
        half_lives_events: forgetting in events, repeated over the heads, or dealt out over the places in
            equal shares; ``inf`` keeps all.
        gradient_events: training sends gradients through so many events before a user's last cut, in whole
            chunks; 0 through all.
        checkpoint: training recomputes activations in the backward pass instead of keeping them.
        reconstruction: what the decoder of the reconstruction loss sees: ``causal``, the seeds and the items
            before (the paper's), or ``seeds``, the seeds alone.
        reconstruction_window: items of each history that the loss asks for.
    """

    kind: str = "qla"
    rows: str = "items"
    layers: int = 2
    heads: int = 2
    chunk: int = 256
    seeds: int = 0
    max_events: int = 0
    half_lives_events: tuple[float, ...] = (float("inf"),)
    gradient_events: int = 0
    checkpoint: bool = False
    reconstruction: str = "causal"
    reconstruction_window: int = 32

    def __post_init__(self) -> None:
        names = {
            "kind": ("qla", "places"),
            "rows": ("items", "events"),
            "reconstruction": ("causal", "seeds"),
        }
        for name, known in names.items():
            _check(getattr(self, name) in known, f"summarizer.{name}", f"one of {known}", getattr(self, name))
        _check(1 <= self.layers <= MOST_LAYERS, "summarizer.layers", f"1 to {MOST_LAYERS}", self.layers)
        _check(0 <= self.chunk <= MOST_CHUNK, "summarizer.chunk", f"0 to {MOST_CHUNK}", self.chunk)
        _check_least(self, "summarizer.", heads=1, seeds=0, max_events=0, gradient_events=0)
        lives = self.half_lives_events
        _check(len(lives) >= 1, "summarizer.half_lives_events", "at least one", lives)
        for h in self.half_lives_events:
            _check(h > 0, "summarizer.half_lives_events", "positive", h)
        window = self.reconstruction_window
        _check(window >= 2, "summarizer.reconstruction_window", "2 or more", window)


@dataclass(frozen=True)
class RankerConfig:
    """Stage 2 (vista/stage2/ranker.py).

    Attributes:
        layers, heads: of the context and crossing attention.
        recent: R, newest events read raw beside the summary.
        queries: retrieval query vectors per request.
        ages: candidates read how old a touch is as smooth features, and masses as shares of all the user did.
        cluster_ages: numbers that tell how old the newest touch of a candidate's cluster is, by events and hours: 4,
            logarithms and nearness; 10, nearness at four scales each; 20, smooth features as of items.
        direct: width of a small network from what candidates read straight to their logits; 0 for none.
        neighbours: clusters near its own whose counters a candidate reads; 0 for none.
        near: candidates also read the sequence of exact tokens (``tokens.sequence``), as a density. It costs more
            than all other readers together, and with the three above gains nothing that was measured.
    """

    layers: int = 2
    heads: int = 2
    recent: int = 32
    queries: int = 1
    ages: bool = True
    cluster_ages: int = 10
    direct: int = 64
    neighbours: int = 16
    near: bool = False

    def __post_init__(self) -> None:
        _check(1 <= self.layers <= MOST_LAYERS, "ranker.layers", f"1 to {MOST_LAYERS}", self.layers)
        _check(self.cluster_ages in (4, 10, 20), "ranker.cluster_ages", "4, 10 or 20", self.cluster_ages)
        _check_least(self, "ranker.", heads=1, recent=0, queries=1, direct=0, neighbours=0)


_READ_BEFORE = {"ages": False, "direct": 0, "neighbours": 0, "near": True}
"""What candidates read in models whose text does not say it."""


@dataclass(frozen=True)
class ModelConfig:
    """One model, both stages. Shapes follow from it alone; weights are drawn from ``seed``.

    Attributes:
        width: D of events, summary tokens and candidates.
        actions: names of the A actions, in the order of the bits of ``Events.action``.
    """

    width: int = 64
    actions: tuple[str, ...] = ("0", "1", "2")
    seed: int = 0
    embedding: EmbeddingConfig = field(default_factory=EmbeddingConfig)
    tokens: TokenConfig = field(default_factory=TokenConfig)
    slots: SlotConfig = field(default_factory=SlotConfig)
    summarizer: SummarizerConfig = field(default_factory=SummarizerConfig)
    ranker: RankerConfig = field(default_factory=RankerConfig)

    def __post_init__(self) -> None:
        _check(self.width >= 4 and self.width % 4 == 0, "width", "a multiple of 4", self.width)
        _check(1 <= len(self.actions) <= 31, "actions", "1 to 31 names", self.actions)
        _check(len(set(self.actions)) == len(self.actions), "actions", "distinct names", self.actions)
        tables = self.embedding.tables
        _check(self.width % tables == 0, "embedding.tables", "a divisor of width", tables)
        for part in ("summarizer", "ranker"):
            heads = getattr(self, part).heads
            _check(self.width % heads == 0, f"{part}.heads", f"a divisor of width {self.width}", heads)
        sizes = {
            "tokens.items": self.tokens.items,
            "summarizer.seeds": self.summarizer.seeds,
            "slots.buckets": self.slots.buckets,
        }
        _check(any(sizes.values()), ", ".join(sizes), "one of them above 0", sizes)


def to_dict(config: Any) -> dict[str, Any]:
    """Plain dict of a configuration dataclass; tuples become lists, infinity the string ``inf``."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, tuple):
            return [plain(v) for v in value]
        if isinstance(value, float) and value == float("inf"):
            return "inf"
        return value

    return plain(config)


def from_before(values: dict[str, Any]) -> dict[str, Any]:
    """Inverse of :func:`as_written`: a model's text of an older version (``values`` of its JSON) as it is meant now:
    candidates that read less; of before version 0.2 without exact tokens, seeds that read whole events."""
    ranker = _READ_BEFORE | values.get("ranker", {})
    waves = ranker.pop("cluster_waves", False)
    values = values | {"ranker": {"cluster_ages": 20 if waves else 4} | ranker}
    if "tokens" in values:
        return values | {"tokens": {"last": False, "clusters_told": 0} | values["tokens"]}
    return values | {"tokens": {"items": 0}, "summarizer": values.get("summarizer", {}) | {"rows": "events"}}


def from_dict(cls: type[T], values: dict[str, Any], where: str = "") -> T:
    """Configuration of class ``cls`` from a plain dict; missing fields take their defaults.

    Raises:
        ConfigError: unknown field, wrong type, or a value the class refuses.
    """
    hints = get_type_hints(cls)
    prefix = f"{where}." if where else ""
    unknown = sorted(set(values) - set(hints))
    _check(not unknown, where or cls.__name__, f"fields among {sorted(hints)}", unknown)

    def parse(hint: Any, value: Any, name: str) -> Any:
        if hint is TokenConfig and isinstance(value, str):
            return TokenConfig.named(value)
        if dataclasses.is_dataclass(hint):
            _check(isinstance(value, dict), name, "an object", value)
            return from_dict(hint, value, name)  # type: ignore[arg-type]
        if get_origin(hint) is tuple:
            _check(isinstance(value, list), name, "a list", value)
            return tuple(parse(get_args(hint)[0], v, name) for v in value)
        if hint is float:
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            _check(number or value == "inf", name, 'a number or "inf"', value)
            return float(value)
        if hint in (int, str, bool):
            _check(type(value) is hint, name, hint.__name__, value)
        return value

    return cls(**{name: parse(hints[name], value, prefix + name) for name, value in values.items()})


def to_text(config: Any) -> str:
    """The one text form: JSON, keys in field order, two-space indent, trailing newline."""
    return json.dumps(to_dict(config), indent=2, allow_nan=False) + "\n"


def from_text(cls: type[T], text: str) -> T:
    """Inverse of :func:`to_text`.

    Raises:
        ConfigError: not JSON, not an object, or refused by :func:`from_dict`.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"configuration is not JSON: {error}") from error
    _check(isinstance(values, dict), cls.__name__, "a JSON object", type(values).__name__)
    return from_dict(cls, values)


def from_file(cls: type[T], path: Path) -> T:
    """:func:`from_text` of a file.

    Raises:
        ConfigError: also where the file cannot be read as text.
    """
    try:
        return from_text(cls, small_text(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: expected a configuration as JSON, found {error}; name another --config"
        ) from error


def as_written(config: ModelConfig) -> Any:
    """The configuration as its text was in the oldest version that could say it: fingerprints of models and
    signatures of states that were made then stay what they were."""
    values = to_dict(config)
    if not config.embedding.words_width:
        del values["embedding"]["words_width"]
    if _READ_BEFORE.items() <= values["ranker"].items():
        for name in _READ_BEFORE:
            del values["ranker"][name]
    # no state depends on it: one of before goes on under the default that came after
    if values["ranker"].pop("cluster_ages") == 20:
        values["ranker"]["cluster_waves"] = True
    if not config.tokens.last:
        del values["tokens"]["last"]
    if not config.tokens.clusters_told:
        del values["tokens"]["clusters_told"]
    if not config.tokens.enabled and config.summarizer.rows == "events":
        del values["tokens"], values["summarizer"]["rows"]
    return values


def fingerprint(config: Any, *more: bytes) -> str:
    """32 hex digits, XXH3-128 over the canonical text form and any further bytes (weights, say)."""
    digest = xxhash.xxh3_128(json.dumps(to_dict(config), sort_keys=True).encode())
    for part in more:
        digest.update(part)
    return digest.hexdigest()
