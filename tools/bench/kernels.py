"""What the Triton kernels become on an H100: registers, spills and shared memory, by its compiler alone, without a GPU.

The functions that launch them are called on small CPU tensors, so each kernel is compiled for compute capability 9.0
with the types, alignments and options of a real launch; nothing is launched. ``ptxas`` and ``cuobjdump`` come with
Triton. A kernel whose tiles do not fit the registers of a thread shows here as a stack of kilobytes and minutes of
compiling. ``--quick`` compiles the heaviest kernels alone.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import typer

from tools.bench.harness import Figure, Result

LIMITS = {"registers": 255, "stack": 512, "shared": 227 * 1024}
"""Of a thread, and bytes of a program, on an H100; bytes that a thread may spill, which the first-level cache holds."""


def run(quick: bool, out: str | None = None) -> Result:
    """Three figures of each kernel, type and width; with ``out``, also a Markdown table in that file."""
    triton = _compiler()
    result, rows, began = Result({"triton": triton.__version__, "target": "sm_90"}), {}, time.perf_counter()
    for label, work in _launches(quick):
        with compiled() as kernels:
            work()
        for kernel in kernels:
            found = _usage(kernel, Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump")
            name = f"{kernel.metadata.name.strip('_')}_{label}"
            told = {"registers": found["REG"], "stack": found["STACK"], "shared": kernel.metadata.shared}
            for figure, value in told.items():  # of launches that differ in strides the worst
                key, most = f"{name}_{figure}", LIMITS[figure]
                before = result.figures.get(key, Figure(0.0)).value
                unit = "" if figure == "registers" else "bytes"
                result.figures[key] = Figure(max(value, before), unit, target=most, at_least=False)
            most_of = [int(result.figures[f"{name}_{figure}"].value) for figure in LIMITS]
            rows[name] = f"| {name} | {most_of[0]} | {most_of[1]} | {most_of[2] / 1024:.0f} KiB |"
    result.figures["wall"] = Figure(time.perf_counter() - began, "s")
    if out is not None:
        head = (
            "| kernel, type, width | registers | spilled bytes a thread | shared memory |\n|---|---|---|---|"
        )
        Path(out).write_text("\n".join([head, *rows.values()]) + "\n", encoding="utf-8")
    return result


def _compiler() -> Any:
    try:
        import triton
    except ImportError as error:
        raise typer.BadParameter("no Triton here; `pip install 'vista-cache[gpu]'` brings it") from error
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise typer.BadParameter("TRITON_INTERPRET=1 interprets kernels; unset it to compile them")
    if not list(Path(triton.__file__).parent.glob("backends/nvidia/bin/ptxas")):
        raise typer.BadParameter("this Triton has no ptxas; install it from PyPI for Linux")
    return triton


@contextmanager
def compiled() -> Iterator[list[Any]]:
    """Within it a launch only compiles, for an H100; the kernels that were asked for."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    card = SimpleNamespace(  # the parts of a driver that compiling asks
        get_current_target=lambda: GPUTarget("cuda", 90, 32),
        get_current_device=lambda: 0,
        get_current_stream=lambda device=0: 0,
    )
    found: list[Any] = []
    launch, before = JITFunction.run, driver._active

    def only_compile(self: Any, *args: Any, **given: Any) -> Any:
        found.append(launch(self, *args, **{**given, "warmup": True}))
        return found[-1]

    driver.set_active(card)
    JITFunction.run = only_compile
    try:
        yield found
    finally:
        JITFunction.run = launch
        driver._active = before


def _launches(quick: bool) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Each kernel's callers, forward and backward, on tensors of the shapes that the product has."""
    from vista.ops.crossing_triton import attend
    from vista.ops.qla_triton import piece_products, piece_sums

    bounds, decay = torch.tensor([0, 40, 70]), torch.zeros(2, dtype=torch.float64)

    def sums(dtype: torch.dtype, width: int, fade: torch.Tensor | None) -> None:
        x, y = (torch.zeros(70, 2, width, dtype=dtype, requires_grad=True) for _ in range(2))
        piece_sums(x, y, bounds, 40, fade).sum().backward()

    def products(dtype: torch.dtype, width: int) -> None:
        x = torch.zeros(70, 2, width, dtype=dtype, requires_grad=True)
        m = torch.zeros(2, 2, width, width, dtype=dtype, requires_grad=True)
        piece_products(x, m, bounds, 40).sum().backward()

    def attention(dtype: torch.dtype, width: int) -> None:
        q, v = (torch.zeros(70, 2, width, dtype=dtype, requires_grad=True) for _ in range(2))
        keys, values = (torch.zeros(2, 100, 2, width, dtype=dtype, requires_grad=True) for _ in range(2))
        own, bias = torch.zeros(70, 2, dtype=dtype), torch.zeros(2, 1, 100, dtype=dtype).expand(-1, 2, -1)
        attend(q, own, v, keys, values, bias, bounds, 40).sum().backward()

    def chunks(dtype: torch.dtype, width: int) -> None:
        sums(dtype, width, None)
        products(dtype, width)

    types = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
    for name, dtype in list(types.items())[: 1 if quick else 3]:
        for width in (64,) if quick else (32, 64, 128):
            yield f"{name}_{width}", partial(attention, dtype, width)
        if not quick:
            yield f"faded_{name}_64", partial(sums, dtype, 64, decay)
            yield f"{name}_64", partial(chunks, dtype, 64)
    if not quick:
        yield from _decodings()


def _decodings() -> Iterator[tuple[str, Callable[[], Any]]]:
    from cache_store import Group, RecordSchema
    from cache_store.torch import decode_triton
    from cache_store.torch.decode import RecordDecoder

    some = torch.tensor([0, 1, 2, 1, 0])
    for codec in decode_triton.KIND:
        schema = RecordSchema((Group("tokens", 4, 64, codec),))
        rows = torch.zeros(3, schema.row_bytes, dtype=torch.uint8)
        decoder = RecordDecoder(schema)
        fields = {name: decoder._field(rows, "tokens", name) for name in schema.fields("tokens")}
        into = torch.empty(5, 4, 64, dtype=torch.bfloat16)
        yield codec, partial(decode_triton.decode_group, fields, codec, decoder.log8, some, into)


def _usage(kernel: Any, cuobjdump: Path) -> dict[str, int]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [str(cuobjdump), "--dump-resource-usage", file.name]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in re.findall(r"(REG|STACK):(\d+)", told)}
