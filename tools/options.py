"""Options that several verbs share, spelled once."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from tools.home import HOME, Home, holds_bundle


@dataclass(frozen=True)
class OptionGroup:
    """Options that are one value: what a parameter ``name: Annotated[Value, OptionGroup(make)]`` of a verb stands for.

    Attributes:
        make: gives the value; its parameters are the options.
        names: those of its parameters that the verb offers; of none it offers all.
    """

    make: Callable[..., Any]
    names: tuple[str, ...] = ()

    def parameters(self) -> list[inspect.Parameter]:
        """Those of ``make`` that are offered."""
        known = inspect.signature(self.make, eval_str=True).parameters
        return [known[name] for name in self.names or known]


def places(
    home: Annotated[
        Path, typer.Option(help="Folder of warehouse/, model/, store/ and runs/, unless named one by one.")
    ] = HOME,
    warehouse: Annotated[
        str | None,
        typer.Option(
            help="Folder of the tables, or a .json file with the properties of a PyIceberg catalog.  "
            "[default: HOME/warehouse]"
        ),
    ] = None,
    model: Annotated[Path | None, typer.Option(help="Model bundle.  [default: HOME/model]")] = None,
    store: Annotated[Path | None, typer.Option(help="Cache store.  [default: HOME/store]")] = None,
) -> Home:
    """A home, and what is named beside it."""
    return Home(home, warehouse=warehouse, model=model, store=store)


HomeAlone = Annotated[Home, OptionGroup(places, ("home",))]
HomeOfTables = Annotated[Home, OptionGroup(places, ("home", "warehouse"))]
HomeOfModel = Annotated[Home, OptionGroup(places, ("home", "warehouse", "model"))]
HomeOfStore = Annotated[Home, OptionGroup(places, ("home", "store"))]
HomeOfData = Annotated[Home, OptionGroup(places, ("home", "warehouse", "store"))]
WholeHome = Annotated[Home, OptionGroup(places)]

RunOption = Annotated[
    Path | None,
    typer.Option(
        "--run-dir",
        help="Directory of this run; name an interrupted one to go on.  [default: a new one in HOME/runs]",
    ),
]
LineOption = Annotated[str, typer.Option("--line", help="Line of generations in the store.")]
MemoryOption = Annotated[
    int,
    typer.Option(
        "--memory-events", min=1, help="Events one worker holds at a time, 200 bytes each; see `vista plan`."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON line instead of a table.")]
ExpireOption = Annotated[
    float | None,
    typer.Option(
        "--expire-after",
        metavar="DAYS",
        min=0.001,
        help="Leave out users without events for so many days; a new event brings one back, whole.",
    ),
]
MaxBytesOption = Annotated[
    str | None,
    typer.Option(
        "--max-bytes",
        metavar="BYTES",
        help="Refuse to begin what would write more than this (500M, 20G), so far as it can be told before.  [default: "
        "what the disk has]",
    ),
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done; change nothing.")]
BeamArguments = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="-- BEAM OPTIONS",
        help="Everything after -- goes to Beam untouched, e.g. `-- --runner=FlinkRunner --flink_master=HOST`.",
    ),
]


@dataclass(frozen=True)
class Runner:
    """What runs the tasks of a job."""

    mode: Annotated[
        str, typer.Option(help="Local runner: in_memory, multi_threading or multi_processing.")
    ] = "in_memory"
    workers: Annotated[
        int, typer.Option(min=1, help="Local workers: processes, unless --mode says threads.")
    ] = 1
    engine: Annotated[
        str, typer.Option(help="What runs the tasks: beam, spark, ray or dask (docs/operations.md).")
    ] = "beam"
    address: Annotated[
        str | None,
        typer.Option(
            help="Of the cluster: spark://HOST:PORT, HOST:PORT of Ray's head, tcp://HOST:PORT of Dask's scheduler."
        ),
    ] = None

    def arguments(self, given: Sequence[str] | None = None) -> list[str]:
        """The runner's arguments: what the user gave after ``--``, or the local runner of ``--mode``; or a cluster's.

        Raises:
            typer.BadParameter: options of the local runner beside those of another.
        """
        from beam_jobs.run.engines import engine_args
        from beam_jobs.run.runner import local_args

        elsewhere = self.engine != "beam" or self.address
        if (elsewhere or given) and (self.mode != "in_memory" or self.workers != 1):
            text = "--mode and --workers are of the local runner; leave them out with"
            raise typer.BadParameter(f"{text} {'--engine' if elsewhere else '-- ...'}")
        if elsewhere:
            return engine_args(self.engine, self.address, given or ())
        if given:
            return list(given)
        local = self.mode == "in_memory" and self.workers > 1
        return local_args("multi_processing" if local else self.mode, self.workers)


RunnerOptions = Annotated[Runner, OptionGroup(Runner)]


@dataclass(frozen=True)
class SummaryJob:
    """What summarize and refresh are told alike."""

    run_dir: RunOption = None
    line: LineOption = "main"
    codec: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GROUP=CODEC",
            help="How a group of tokens (seeds, slots) is stored: float32, float16, bfloat16, int8, int4 or log8. May "
            "be repeated.",
        ),
    ] = None
    memory_events: MemoryOption = 262_144
    max_bytes: MaxBytesOption = None
    expire_after: ExpireOption = None
    gate: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="Bounds of the publish gate, as TOML.  [default: HOME/gate.toml, or what is built in]",
        ),
    ] = None
    no_gate: Annotated[bool, typer.Option("--no-gate", help="Go live whatever the gate would say.")] = False
    threads: Annotated[int, typer.Option("--worker-threads", min=1, help="Torch threads per worker.")] = 1

    def options(self, at: Home) -> dict[str, Any]:
        """The fields that ``SummarizeOptions`` and ``RefreshOptions`` have in common; not yet ``run_dir``."""
        from beam_jobs.generation.gate import bounds

        own = at.root / "gate.toml"
        return {
            "warehouse": at.tables, "store": str(at.store), "line": self.line,
            "codecs": pairs(self.codec, "--codec"), "max_events_in_memory": self.memory_events,
            "threads": self.threads, "max_bytes": as_bytes(self.max_bytes),
            "expire_after_ms": as_ms(self.expire_after),
            "gate": None if self.no_gate else bounds(self.gate or (own if own.exists() else None)),
        }  # fmt: skip


SummaryOptions = Annotated[SummaryJob, OptionGroup(SummaryJob)]


def as_ms(days: float | None) -> int | None:
    """Days as milliseconds."""
    return None if days is None else int(days * 86_400_000)


def as_bytes(text: str | None) -> int | None:
    """``20G`` as a number of bytes."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+)([KMGT]?)B?", text.strip().upper())
    if found is None:
        raise typer.BadParameter(f"--max-bytes takes a number of bytes such as 500M or 20G, found {text!r}")
    return int(found[1]) << 10 * " KMGT".index(found[2] or " ")


def there(at: Home) -> Home:
    """The same home, if what was named beside it is there; only a place that is HOME's own may be empty.

    Raises:
        typer.BadParameter
    """
    store, model, warehouse = at.named_store, at.named_model, at.named_warehouse
    if store is not None and not (store / "FORMAT").exists():
        raise typer.BadParameter(f"--store: no store at {store}; `vista summarize --store {store}` makes one")
    if model is not None and not holds_bundle(model):
        raise typer.BadParameter(f"--model: no bundle at {model}; `vista train --model {model}` makes one")
    if warehouse is not None:
        from vista.data.tables.warehouse import Warehouse

        if not Warehouse(at.tables).exists():
            remedy = f"`vista ingest --warehouse {warehouse}` makes them"
            raise typer.BadParameter(f"--warehouse: no tables at {warehouse}; {remedy}")
    return at


def alone(context: typer.Context, form: str, *with_these: str) -> None:
    """Refuse what was given beside a form of a verb in which it would say nothing; vista.toml may hold it.

    Raises:
        typer.BadParameter
    """
    for option in context.command.params:
        source = context.get_parameter_source(option.name or "")
        if source is not None and source.name == "COMMANDLINE" and option.name not in with_these:
            name = option.opts[-1] if option.param_type_name == "option" else f"{option.name} of this command"
            raise typer.BadParameter(f"{name} says nothing with {form}; leave it out")


def split_beam(words: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """Positional words and, from the first that starts with ``--``, the arguments for Beam."""
    words = list(words or [])
    at = next((i for i, word in enumerate(words) if word.startswith("--")), len(words))
    return words[:at], words[at:]


EXAMPLES = {
    "--column": "timestamp_ms=event_time",
    "--impression-column": "position=rank",
    "--item-column": "name=title",
    "--constant": "surface=web",
    "--weight": "like=1",
}
"""Of options that take names with values, those in which an empty one is a mistake."""


def pairs(given: Sequence[str] | None, option: str) -> dict[str, str]:
    """``NAME=VALUE`` words of a repeated option as a dict."""
    example, values = f"for example {option} {EXAMPLES.get(option, 'NAME=VALUE')}", dict[str, list[str]]()
    for word in given or ():
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise typer.BadParameter(f"{option} takes NAME=VALUE, found {word!r}; {example}")
        values.setdefault(name, []).append(value)
    for name, of in sorted(values.items()):
        if len(of) > 1:
            once = f"expected once, for example {option} {name}={of[0]}"
            raise typer.BadParameter(f"{option} {name}=... given twice ({', '.join(of)}); {once}")
    for name, (value,) in values.items():
        if not value.strip() and option in EXAMPLES:
            raise typer.BadParameter(f"{option} {name}=: expected a value, found none; {example}")
    return {name: value for name, (value,) in values.items()}


def parse_users(words: Sequence[str], kind: str) -> list[int] | list[str]:
    """User ids from the command line, as the store's or the tables' kind (``int64`` or ``string``) has them."""
    if kind == "string":
        return list(words)
    wrong = [w for w in words if not re.fullmatch(r"-?[0-9]+", w) or not -(2**63) <= int(w) < 2**63]
    if wrong:
        raise typer.BadParameter(f"users here are int64 numbers; found {wrong[0]!r}")
    return [int(word) for word in words]
