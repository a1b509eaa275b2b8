"""The command line ``vista``: its verbs, and how errors become exit codes (docs/operations.md)."""

from __future__ import annotations

import sys
import traceback
from typing import Annotated

import typer

from tools import console
from tools.verbs import VERBS, load

app = typer.Typer(
    name="vista",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Lifelong histories as fixed-size sequence features: tables, model, summaries, store, serving.",
)


INTERRUPTED = 130


@app.callback()
def _options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the stack trace of an error.")] = False,
    threads: Annotated[
        int,
        typer.Option("--threads", min=1, help="Torch threads of this process; more is often slower."),
    ] = 1,
) -> None:
    context.obj = {"debug": debug, "threads": threads}


# an int64 user may be negative, so a word like -17 is a user and no option
_TAKE_NEGATIVE = {"ignore_unknown_options": True}
for _name, _section in VERBS.items():
    _settings = _TAKE_NEGATIVE if _name in ("lookup", "recommend", "forget") else {}
    app.command(_name, rich_help_panel=_section, context_settings=_settings)(load(_name))


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; exits with the code of docs/operations.md."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        code = app(args=arguments, standalone_mode=False)
        if code == INTERRUPTED:  # what typer makes of Ctrl-C
            console.note("stopped; a job goes on where it was with the same command and its --run-dir")
    except typer.Exit as done:
        sys.exit(done.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        sys.exit(141)
    except Exception as error:
        if "--debug" in arguments:
            traceback.print_exc()
        known = hasattr(error, "exit_code")
        usage = getattr(error, "format_message", None)  # a typer usage error, whichever click it stands on
        console.err.print(f"[bold red]{'usage' if usage else type(error).__name__}:[/] ", end="")
        console.err.print(usage() if usage else str(error), highlight=False, markup=False)
        if usage:
            verb = next((a for a in arguments if a in VERBS), "")
            console.note(f"Try `vista {verb + ' ' if verb else ''}--help`.")
        if not known:
            console.note(
                "This is an internal error; please report it with the trace that `vista --debug ...` shows."
            )
        sys.exit(getattr(error, "exit_code", 1))
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
