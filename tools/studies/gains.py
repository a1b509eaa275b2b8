"""What the sides of a comparison of rankers are worth, with intervals over users; and what raw events would cost."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from vista.data.events import Events
from vista.stage1.clusters import company
from vista.training import metrics


def event_bytes(user: np.ndarray, item: np.ndarray, time: np.ndarray, users: int = 64) -> float:
    """What an event (item, second) takes under zstd, a user's history as one block; mean over the longest lives.

    Args:
        user, item, time: int64 [N], in order of (user, time); times in ms.
    """
    first = np.flatnonzero(np.diff(user, prepend=user[0] - 1))
    sizes = np.diff(np.append(first, len(user)))
    size = count = 0
    for u in np.argsort(-sizes)[:users]:
        rows = slice(first[u], first[u] + sizes[u])
        known, code = np.unique(item[rows], return_inverse=True)
        second = np.diff(time[rows] // 1000, prepend=time[rows][0] // 1000).astype(np.int32)
        columns = (np.diff(known, prepend=0).astype(np.int32), code.astype(np.uint16), second)
        size += len(pa.compress(b"".join(c.tobytes() for c in columns), codec="zstd", asbytes=True))
        count += int(sizes[u])
    return size / count


def other_vectors(
    kind: str, items: int, user: np.ndarray, item: np.ndarray, time: np.ndarray, seed: int = 0
) -> np.ndarray:
    """Item vectors float32 [items, 32] in the place of content; row 0 is no item.

    Args:
        kind: ``company``, what items occur near in the events given; ``random``.
        user, item, time: as for :func:`event_bytes`.
    """
    if kind == "random":
        vectors = np.random.default_rng(seed).normal(size=(items, 32)).astype(np.float32)
    else:
        _, lengths = np.unique(user, return_counts=True)
        events = Events.of(lengths, item=item, action=np.zeros(len(item), np.int64), time=time)
        known, found = company(events, width=32)
        vectors = np.zeros((items, 32), np.float32)
        vectors[known] = found.numpy()
    vectors[0] = 0
    return vectors


def judge(
    user: np.ndarray, label: np.ndarray, sides: dict[str, np.ndarray]
) -> dict[str, tuple[float, float, float]]:
    """AUC per request and normalised entropy of each side, and gains over ``without``; 95 % intervals over users.

    Args:
        user: [N].
        label: [N, C].
        sides: name to probabilities [seeds, N, C]; measures are means over the seeds.
    """
    n, c = label.shape
    offsets = np.arange(n + 1, dtype=np.int64) * c
    base = label.mean()
    entropy = -(base * np.log(base) + (1 - base) * np.log1p(-base))
    area, loss, found = {}, {}, {}
    for name, runs in sides.items():
        slates = [metrics.slate_metrics(p.ravel(), label.ravel(), offsets, ks=()) for p in runs]
        area[name] = np.mean([s["auc"] for s in slates], 0)
        p = np.clip(runs.astype(np.float64), 1e-7, 1 - 1e-7)
        loss[name] = -np.where(label > 0, np.log(p), np.log1p(-p)).mean((0, 2))
        kept = slates[0]["group"]
        found[f"auc_{name}"] = metrics.bootstrap(user[kept], area[name])
        found[f"ne_{name}"] = metrics.bootstrap(user, loss[name] / entropy)
    for name in [s for s in sides if s != "without"]:
        end = "" if name == "with" else f"_{name}"
        found[f"auc_gain{end}"] = metrics.bootstrap(user[kept], area[name] - area["without"])
        both = np.stack([loss[name], loss["without"]], 1)
        found[f"ne_gain{end}"] = metrics.bootstrap(user, both, statistic=lambda m: 1 - m[:, 0] / m[:, 1])
    return found
