"""Codecs: float32 tokens ``[n, T, W]`` to bytes and back. The bit-exact definition is in docs/format.md.

| codec    | bytes per token of width W  | error |
|----------|-----------------------------|-------|
| float32  | 4 W                         | none |
| float16  | 2 W                         | 2^-11 relative; finite values up to 65504 |
| bfloat16 | 2 W                         | 2^-8 relative; the range of float32 |
| int8     | W + 4                       | half a step; step = largest magnitude of the token / 127 |
| int4     | W / 2 + 4 per 32 values     | half a step; step = range of the 32 values / 15 |
| log8     | W                           | 4.7 % relative from 2^-11.875 to 2^19.875; zero and powers of two exact |
| int64    | 4 W                         | none: a whole number in the bits of two places, not to be calculated with |

All are vectorised over the batch. Encoding is deterministic: equal tokens give equal bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cache_store.native import library as native

GROUP = 32
"""Values that share one scale and one offset in int4, counted along the flattened token block."""

LOG8_BIAS = 96
LOG8_STEPS = 8
"""Code c >= 1 of log8 stands for 2 ** ((c - LOG8_BIAS) / LOG8_STEPS)."""


def _log8_tables() -> tuple[np.ndarray, np.ndarray]:
    codes = np.arange(256, dtype=np.float64)
    decode = np.exp2((codes - LOG8_BIAS) / LOG8_STEPS).astype(np.float32)
    decode[0] = 0.0
    # The code depends on the upper 16 bits of the float32 alone, judged at the middle of their interval; not on
    # the sign (only -0.0 comes, see `refused`), so the table is there twice.
    with np.errstate(all="ignore"):
        middle = ((np.arange(1 << 15, dtype=np.uint32) << 16) | 0x8000).view(np.float32).astype(np.float64)
        code = np.rint(LOG8_STEPS * np.log2(middle)) + LOG8_BIAS
    encode = np.clip(np.nan_to_num(code, nan=0, posinf=255, neginf=0), 0, 255).astype(np.uint8)
    return np.tile(encode, 2), decode


_LOG8_BLOCK = 8
_LOG8_ENCODE, _LOG8_DECODE = _log8_tables()
_PAIR = np.arange(1 << 16)
_LOG8_PAIRS = np.stack([_LOG8_DECODE[_PAIR & 255], _LOG8_DECODE[_PAIR >> 8]], axis=1).view(np.uint64)[:, 0]


@dataclass(frozen=True)
class Codec:
    """One way of writing a token block.

    Attributes:
        name: as in the manifest.
        fields: name to (dtype, shape) of what one record holds, in order.
    """

    name: str
    tokens: int
    width: int

    @property
    def fields(self) -> list[tuple[str, str, tuple[int, ...]]]:
        t, w = self.tokens, self.width
        blocks = -(-t * w // GROUP)
        every: dict[str, list[tuple[str, str, tuple[int, ...]]]] = {
            "float32": [("values", "<f4", (t, w))],
            "float16": [("values", "<f2", (t, w))],
            "bfloat16": [("values", "<u2", (t, w))],
            "int8": [("scale", "<f4", (t,)), ("codes", "i1", (t, w))],
            "int4": [
                ("scale", "<f2", (blocks,)),
                ("offset", "<f2", (blocks,)),
                ("codes", "u1", (blocks, GROUP // 2)),
            ],
            "log8": [("codes", "u1", (t, w))],
            "int64": [("values", "<i8", ((t * w + 1) // 2,))],
        }
        return every[self.name]

    def refused(self, tokens: np.ndarray) -> np.ndarray:
        """bool [n]: records that this codec cannot store (float32 [n, T, W])."""
        if self.name == "int64":  # any bits are a number
            return np.zeros(len(tokens), bool)
        flat = tokens.reshape(len(tokens), self.tokens * self.width)
        low, high = flat.min(axis=1), flat.max(axis=1)  # NaN carries through both
        limit = {"float16": 65504.0, "int4": 65504.0}.get(self.name, float(np.finfo(np.float32).max))
        if self.name == "bfloat16":
            limit = 3.3895314e38
        wrong: np.ndarray = ~((low >= (0.0 if self.name == "log8" else -limit)) & (high <= limit))
        return wrong

    def encode(self, tokens: np.ndarray, into: np.ndarray) -> None:
        """Write float32 [n, T, W] into a structured array [n] that has :attr:`fields`."""
        encoder = getattr(self, f"_encode_{self.name}")
        encoder(np.ascontiguousarray(tokens, np.float32), into)

    def decode(self, record: np.ndarray, out: np.ndarray, streamed: bool = False) -> None:
        """Write the tokens of a structured array [n] into ``out``, float32 [n, T, W], each [T, W] contiguous.

        Args:
            streamed: past the processor's caches, where compiled code does it; for more than they hold.
        """
        if native.library is not None and self.name in native.CODECS:
            codes = record["values" if self.name == "float16" else "codes"]
            scale = record["scale"] if self.name == "int8" else None
            return native.library.decode(self.name, codes, scale, _LOG8_DECODE, out, streamed)
        getattr(self, f"_decode_{self.name}")(record, out)

    def _encode_float32(self, tokens: np.ndarray, into: np.ndarray) -> None:
        into["values"] = tokens

    def _decode_float32(self, record: np.ndarray, out: np.ndarray) -> None:
        out[...] = record["values"]

    def _encode_int64(self, tokens: np.ndarray, into: np.ndarray) -> None:
        bits = np.zeros((len(tokens), 2 * into["values"].shape[1]), np.int32)
        places = self.tokens * self.width
        bits[:, :places] = tokens.reshape(len(tokens), places).view(np.int32)
        into["values"] = bits.view(np.int64)

    def _decode_int64(self, record: np.ndarray, out: np.ndarray) -> None:
        # as integers all the way: bits of some numbers are signalling NaNs
        bits = record["values"].view(np.int32)[:, : self.tokens * self.width]
        out.view(np.int32)[...] = bits.reshape(out.shape)

    _encode_float16 = _encode_float32

    def _decode_float16(self, record: np.ndarray, out: np.ndarray) -> None:
        # Widening with the sign, moving up by 13 and masking puts the 16 bits where float32 has them; scaling by
        # 2^112 then corrects the exponent. Exact for every finite half, denormals included, and several times faster
        # than NumPy's own conversion.
        bits = out.view(np.int32)
        np.left_shift(record["values"].view(np.int16), 13, out=bits, dtype=np.int32, casting="unsafe")
        np.bitwise_and(bits, np.int32(-0x70002000), out=bits)
        np.multiply(out, np.float32(2.0**112), out=out)

    def _encode_bfloat16(self, tokens: np.ndarray, into: np.ndarray) -> None:
        bits = tokens.view(np.uint32)
        into["values"] = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16

    def _decode_bfloat16(self, record: np.ndarray, out: np.ndarray) -> None:
        np.left_shift(record["values"], 16, out=out.view(np.uint32), casting="unsafe", dtype=np.uint32)

    def _encode_int8(self, tokens: np.ndarray, into: np.ndarray) -> None:
        scale = np.abs(tokens).max(axis=2) / np.float32(127)
        with np.errstate(divide="ignore", invalid="ignore"):
            codes = np.rint(tokens / scale[:, :, None])
        into["scale"] = scale
        into["codes"] = np.clip(np.nan_to_num(codes, nan=0.0), -127, 127)

    def _decode_int8(self, record: np.ndarray, out: np.ndarray) -> None:
        out[...] = record["codes"]
        out *= record["scale"][:, :, None]

    def _encode_int4(self, tokens: np.ndarray, into: np.ndarray) -> None:
        n, size = len(tokens), self.tokens * self.width
        blocks = -(-size // GROUP)
        flat: np.ndarray = np.empty((n, blocks * GROUP), np.float32)
        flat[:, :size] = tokens.reshape(n, size)
        flat[:, size:] = flat[:, size - 1 : size]
        flat = flat.reshape(n, blocks, GROUP)
        low = flat.min(axis=2)
        offset = low.astype(np.float16)
        scale = ((flat.max(axis=2) - low) / np.float32(15)).astype(np.float16)
        with np.errstate(divide="ignore", invalid="ignore"):
            codes = np.rint(
                (flat - offset.astype(np.float32)[:, :, None]) / scale.astype(np.float32)[:, :, None]
            )
        codes = np.clip(np.nan_to_num(codes, nan=0.0, posinf=0.0, neginf=0.0), 0, 15).astype(np.uint8)
        into["scale"] = scale
        into["offset"] = offset
        into["codes"] = codes[:, :, 0::2] | (codes[:, :, 1::2] << 4)

    def _decode_int4(self, record: np.ndarray, out: np.ndarray) -> None:
        n, size = len(record), self.tokens * self.width
        packed = record["codes"]
        codes = np.empty((*packed.shape, 2), np.float32)
        codes[..., 0] = packed & 15
        codes[..., 1] = packed >> 4
        values = codes.reshape(n, packed.shape[1], GROUP)
        values *= record["scale"].astype(np.float32)[:, :, None]
        values += record["offset"].astype(np.float32)[:, :, None]
        out[...] = values.reshape(n, packed.shape[1] * GROUP)[:, :size].reshape(out.shape)

    def _encode_log8(self, tokens: np.ndarray, into: np.ndarray) -> None:
        # The upper half of a float32 is its place in the table; a block of records at a time stays in cache.
        upper = tokens.view("<u2")[..., 1::2]
        for a in range(0, len(tokens), _LOG8_BLOCK):
            block = slice(a, a + _LOG8_BLOCK)
            into["codes"][block] = np.take(_LOG8_ENCODE, upper[block], mode="clip")

    def _decode_log8(self, record: np.ndarray, out: np.ndarray) -> None:
        codes = record["codes"]
        if self.width % 2:
            out[...] = _LOG8_DECODE[codes]
        else:  # two codes at a time
            np.take(_LOG8_PAIRS, codes.view("<u2"), out=out.view(np.uint64), mode="clip")


CODECS = ("float32", "float16", "bfloat16", "int8", "int4", "log8", "int64")
