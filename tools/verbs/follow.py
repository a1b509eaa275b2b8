"""``vista follow``: events from a source into the tables and the live summaries, within seconds."""

from __future__ import annotations

import signal
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tools import console
from tools.invocation import asked_to_stop
from tools.log_options import given_reading
from tools.options import DryRunOption, ExpireOption, JsonOption, LineOption, WholeHome, as_ms, pairs

if TYPE_CHECKING:
    from beam_jobs.follow.service import Turn


def command(
    source: Annotated[
        str,
        typer.Argument(
            help="A folder in which logs appear, redis://HOST?stream=NAME (entries with a field `event`), or "
            "kafka://BROKER/TOPIC. Messages are JSON objects, one event each."
        ),
    ],
    *,
    at: WholeHome,
    run_dir: Annotated[
        Path | None, typer.Option("--run-dir", help="Folder of its runs.  [default: HOME/runs/follow]")
    ] = None,
    line: LineOption = "main",
    column: Annotated[
        list[str] | None,
        typer.Option("--column", metavar="MEANING=NAME", help="As in `vista ingest`. May be repeated."),
    ] = None,
    time_unit: Annotated[str | None, typer.Option(help="Of times that are numbers: ms, s, us or ns.")] = None,
    layout: Annotated[
        str | None, typer.Option(help="Layout of the messages or files; `vista layouts` lists them.")
    ] = None,
    buckets: Annotated[
        int | None, typer.Option(min=1, help="Of tables that are not there yet.  [default: 16]")
    ] = None,
    action: Annotated[
        list[str] | None,
        typer.Option("--action", help="The whole vocabulary, in order. Found in the events by default."),
    ] = None,
    batch_events: Annotated[
        int, typer.Option(min=1, help="Most events of a turn; up to 16 times as many while it lags behind.")
    ] = 20_000,
    batch_seconds: Annotated[
        float, typer.Option(min=0.01, help="Seconds that a turn waits for a first event.")
    ] = 1.0,
    expire_after: ExpireOption = None,
    max_depth: Annotated[
        int, typer.Option(min=1, help="Deltas over a full generation before some are folded.")
    ] = 16,
    keep: Annotated[int, typer.Option(min=1, help="Earlier generations kept beside the live one.")] = 2,
    keep_minutes: Annotated[
        float, typer.Option(min=0, help="Snapshots and files of the tables younger than this stay.")
    ] = 15.0,
    deliver: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL",
            help="Send each changed record there as well: redis://HOST?stream=NAME, redis://HOST?prefix=NAME, "
            "kafka://BROKER/TOPIC, flight://HOST:PORT/NAME. May be repeated.",
        ),
    ] = None,
    kafka_config: Annotated[
        Path | None,
        typer.Option(
            "--kafka-config",
            metavar="FILE",
            help="Settings of librdkafka for kafka:// URLs, NAME=VALUE a line: security.protocol, sasl.username, ...",
        ),
    ] = None,
    turns: Annotated[
        int | None, typer.Option(min=1, help="End after so many turns that did something.")
    ] = None,
    workers: Annotated[
        int, typer.Option(min=1, help="Processes that resume users: this one, or so many children of it.")
    ] = 1,
    threads: Annotated[int, typer.Option("--worker-threads", min=1, help="Torch threads.")] = 1,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> None:
    """Take events as they come: commit them to the tables once, resume the users they touch, publish a delta.

    Goes on until it is stopped: by SIGTERM at the end of its turn with code 0, by ^C at once. Killed at any moment and
    started again, it reads on from where the tables are.
    Tidies as it goes: merges small files, folds deltas, prunes what nothing needs.
    """
    import torch

    from beam_jobs.follow.service import FollowOptions, Service
    from beam_jobs.follow.sources import open_source

    torch.set_num_threads(threads)
    log = given_reading(at, layout, columns=pairs(column, "--column"), time_unit=time_unit)
    reading: dict[str, Any] = {"log": log}
    reading |= {} if buckets is None else {"num_buckets": buckets}
    reading |= {"actions": tuple(action)} if action else {}
    options = FollowOptions(
        warehouse=at.tables,
        bundle=str(at.model),
        store=str(at.store),
        run_dir=str(run_dir or at.runs / "follow"),
        line=line,
        deliver=tuple(deliver or ()),
        kafka_config=str(kafka_config or ""),
        reading=reading,
        workers=workers,
        batch_events=batch_events,
        batch_s=batch_seconds,
        expire_after_ms=as_ms(expire_after),
        max_depth=max_depth,
        keep=keep,
        keep_s=keep_minutes * 60,
    )
    if kafka_config and not any(url.startswith("kafka://") for url in (source, *options.deliver)):
        raise typer.BadParameter(
            "--kafka-config: expected a kafka:// URL to read from or to deliver to, found none"
        )
    read_from = open_source(source, options.kafka_config)
    if dry_run:
        from beam_jobs.follow.service import POSITION
        from vista.data.tables.warehouse import Warehouse

        tables = Warehouse(options.warehouse)
        plan = {
            "source": source, "tables": str(options.warehouse), "model": options.bundle, "store": options.store,
            "from": tables.open().fact(POSITION + read_from.name) if tables.exists() else "",
            "expire after days": expire_after, "reads": log.to_json() if log is not None else None,
        }  # fmt: skip
        return console.told("would follow", plan, json)
    service = Service(options, read_from)
    if not json:
        console.note(f"following {source} from {service.position or 'its beginning'}; ^C ends")
    with asked_to_stop(signal.SIGTERM) as stop:
        for turn in service.turns(lambda: not stop.is_set()):
            console.json_line(turn.as_dict()) if json else console.note(_line(turn))
            if turns is not None and turn.number >= turns:
                return


def _line(turn: Turn) -> str:
    count = Counter(turn.counts)
    said = (
        (True, f"turn {turn.number}: {count['events_written']:,} events"),
        (count["dead_rows"], f"{count['dead_rows']:,} set aside"),
        (turn.generation, f"{count['users']:,} users live in {turn.generation}"),
        (count["expired"], f"{count['expired']:,} left out"),
        (count["delivered"], f"{count['delivered']:,} records delivered"),
        (turn.lag_s is not None, f"{turn.lag_s or 0:.1f} s after the oldest arrived"),
    )
    return ", ".join([*(words for holds, words in said if holds), *turn.tidied])
