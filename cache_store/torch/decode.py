"""Records to tokens in torch, on whichever device the bytes are; the twin of ``RecordSchema.decode``.

Equal bit for bit to the NumPy decoding in float32, on every device: each codec is exact but for the product of int8
and the product and sum of int4, and those are separate operations, each correctly rounded.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import os
from collections.abc import Sequence
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from cache_store.errors import SchemaError
from cache_store.format.quantize import Codec
from cache_store.format.record import PAGE_HEADER, RecordSchema

_DTYPES = {
    "<f4": torch.float32,
    "<f2": torch.float16,
    "i1": torch.int8,
    "u1": torch.uint8,
    "<u2": torch.bfloat16,
    "<i8": torch.int64,
}


class RecordDecoder(torch.nn.Module):
    """Decodes rows of ``Store.lookup_raw``.

    Args:
        schema: of the records.
        groups: names of the groups to decode, in the order they shall have; None for all.

    Attributes:
        slices: group name to its rows of ``[S, D]``.
        tokens, width: S and D of the groups chosen.

    Raises:
        SchemaError: a group that the schema does not have, or one named twice.
    """

    def __init__(self, schema: RecordSchema, groups: Sequence[str] | None = None) -> None:
        super().__init__()
        known = {g.name: g for g in schema.groups}
        names = list(known) if groups is None else list(groups)
        if not names or len(set(names)) != len(names) or not set(names) <= set(known):
            raise SchemaError(f"groups: expected distinct names among {list(known)}, found {names}")
        self.schema, self.groups = schema, tuple(known[name] for name in names)
        self.slices: dict[str, slice] = {}
        start = 0
        for g in self.groups:
            self.slices[g.name] = slice(start, start + g.tokens)
            start += g.tokens
        self.tokens, self.width = start, schema.width
        self.log8: Tensor
        self.register_buffer("log8", torch.from_numpy(_log8_values()), persistent=False)

    def forward(
        self, rows: Tensor, dtype: torch.dtype = torch.float32, inverse: Tensor | None = None
    ) -> Tensor:
        """Tokens ``[B, S, D]``, computed in float32 and then cast.

        Rows of zeros decode to zeros, in every codec. Whole numbers (codec ``int64``) are bits of two places each in
        float32, and zeros in any other type: :meth:`numbers` gives them as they are.

        Args:
            rows: uint8 [U, row_bytes].
            dtype: of the tokens.
            inverse: int64 [B], the row of each result; None where all are wanted once, in order.
        """
        many = len(rows) if inverse is None else len(inverse)
        kernel = _kernel(rows)
        if kernel and many:
            out = torch.empty((many, self.tokens, self.width), dtype=dtype, device=rows.device)
            for g in self.groups:
                if g.codec not in kernel.KIND:
                    part = torch.empty((len(rows), g.tokens, g.width), dtype=dtype, device=rows.device)
                    getattr(self, f"_{g.codec}")(rows, g.name, part)
                    out[:, self.slices[g.name]] = part if inverse is None else part[inverse]
                    continue
                fields = {name: self._field(rows, g.name, name) for name in self.schema.fields(g.name)}
                kernel.decode_group(fields, g.codec, self.log8, inverse, out[:, self.slices[g.name]])
            return out
        out = _empty((len(rows), self.tokens, self.width), dtype, rows.device)
        for g in self.groups if len(rows) else ():  # an empty tensor may have no strides to view by
            getattr(self, f"_{g.codec}")(rows, g.name, out[:, self.slices[g.name]])
        return out if inverse is None else out[inverse]

    def numbers(self, rows: Tensor, group: str) -> Tensor:
        """The whole numbers of a group of codec ``int64``, int64 [B, ceil(T * W / 2)]."""
        return self._field(rows, group, "values")

    def _int64(self, rows: Tensor, group: str, out: Tensor) -> None:
        if out.dtype == torch.float32:
            bits = self.numbers(rows, group).contiguous().view(torch.int32)
            out.view(torch.int32).copy_(bits[:, : out[0].numel()].view(out.shape))
        else:
            out.zero_()

    def _field(self, rows: Tensor, group: str, name: str) -> Tensor:
        """One field of every record as a view, ``[U, *shape]``."""
        base, shape, at = self.schema.field(group, name)
        code, start = base.str.lstrip("|"), PAGE_HEADER + at
        flat = rows[:, start : start + base.itemsize * math.prod(shape)]
        # Fields begin at multiples of 16 bytes and rows are multiples of 16, so a view always exists.
        return torch.unflatten(flat.view(_DTYPES[code]), 1, shape)

    def _float32(self, rows: Tensor, group: str, out: Tensor) -> None:
        out.copy_(self._field(rows, group, "values"))

    _float16 = _bfloat16 = _float32

    def _int8(self, rows: Tensor, group: str, out: Tensor) -> None:
        scale = self._field(rows, group, "scale").unsqueeze(-1)
        torch.mul(self._field(rows, group, "codes"), scale, out=out)

    def _int4(self, rows: Tensor, group: str, out: Tensor) -> None:
        packed = self._field(rows, group, "codes")
        codes = torch.stack([packed & 15, packed >> 4], dim=-1).flatten(-2).float()
        # Two operations on purpose: a fused multiply-add rounds once and would differ from the NumPy decoding.
        codes.mul_(self._field(rows, group, "scale").float().unsqueeze(-1))
        codes.add_(self._field(rows, group, "offset").float().unsqueeze(-1))
        tokens = self.slices[group].stop - self.slices[group].start
        out.copy_(torch.unflatten(codes.flatten(1)[:, : tokens * self.width], 1, (tokens, self.width)))

    def _log8(self, rows: Tensor, group: str, out: Tensor) -> None:
        out.copy_(self.log8[self._field(rows, group, "codes").int()])


def _kernel(rows: Tensor) -> ModuleType | None:
    """The kernel where it runs: on CUDA, or where Triton's interpreter was asked for; None where there is no Triton."""
    if rows.is_cuda or os.environ.get("TRITON_INTERPRET") == "1":
        with contextlib.suppress(ImportError):
            return importlib.import_module("cache_store.torch.decode_triton")
    return None


def _empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory for tokens; on the CPU from NumPy, which asks for huge pages where torch does not."""
    if device.type == "cpu" and dtype == torch.float32:
        return torch.from_numpy(np.empty(shape, np.float32))
    return torch.empty(shape, dtype=dtype, device=device)


def _log8_values() -> np.ndarray:
    """What each of the 256 codes of log8 stands for, float32 [256]."""
    codec = Codec("log8", 1, 256)
    record, out = np.zeros(1, codec.fields), np.empty((1, 1, 256), np.float32)
    record["codes"][0, 0] = np.arange(256)
    codec.decode(record, out)
    values: np.ndarray = out[0, 0]
    return values
