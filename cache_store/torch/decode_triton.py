"""Records to tokens in one pass on the device, as a Triton kernel; ``decode`` is the twin it equals bit for bit.

A program takes one row of the batch and a block of one group's values: it finds the record that the row shares with
others, reads the codes as they were stored, and writes the tokens in the dtype asked for. So a byte of payload is read
once and a token is written once: nothing between is kept in device memory, and a user given twice costs no copy of
decoded tokens.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from cache_store.format.quantize import GROUP

_BLOCK = 1024
"""Values that a program writes at once."""

_PLAIN, _INT8, _INT4, _LOG8 = 0, 1, 2, 3
KIND = {"float32": _PLAIN, "float16": _PLAIN, "bfloat16": _PLAIN, "int8": _INT8, "int4": _INT4, "log8": _LOG8}


@triton.jit
def _decode(
    codes, scale, offset, table, inverse, out,
    codes_row, scale_row, offset_row, out_row, size, width,
    KIND: tl.constexpr, SHARED: tl.constexpr, BLOCK_OF: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    record = row
    if SHARED:
        record = tl.load(inverse + row)
    if KIND == 2:  # two codes a byte, one scale and one offset per BLOCK_OF values
        packed = tl.load(codes + record * codes_row + at // 2, mask=inside, other=0).to(tl.int32)
        value = ((packed >> (4 * (at % 2))) & 15).to(tl.float32)
        value = value * tl.load(scale + record * scale_row + at // BLOCK_OF, mask=inside, other=0.0).to(
            tl.float32
        )
        value = value + tl.load(offset + record * offset_row + at // BLOCK_OF, mask=inside, other=0.0).to(
            tl.float32
        )
    elif KIND == 3:
        code = tl.load(codes + record * codes_row + at, mask=inside, other=0).to(tl.int32)
        value = tl.load(table + code, mask=inside, other=0.0)
    else:
        value = tl.load(codes + record * codes_row + at, mask=inside, other=0).to(tl.float32)
        if KIND == 1:
            value = value * tl.load(scale + record * scale_row + at // width, mask=inside, other=0.0)
    tl.store(out + row * out_row + at, value, mask=inside)


def decode_group(
    fields: dict[str, Tensor], codec: str, table: Tensor, inverse: Tensor | None, out: Tensor
) -> None:
    """Write the tokens of one group.

    Args:
        fields: of the records, each a view [U, *shape] with contiguous rows.
        codec: of the group.
        table: float32 [256], what each code of log8 stands for.
        inverse: int64 [B], the record of each row; None where row b is record b.
        out: [B, T, W], rows contiguous; every value is written.
    """
    codes = fields["values"] if "values" in fields else fields["codes"]
    scale, offset = fields.get("scale", codes), fields.get("offset", codes)
    size = out.shape[1] * out.shape[2]
    if not out.numel():
        return
    # Product and sum stay two operations, each rounded, as in the twin: no fused multiply-add.
    _decode[len(out), triton.cdiv(size, _BLOCK)](
        codes, scale, offset, table, codes if inverse is None else inverse, out,
        codes.stride(0), scale.stride(0), offset.stride(0), out.stride(0), size, out.shape[2],
        KIND=KIND[codec], SHARED=inverse is not None, BLOCK_OF=GROUP, BLOCK=_BLOCK, enable_fp_fusion=False,
    )  # fmt: skip
