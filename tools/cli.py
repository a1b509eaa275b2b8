"""The command line ``vista``: its verbs, and how errors become exit codes (docs/operations.md)."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from tools import console
from tools.command_line import Verbs
from tools.extras import told
from tools.verbs import VERBS

app = typer.Typer(
    cls=Verbs,
    name="vista",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Lifelong histories as fixed-size sequence features: tables, model, summaries, store, serving.",
)


INTERRUPTED = 130
BROKEN_PIPE = 141


@app.callback()
def _options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the stack trace of an error.")] = False,
) -> None:
    context.obj = {"debug": debug}


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; exits with the code of docs/operations.md."""
    arguments = sys.argv[1:] if arguments is None else arguments
    console.encodable()
    try:
        code = app(args=arguments, standalone_mode=False)
        sys.stdout.flush()
        if code == INTERRUPTED:  # what typer makes of Ctrl-C
            console.note("stopped; a job goes on where it was with the same command and its --run-dir")
    except typer.Exit as done:
        sys.exit(done.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(INTERRUPTED)
    except (BrokenPipeError, SystemExit) as gone:  # typer makes SystemExit(1) of the former
        if isinstance(gone, SystemExit) and not isinstance(gone.__context__, BrokenPipeError):
            raise
        # Whoever read has gone; what is left in the buffer must not fail again when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(BROKEN_PIPE)
    except ModuleNotFoundError as error:
        console.failure(type(error).__name__, told(error))
        sys.exit(2)
    except Exception as error:
        if "--debug" in arguments:
            import traceback

            traceback.print_exc()
        known = hasattr(error, "exit_code")
        usage = getattr(error, "format_message", None)  # a typer usage error, whichever click it stands on
        console.failure("usage" if usage else type(error).__name__, usage() if usage else str(error))
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
