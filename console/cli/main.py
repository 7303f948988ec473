"""The `steady` command."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback

import typer
from typer.exceptions import TyperException

from console.cli.app import app
from console.cli.output import fail
from state.errors import HeldByPolicy, InputError, RetryableError, SteadyError, ToolRejected


def main() -> None:
    """Run the command line; bad input ends with code 2 and one clear message, and nothing ever with a traceback."""
    try:
        # A command that raises Exit ends here, with its code as the value.
        code = app(standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output has enough; what is still buffered must not complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as exc:  # noqa: BLE001 - the border: no traceback reaches a user
        sys.exit(_code(exc))
    sys.exit(code if isinstance(code, int) else 0)


def _code(exc: Exception) -> int:
    """Says what went wrong; returns the exit code."""
    match exc:
        case InputError():
            return fail(exc.message, exc.remedy)
        case RetryableError():
            return fail(str(exc), "Run it again: it goes on where it stood; `steady status` shows the state", code=1)
        case ToolRejected():
            return fail(str(exc), "Correct or restore what is named there, then run it again")
        case HeldByPolicy():
            return fail(str(exc), "Do that, then run it again: it goes on where it stood", code=1)
        case SteadyError():
            return fail(str(exc), "`steady status` and `steady audit list` show the state", code=1)
        case typer.Abort():
            return 130
        case TyperException():
            context = getattr(exc, "ctx", None)
            return fail(exc.format_message(), f"See `{context.command_path if context else 'steady'} --help`")
        case OSError() if exc.filename is not None:
            return fail(f"{exc.filename}: {exc.strerror}", "Check the path, its permissions and the space on the disk")
        case _:
            return fail(f"internal error: {type(exc).__name__}: {exc}", f"Report it with {_kept(exc)}", code=1)


def _kept(exc: Exception) -> str:
    """Name of the file that holds the traceback: people get the message, whoever repairs it the rest."""
    with tempfile.NamedTemporaryFile(
        "w", prefix="steady-error-", suffix=".txt", delete=False, encoding="utf-8"
    ) as file:
        file.writelines(traceback.format_exception(exc))
    return file.name
