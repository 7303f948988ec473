"""The `steady` command."""

from __future__ import annotations

import sys

import click

from console.cli.app import app
from console.cli.output import fail
from state.errors import InputError, SteadyError


def main() -> None:
    """Run the command line; bad input ends with code 2 and one clear message, never with a traceback."""
    try:
        app(standalone_mode=False)
    except InputError as exc:
        sys.exit(fail(exc.message, exc.remedy))
    except SteadyError as exc:
        sys.exit(fail(str(exc), "Try again; `steady status` shows the state", code=1))
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as exc:
        if isinstance(exc, click.exceptions.Exit):
            sys.exit(exc.exit_code)
        if isinstance(exc, click.exceptions.Abort):
            sys.exit(130)
        if isinstance(exc, click.ClickException):
            sys.exit(fail(exc.format_message(), "See `steady --help`"))
        raise
