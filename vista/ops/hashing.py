"""One 64-bit mixer for item ids, the same numbers in numpy and in torch.

SplitMix64's finaliser (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators", Figure 16)
over ``id + salt * golden ratio``. It decides rows of the embedding tables and buckets of the slot memory, so
it is part of the format of a model: changing it makes another model.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

_GOLDEN = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB
_MASK = (1 << 64) - 1


def _signed(value: int) -> int:
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


def mix_numpy(item: np.ndarray, salt: int) -> np.ndarray:
    """uint64 hash of int64 ids, any shape."""
    salted = np.ascontiguousarray(item, np.int64).view(np.uint64) + np.uint64((salt * _GOLDEN) & _MASK)
    return finalised(salted)


def finalised(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser of uint64, any shape: a bijection on 64 bits."""
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(_FIRST)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(_SECOND)
    return x ^ (x >> np.uint64(31))


def mix_torch(item: torch.Tensor, *salts: int) -> torch.Tensor:
    """The same 64 bits as :func:`mix_numpy`, held in int64 (torch has no unsigned shift), [...] -> [..., salts]."""
    import torch  # noqa: PLC0415 - who hashes arrays need not load it

    def folded(x: torch.Tensor, by: int) -> torch.Tensor:
        return (x >> by).bitwise_and_((1 << (64 - by)) - 1).bitwise_xor_(x)

    x = torch.empty((*item.shape, len(salts)), dtype=torch.int64, device=item.device)
    for column, salt in zip(x.unbind(-1), salts, strict=True):
        torch.add(item.long(), _signed(salt * _GOLDEN), out=column)
    x = folded(x, 30).mul_(_signed(_FIRST))
    x = folded(x, 27).mul_(_signed(_SECOND))
    return folded(x, 31)


def bucket_numpy(item: np.ndarray, salt: int, buckets: int) -> np.ndarray:
    """int64 in [0, buckets): the upper 32 bits of the hash, modulo ``buckets``."""
    return ((mix_numpy(item, salt) >> np.uint64(32)) % np.uint64(buckets)).astype(np.int64)


def bucket_torch(item: torch.Tensor, salt: int, buckets: int) -> torch.Tensor:
    """As :func:`bucket_numpy`, on tensors."""
    return buckets_torch(item, (salt,), buckets)[..., 0]


def buckets_torch(item: torch.Tensor, salts: Iterable[int], buckets: int) -> torch.Tensor:
    """As :func:`bucket_numpy`, on tensors and by several salts: [...] -> [..., salts]."""
    upper = mix_torch(item, *salts) >> 32
    if buckets & (buckets - 1) == 0 and buckets <= 1 << 32:  # a division takes ten times as long
        return upper.bitwise_and_(buckets - 1)
    return upper.bitwise_and_(0xFFFFFFFF).remainder_(buckets)
