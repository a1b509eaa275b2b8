"""The command line ``vista``: its verbs, and how errors become exit codes (docs/operations.md)."""

from __future__ import annotations

import errno
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
STORAGE = {
    errno.ENOENT: ("a file or folder", 2),
    errno.EEXIST: ("a folder, or nothing yet", 2),
    errno.ENOTDIR: ("a folder, and folders above it", 2),
    errno.EISDIR: ("a file", 2),
    errno.EACCES: ("what this user may read and write", 2),
    errno.EPERM: ("what this user may change", 2),
    errno.ENAMETOOLONG: ("a shorter name", 2),
    errno.ELOOP: ("no links that lead in a circle", 2),
    errno.EROFS: ("storage that can be written", 4),
    errno.ENOSPC: ("free space", 4),
    errno.EDQUOT: ("free space", 4),
    errno.ENOTEMPTY: ("a folder that nobody else fills meanwhile", 2),
    errno.EFBIG: ("a larger limit of file sizes (`ulimit -f`)", 4),
    errno.EMFILE: ("a larger limit of open files (`ulimit -n`)", 4),
}
"""What the system says of paths that are the user's to mend: what was expected, and the exit code."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EMFILE)
"""Those that say enough without a path, and that libraries put into errors of their own, as text."""


def _of_storage(error: BaseException) -> int | None:
    """What the system said where it is one of :data:`STORAGE`, through whichever library it came."""
    told: BaseException | None = error
    while told is not None:
        path = told is error and getattr(told, "filename", None) is not None
        if isinstance(told, OSError) and told.errno in (STORAGE if path else FULL):
            return told.errno
        for code in FULL:
            if os.strerror(code) in str(told):
                return code
        if "disk is full" in str(told):  # SQLite's words
            return errno.ENOSPC
        told = told.__cause__ or told.__context__
    return None


def _version(asked: bool) -> None:
    if asked:
        import cache_store

        print(f"vista {cache_store.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the stack trace of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    context.obj = {"debug": debug}


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; exits with the code of docs/operations.md."""
    arguments = sys.argv[1:] if arguments is None else arguments
    console.encodable()
    try:
        code = app(args=arguments, standalone_mode=False)
        sys.stdout.flush()
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
        sys.exit(_failed(error, arguments))
    sys.exit(code if isinstance(code, int) else 0)


def _failed(error: Exception, arguments: list[str]) -> int:
    """Say what went wrong; the exit code."""
    usage = getattr(error, "format_message", None)  # a typer usage error, whichever click it stands on
    if usage:
        console.failure("usage", usage())
        verb = next((a for a in arguments if a in VERBS), "")
        console.note(f"Try `vista {verb + ' ' if verb else ''}--help`.")
        return getattr(error, "exit_code", 1)
    if hasattr(error, "exit_code"):
        console.failure(type(error).__name__, str(error))
        return error.exit_code
    system = _of_storage(error)
    if system is not None:
        expected, code = STORAGE[system]
        where = console.safe(str(getattr(error, "filename", None) or "writing"))
        text = f"{where}: expected {expected}, found: {os.strerror(system)}"
        remedy = "mend that or name another path, and run the command again"
        console.failure(type(error).__name__, f"{text}; {remedy}")
        return code
    console.failure(type(error).__name__, str(error))
    console.note("This is an internal error; please report it with the trace that `vista --debug ...` shows.")
    return 1


if __name__ == "__main__":
    main()
