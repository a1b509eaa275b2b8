"""What a pool's file says of itself: its layout, checked, and the shapes that follow from it.

Beside them the CUDA IPC handle of a pool in device memory, written and read as numbers.
"""

from __future__ import annotations

import json
import mmap
import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vista.serving.pool_files import PoolError, read_own
from vista.stage2.context_kv import FIELDS, LAYERED

MAGIC = b"vista-kvpool 4"
AGAIN = "start the retrieving process again"
MAGIC_BYTES, LAYOUT_BYTES, NAME_BYTES, OWNER_BYTES = 24, 4_072, 64, 512

HEADER = np.dtype(
    [
        ("sequence", "<u8"),
        ("number", "<u8"),
        ("used", "<i8"),
        ("sum", "<i8"),
        ("length", "<i8"),
        ("recent", "<i8"),
        ("owner_bytes", "<i8"),
        ("generation_bytes", "<i8"),
        ("fingerprint_bytes", "<i8"),
        ("owner", "u1", (OWNER_BYTES,)),
        ("generation", "u1", (NAME_BYTES,)),
        ("fingerprint", "u1", (NAME_BYTES,)),
    ]
)
"""What is known of a cell; names are UTF-8 with their length beside them, -1 for none."""


def damaged(where: str, expected: str, found: object) -> PoolError:
    """What to raise of a pool's file that is not as its process left it."""
    return PoolError(f"{where}: expected {expected}, found {found}; {AGAIN}")


DTYPES = {name: field.dtype for name, field in FIELDS.items()}
STORED: dict[bool | str, torch.dtype] = {
    False: torch.float32,
    True: torch.float16,
    "bfloat16": torch.bfloat16,
}
"""``half`` of a layout: how keys and values are stored. Pools of before bfloat16 have the first two."""


_LETTERS = {
    "L": "layers", "H": "heads", "E": "head_width", "Q": "queries", "D": "width", "A": "slot_tokens", "S": "sequence",
    "M": "horizons",
}  # fmt: skip


def shapes_of(layout: dict, length: int, recent: int) -> dict[str, tuple[int, ...]]:
    """Shape per user of every tensor of a context with ``length`` tokens, ``recent`` of them events."""
    letters = {"T": length, "R": recent} | {letter: layout[name] for letter, name in _LETTERS.items()}
    return {name: tuple(letters[axis] for axis in field.axes) for name, field in FIELDS.items()}


def sizes_of(layout: dict, length: int, recent: int) -> dict[str, int]:
    """Bytes of every tensor in a cell, each padded to 8."""
    shapes, dtypes = shapes_of(layout, length, recent), dtypes_of(layout)
    return {n: -(-int(np.prod(s, dtype=np.int64)) * dtypes[n].itemsize // 8) * 8 for n, s in shapes.items()}


def dtypes_of(layout: dict) -> dict[str, torch.dtype]:
    """As stored; readers get :data:`DTYPES`."""
    return {**DTYPES, **dict.fromkeys(LAYERED, STORED[layout["half"]])}


def file_size(layout: dict, on_cpu: bool) -> int:
    """Bytes of a pool's file."""
    each = layout["slot_bytes"] if on_cpu else 0
    return MAGIC_BYTES + LAYOUT_BYTES + layout["slots"] * (HEADER.itemsize + each)


_NUMBERS = "layers heads head_width queries width slot_tokens sequence horizons seeds recent".split()
_MOST = {"slots": 1 << 40, "slot_bytes": 1 << 40} | dict.fromkeys(_NUMBERS, 1 << 24)
_DEVICE = re.compile(r"cpu|cuda(:[0-9]{1,3})?")


def check_layout(layout: object, path: Path) -> dict:
    """The layout, if it is one that a pool can have.

    Raises:
        PoolError
    """
    wanted = {*_MOST, "device", "half"}
    if not isinstance(layout, dict) or set(layout) != wanted:
        raise damaged(f"{path}, layout", f"{sorted(wanted)}", str(layout)[:200])
    for name, most in _MOST.items():
        if type(layout[name]) is not int or not 0 <= layout[name] <= most:
            expected = f"an integer from 0 to {most}"
            raise damaged(f"{path}, layout, {name}", expected, repr(layout[name])[:60])
    half = type(layout["half"]) is bool or layout["half"] == "bfloat16"
    if not half or not _DEVICE.fullmatch(str(layout["device"])):
        raise damaged(f"{path}, layout", "device and half", str(layout)[:200])
    fits = sum(sizes_of(layout, layout["seeds"] + layout["recent"] + 1, layout["recent"]).values())
    if layout["slots"] < 1 or layout["slot_bytes"] != fits:
        raise damaged(f"{path}, layout, slot_bytes", f"{fits}, as its shapes give", layout["slot_bytes"])
    return layout


def view_of(mapped: mmap.mmap, layout: dict) -> Tensor:
    flat = torch.frombuffer(mapped, dtype=torch.uint8, offset=file_size(layout, on_cpu=False))
    return flat.view(layout["slots"], layout["slot_bytes"])


_HANDLE = {"device": int, "storage_bytes": int, "storage_offset": int, "counter_offset": int, "sync": bool}
_BYTES = ("handle", "counter", "event")


def handle_of(payload: Tensor) -> bytes:
    """CUDA IPC handle of a device tensor as JSON: numbers, and bytes in hex; the reader maps the same memory."""
    from torch.multiprocessing.reductions import reduce_tensor

    facts = reduce_tensor(payload)[1][6:]
    device, handle, storage_bytes, storage_offset, _, counter, counter_offset, event, sync = facts
    numbers = dict(zip(_HANDLE, (device, storage_bytes, storage_offset, counter_offset, sync), strict=True))
    raw = {name: value.hex() for name, value in zip(_BYTES, (handle, counter, event), strict=True)}
    return json.dumps({**numbers, **raw}).encode()


def open_handle(path: Path, layout: dict) -> Tensor:
    """Map the memory that a handle names.

    Raises:
        PoolError: not such a handle, or the memory is gone.
    """
    from torch.multiprocessing.reductions import rebuild_cuda_tensor

    try:
        facts = json.loads(read_own(path, 1 << 16))
        wrong = [n for n, kind in _HANDLE.items() if type(facts[n]) is not kind or facts[n] < 0]
        raw = {name: bytes.fromhex(facts[name]) for name in _BYTES}
        shape = layout["slots"], layout["slot_bytes"]
        if wrong or facts["storage_bytes"] < shape[0] * shape[1] or any(len(b) > 4_096 for b in raw.values()):
            raise ValueError(f"fields {wrong or sorted(facts)} out of range")
        return rebuild_cuda_tensor(
            Tensor, shape, (shape[1], 1), 0, torch.UntypedStorage, torch.uint8, facts["device"], raw["handle"],
            facts["storage_bytes"], facts["storage_offset"], False, raw["counter"], facts["counter_offset"],
            raw["event"], facts["sync"],
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, RecursionError, RuntimeError, AssertionError) as error:
        raise damaged(f"{path}", "a handle of device memory", str(error)[:200]) from error
