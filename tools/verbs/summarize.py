"""``vista summarize``: every user's history to summary tokens, published as one full generation."""

from __future__ import annotations

from typing import Annotated

import typer

from tools import runs
from tools.home import Home
from tools.options import (
    HOME,
    AddressOption,
    BeamArguments,
    CodecOption,
    DryRunOption,
    EngineOption,
    ExpireOption,
    GateOption,
    HomeOption,
    JsonOption,
    LineOption,
    MaxBytesOption,
    MemoryOption,
    ModelOption,
    ModeOption,
    NoGateOption,
    RunOption,
    StoreOption,
    WarehouseOption,
    WorkersOption,
    as_bytes,
    as_ms,
    beam_arguments,
    gate_bounds,
    pairs,
)
from tools.verbs.plan import show


def command(
    beam: BeamArguments = None,
    home: HomeOption = HOME,
    warehouse: WarehouseOption = None,
    model: ModelOption = None,
    store: StoreOption = None,
    run_dir: RunOption = None,
    line: LineOption = "main",
    codec: CodecOption = None,
    snapshot: Annotated[
        int | None, typer.Option(help="History snapshot.  [default: the current one]")
    ] = None,
    memory_events: MemoryOption = 262_144,
    max_bytes: MaxBytesOption = None,
    expire_after: ExpireOption = None,
    gate: GateOption = None,
    no_gate: NoGateOption = False,
    mode: ModeOption = "in_memory",
    workers: WorkersOption = 1,
    engine: EngineOption = "beam",
    address: AddressOption = None,
    threads: Annotated[int, typer.Option("--worker-threads", min=1, help="Torch threads per worker.")] = 1,
    device: Annotated[str, typer.Option(help="Torch device of the workers.")] = "cpu",
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> int:
    """Summarise every user's whole history and publish it as one full generation. One task per bucket."""
    from beam_jobs.generation import summarize

    at = Home(home)
    options = summarize.SummarizeOptions(
        warehouse=at.tables(warehouse),
        bundle=str(model or at.newest_model),
        store=str(store or at.store),
        run_dir=str(run_dir or at.new_run("summarize")),
        line=line,
        codecs=pairs(codec, "--codec"),
        snapshot=snapshot,
        max_events_in_memory=memory_events,
        threads=threads,
        max_bytes=as_bytes(max_bytes),
        expire_after_ms=as_ms(expire_after),
        gate=gate_bounds(home, gate, no_gate),
        device=device,
    )
    if dry_run:
        show(options, workers, json)
        return 0
    return runs.report(summarize.run(options, beam_arguments(beam, mode, workers, engine, address)), json)
