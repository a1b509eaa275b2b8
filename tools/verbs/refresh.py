"""``vista refresh``: what came since the live generation, published as a delta over it."""

from __future__ import annotations

from typing import Annotated

import typer

from tools import console, runs
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
    parse_users,
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
    since: Annotated[
        int | None,
        typer.Option(help="Go on from this snapshot of the tables, not the parent's own."),
    ] = None,
    user: Annotated[
        list[str] | None,
        typer.Option("--user", help="Only this user, from its whole history. May be repeated."),
    ] = None,
    max_age_days: Annotated[
        float | None, typer.Option(min=0, help="Also recompute users summarised longer ago than this.")
    ] = None,
    max_depth: Annotated[
        int, typer.Option(min=1, help="Deltas over a full generation before compaction.")
    ] = 6,
    memory_events: MemoryOption = 262_144,
    follow: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="Do not end: look for new events this often, a delta each time there are; ^C ends.",
        ),
    ] = None,
    max_bytes: MaxBytesOption = None,
    expire_after: ExpireOption = None,
    gate: GateOption = None,
    no_gate: NoGateOption = False,
    mode: ModeOption = "in_memory",
    workers: WorkersOption = 1,
    engine: EngineOption = "beam",
    address: AddressOption = None,
    threads: Annotated[int, typer.Option("--worker-threads", min=1, help="Torch threads per worker.")] = 1,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> int:
    """Resume the users that changed from their stored states and publish a delta generation.

    Where it cannot go on from the live generation (none yet, another model, other codecs) it runs
    summarize and says so.
    """
    from beam_jobs.generation import refresh
    from vista.data.tables.warehouse import Warehouse

    at = Home(home)
    tables = at.tables(warehouse)
    kind = Warehouse(tables).open().user_kind
    options = refresh.RefreshOptions(
        warehouse=tables,
        bundle=str(model or at.model),
        store=str(store or at.store),
        run_dir=str(run_dir or (at.runs / "follow" if follow else at.new_run("refresh"))),
        line=line,
        codecs=pairs(codec, "--codec"),
        since=since,
        users=tuple(parse_users(user, kind)) if user else None,
        max_age_ms=None if max_age_days is None else int(max_age_days * 86_400_000),
        max_depth=max_depth,
        max_events_in_memory=memory_events,
        threads=threads,
        max_bytes=as_bytes(max_bytes),
        expire_after_ms=as_ms(expire_after),
        gate=gate_bounds(home, gate, no_gate),
    )
    if dry_run:
        show(options, workers, json)
        return 0
    arguments = beam_arguments(beam, mode, workers, engine, address)
    if follow is None:
        return runs.report(refresh.run(options, arguments), json)
    code = 0
    for record in refresh.follow(options, arguments, every_s=follow):
        code = max(code, runs.report(record, json))
        console.note(f"looking again every {follow:g} s; ^C ends")
    return code
