"""A trained model as a directory that is complete or not there.

    BUNDLE/
      config.json           ModelConfig, its one text form
      weights.safetensors   every parameter and buffer of VistaModel
      items.parquet         catalogue: item_id int64 ascending, name string, surface int32, events int64
      bundle.json           format, fingerprint, action and surface names, metrics, what it was trained on
      READY                 empty, written last

Built under a temporary name beside its place, every file fsynced, then renamed in one step: a bundle that can
be seen under its name is whole. The fingerprint covers configuration and weights (XXH3-128), so summaries,
index and pool made by one model can refuse another's.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vista.config import ModelConfig, fingerprint, from_before, from_dict, to_text
from vista.data.events import whole
from vista.data.logs.values import hash_strings
from vista.errors import BundleError, ConfigError, DataError, FingerprintMismatch
from vista.new_items import NewItems
from vista.small_text import building, small_json, small_text

if TYPE_CHECKING:
    import torch

    from vista.model import VistaModel

FORMAT = "vista-bundle 1"
VECTORS = "vectors.npz"
"""Item vectors for readers of the store that have no model; bundles of before version 0.2 have none."""

FILES = ("config.json", "weights.safetensors", "items.parquet", "bundle.json", "READY")
ITEMS = pa.schema(
    [("item_id", pa.int64()), ("name", pa.string()), ("surface", pa.int32()), ("events", pa.int64())]
)


@dataclass(frozen=True)
class Meta:
    """What a bundle knows beside its weights.

    Attributes:
        user_kind: ``int64`` or ``string``, of the tables it was trained on.
        actions, surfaces: names in the order of their numbers; ``actions`` repeats ``ModelConfig.actions``.
        metrics: of the last validation, by name.
        training: the training configuration and where it stopped, for the record.
        table_snapshot: history snapshot it was trained on, if known.
        weights: action to what it is worth in a score, where that was told.
    """

    user_kind: str = "int64"
    actions: tuple[str, ...] = ()
    surfaces: tuple[str, ...] = ()
    metrics: dict[str, float] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    table_snapshot: int | None = None
    weights: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Bundle:
    """A loaded bundle. ``items()`` reads the catalogue when asked.

    Attributes:
        new_items: what ``vista items refresh`` found since training; None where it was not run.
    """

    path: Path
    model: VistaModel
    config: ModelConfig
    fingerprint: str
    meta: Meta
    new_items: NewItems | None = None

    @property
    def catalogue(self) -> str:
        """Which items came after training: "" for none. What is made of the catalogue (an index) is of this one."""
        return "" if self.new_items is None else self.new_items.mark

    def items(self) -> pa.Table:
        """The catalogue (schema ``ITEMS``) with the new items, ascending by ``item_id``.

        Raises:
            BundleError: the file is not readable Parquet of that schema.
        """
        trained = read_items(self.path / "items.parquet")
        return trained if self.new_items is None else self.new_items.over(trained)

    def encode(
        self,
        items: Sequence[int | str] | None = None,
        actions: Sequence[str | Sequence[str] | int] | None = None,
        surfaces: Sequence[str | int] | None = None,
    ) -> dict[str, np.ndarray]:
        """One's own names as the columns of ``Events.of``: what ``vista ingest`` makes of them.

        Args:
            items: N ids. Numbers stay; strings are hashed, also those that the catalogue does not know.
            actions: N names, or for an event of several actions their names in a list; a number is a bit mask.
            surfaces: N names, or numbers where the logs number their surfaces.

        Returns:
            ``item`` int64 [N], ``action`` int32 [N] and ``surface`` int32 [N], those that were given.

        Raises:
            DataError: an action or surface that the model was not trained with, or a bare string for a sequence.
        """
        found: dict[str, np.ndarray] = {}
        for name, given in (("items", items), ("actions", actions), ("surfaces", surfaces)):
            if isinstance(given, (str, bytes)):
                raise DataError(f"{name}: expected a sequence of names, found the bare string {given!r}")
        if items is not None:
            strings = [isinstance(item, str) for item in items]
            if any(strings) and not all(strings):
                raise DataError("items: expected all numbers or all strings, found both")
            hashed = bool(strings) and strings[0]
            found["item"] = hash_strings(list(items)) if hashed else whole("items", items)
        if actions is not None:
            found["action"] = whole("actions", [self._mask(given) for given in actions], np.int32)
        if surfaces is not None:
            known = self.meta.surfaces
            numbers = [_number(s, known, "surface") if isinstance(s, str) else s for s in surfaces]
            found["surface"] = whole("surfaces", numbers, np.int32)
        return found

    def _mask(self, given: str | Sequence[str] | int) -> int:
        if isinstance(given, (int, np.integer)):
            return int(given)
        names = [given] if isinstance(given, str) else given
        return sum(1 << _number(name, self.meta.actions, "action") for name in {*names})

    def names(self, items: Sequence[int] | np.ndarray) -> list[str | None]:
        """Names of items by the model's ids, None for those that the catalogue does not know.

        Raises:
            BundleError: as :meth:`items`. DataError: what is no number.
        """
        table, items = self.items(), whole("items", items)
        ids = table["item_id"].to_numpy()
        at = np.minimum(np.searchsorted(ids, items), max(len(ids) - 1, 0))
        found = table["name"].take(pa.array(at)).to_pylist() if len(ids) else [None] * len(at)
        known = (ids[at] == items) if len(ids) else np.zeros(len(at), bool)
        return [name if there else None for name, there in zip(found, known, strict=True)]


def _damaged(where: object, expected: str, found: object) -> BundleError:
    return BundleError(f"{where}: expected {expected}, found {found}; run `vista train` again")


def _number(name: str, known: tuple[str, ...], what: str) -> int:
    try:
        return known.index(name)
    except ValueError:
        raise DataError(
            f"{what}: expected one of {', '.join(known) or 'none, they are numbers'}; found {name!r}; the model "
            f"learns another with the next `vista train`"
        ) from None


def model_fingerprint(config: ModelConfig | dict[str, Any], weights: dict[str, torch.Tensor]) -> str:
    """32 hex digits over the configuration and every tensor's name, dtype, shape and bytes, in name order."""
    import torch

    def parts() -> Iterator[bytes]:
        for name in sorted(weights):
            value = weights[name].detach().cpu().contiguous()
            yield f"{name}|{value.dtype}|{tuple(value.shape)}|".encode()
            yield value.reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b""

    return fingerprint(config, *parts())


def items_table(
    item_id: np.ndarray, surface: np.ndarray, events: np.ndarray, name: list[str] | None = None
) -> pa.Table:
    """A catalogue of schema ``ITEMS``, sorted by ``item_id``; without names an item is called by its
    number."""
    order = np.argsort(item_id, kind="stable")
    names = [str(i) for i in item_id] if name is None else name
    return pa.table(
        {
            "item_id": np.asarray(item_id, np.int64)[order],
            "name": pa.array(names, pa.string()).take(pa.array(order)),
            "surface": np.asarray(surface, np.int32)[order],
            "events": np.asarray(events, np.int64)[order],
        },
        schema=ITEMS,
    )


def read_items(path: Path) -> pa.Table:
    """Read a catalogue.

    Raises:
        BundleError: missing, not Parquet, or of another schema.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise _damaged(path, "a Parquet catalogue", error) from error
    if not table.schema.equals(ITEMS):
        wanted = f"columns {ITEMS.names} of types {[str(t) for t in ITEMS.types]}"
        found = f"{table.schema.names} of {[str(t) for t in table.schema.types]}"
        raise _damaged(path, wanted, found)
    return table


def save(path: str | Path, model: VistaModel, meta: Meta, items: pa.Table) -> Path:
    """Write a bundle at ``path``, which must not exist; returns the path.

    Raises:
        BundleError: something is already there, or ``items`` has another schema than ``ITEMS``.
    """
    from safetensors.torch import save_file

    path = Path(path)
    if path.exists():
        raise BundleError(
            f"{path}: expected no file or folder of that name, found one; name another by `vista train --model`"
        )
    if not items.schema.equals(ITEMS):
        raise BundleError(
            f"items: expected schema {ITEMS.names}, found {items.schema.names}; run `vista ingest` again"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = _weights(model)
    mark = model_fingerprint(model.config, weights)
    with building(path) as folder:
        (folder / "config.json").write_text(to_text(model.config), encoding="utf-8")
        save_file(weights, str(folder / "weights.safetensors"), metadata={"fingerprint": mark})
        pq.write_table(items, folder / "items.parquet")
        publish_vectors(folder / VECTORS, model, items)
        description = {
            "format": FORMAT,
            "fingerprint": mark,
            "user_kind": meta.user_kind,
            "actions": list(meta.actions),
            "surfaces": list(meta.surfaces),
            "table_snapshot": meta.table_snapshot,
            # JSON has no NaN: a metric that could not be computed is null.
            "metrics": {k: (float(v) if np.isfinite(v) else None) for k, v in meta.metrics.items()},
            "training": meta.training,
            "weights": meta.weights,
        }
        text = json.dumps(description, indent=2, allow_nan=False)
        (folder / "bundle.json").write_text(text + "\n", "utf-8")
        (folder / "READY").touch()
        # safetensors makes its file for its owner alone; who may read a bundle is for the umask to say
        os.chmod(folder / "weights.safetensors", (folder / "READY").stat().st_mode & 0o777)
        for name in (*FILES, VECTORS):
            _fsync(folder / name)
        _fsync(folder)
        os.rename(folder, path)
        _fsync(path.parent)
    return path


def load(
    path: str | Path, device: str | torch.device = "cpu", expect: str | None = None, serve: bool = False
) -> Bundle:
    """Read a bundle, rebuild its model in evaluation mode and verify its fingerprint.

    Args:
        expect: fingerprint it must have (of the store it is to serve, say); None takes any.
        serve: with what is known of items that came after training (``vista items refresh``), for retrieval and
            ranking; summaries are made without.

    Raises:
        BundleError: not a bundle, incomplete, of another format, or damaged.
        FingerprintMismatch: whole, but not the model ``expect`` names.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(path).absolute()  # the catalogue is read from it later, wherever the process is then
    meta, mark = read_meta(path)
    try:
        text = small_text(path / "config.json")
        config = from_dict(ModelConfig, from_before(json.loads(text)))
    except (ConfigError, OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        raise BundleError(f"{path}/config.json: {error}; run `vista train` again") from error
    try:
        weights = load_file(str(path / "weights.safetensors"))
    except (SafetensorError, OSError) as error:
        raise _damaged(f"{path}/weights.safetensors", "safetensors", error) from error
    # As written: a field that came after the bundle takes its default and is no damage.
    found = model_fingerprint(json.loads(text), weights)
    if found != mark:
        raise BundleError(
            f"{path}: expected fingerprint {mark} (bundle.json), found {found} from configuration and weights: a "
            f"file was changed or damaged; restore it or run `vista train` again"
        )
    if expect is not None and expect != mark:
        raise FingerprintMismatch(
            f"{path}: expected the model {expect}, found {mark}; summarise again with this model (`vista summarize`) "
            f"or load the bundle that made the store"
        )
    try:
        model = _built(config, weights)
    except (RuntimeError, ValueError, TypeError, OverflowError, MemoryError, IndexError) as error:
        found = f"some that none can have ({str(error)[:120]})"
        raise _damaged(f"{path}/config.json", "the sizes of a model", found) from error
    try:
        missing, unexpected = model.load_state_dict(weights, strict=False)
        own = _weights(model)
        absent = {name for name in missing if name in own and own[name].numel()}
        if absent or unexpected:
            raise RuntimeError(f"missing {sorted(absent)}, unexpected {sorted(unexpected)}")
    except RuntimeError as error:
        expected = "the tensors of this version's model"
        raise _damaged(f"{path}/weights.safetensors", expected, error) from error
    model = model.to(device).eval()
    new = NewItems.read(path, mark) if serve else None
    if new is not None:
        new.apply(model)
    return Bundle(path, model, config, mark, meta, new)


def read_meta(path: str | Path) -> tuple[Meta, str]:
    """What bundle.json says, and the fingerprint, without loading weights.

    Raises:
        BundleError: not a bundle, incomplete, or of another format.
    """
    path = Path(path)
    _readable(path)
    missing = [name for name in FILES if not (path / name).is_file()]
    if missing:
        found = sorted(p.name for p in path.iterdir()) if path.is_dir() else "no such folder"
        raise BundleError(
            f"{path}: expected a bundle, missing {missing}, found {found}; make one with `vista train`"
        )
    try:
        description = small_json(path / "bundle.json")
        version = description["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(f"{path}/bundle.json", "a JSON object", repr(error)) from error
    if version != FORMAT:
        raise BundleError(
            f"{path}: expected format {FORMAT!r}, found {version!r}; run `vista train` with this version"
        )
    try:
        meta = Meta(
            user_kind=str(description["user_kind"]),
            actions=tuple(description["actions"]),
            surfaces=tuple(description["surfaces"]),
            metrics={k: float("nan") if v is None else float(v) for k, v in description["metrics"].items()},
            training=dict(description["training"]),
            table_snapshot=description["table_snapshot"],
            weights={str(a): float(w) for a, w in description.get("weights", {}).items()},
        )
        return meta, str(description["fingerprint"])
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise BundleError(
            f"{path}/bundle.json: field missing or of another type: {error!r}; run `vista train` again"
        ) from error


def publish_vectors(file: Path | BinaryIO, model: VistaModel, items: pa.Table) -> None:
    """Unit vectors of the catalogue's items and of the clusters: what attends to summaries without the model
    (``cache_store.torch.sequence.ItemVectors``)."""
    import torch

    ids = items["item_id"].to_numpy()
    with torch.no_grad():
        vectors = model.items.vectors(ids, np.float16)
        cluster = np.full(len(ids), -1, np.int32)
        if model.config.tokens.clusters and model.config.tokens.enabled:
            found = model.tokens.cluster(torch.from_numpy(ids.copy()).to(model.items.weight.device))
            cluster = found.cpu().numpy().astype(np.int32)
        places = model.tokens.cluster_vectors.detach().half().cpu().numpy()
    np.savez(file, ids=ids, vectors=vectors, cluster=cluster, places=places)


def _built(config: ModelConfig, weights: Mapping[str, torch.Tensor]) -> VistaModel:
    """The model, with weights of its own; sizes that the file has no weights for take no memory.

    Raises:
        ValueError
    """
    import torch
    from torch.overrides import TorchFunctionMode

    from vista.model import VistaModel

    held = sum(tensor.numel() for tensor in weights.values())
    makers = {torch.empty, torch.zeros, torch.ones, torch.randn, torch.rand, torch.full, torch.eye}

    class Bounded(TorchFunctionMode):
        left = 4 * held + (1 << 20)  # buffers and what is made on the way, too

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func in makers and args:
                size = args[:1] if func is torch.full else args
                size = args[0] if isinstance(args[0], (tuple, list)) else size
                self.left -= math.prod(size) * (size[0] if func is torch.eye and len(size) == 1 else 1)
                if self.left < 0:
                    raise ValueError(f"a tensor of {tuple(size)}, the file has {held} numbers in all")
            return func(*args, **(kwargs or {}))

    with Bounded():
        model = VistaModel(config)
    wanted = dict(model.named_parameters())
    for name, parameter in wanted.items():
        if name in weights and weights[name].shape != parameter.shape:
            raise ValueError(f"{name}: {tuple(parameter.shape)}, the file has {tuple(weights[name].shape)}")
    absent = sum(parameter.numel() for name, parameter in wanted.items() if name not in weights)
    if absent > held:
        raise ValueError(f"{absent} numbers that the file does not have")
    return model


def _weights(model: VistaModel) -> dict[str, torch.Tensor]:
    """Tensors of the model by name, copies on the host; a tensor that several parts share appears once."""
    found: dict[str, torch.Tensor] = {}
    seen: set[tuple[int, tuple[int, ...]]] = set()
    for name, value in model.state_dict(keep_vars=True).items():
        mark = (value.data_ptr(), tuple(value.shape))
        if value.numel() and mark in seen:
            continue
        seen.add(mark)
        found[name] = value.detach().cpu().contiguous().clone()
    return found


def _readable(path: Path) -> None:
    """Raise BundleError where this user may not read the folder or a file of it."""
    wanted = [(path, os.R_OK | os.X_OK), *((path / name, os.R_OK) for name in FILES)]
    for part, how in wanted:
        try:
            os.stat(part)
            denied = not os.access(part, how)
        except PermissionError:
            denied = True
        except OSError:
            continue  # what is not there is told by whoever needs it
        if denied:
            raise BundleError(
                f"{part}: expected a file that user {os.getuid()} may read, found permission denied; run as the user "
                f"who ran `vista train`, or let others read it (chmod -R a+rX {path})"
            )


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
