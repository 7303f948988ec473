"""Where the `steady` command begins: Ctrl-C while modules are still read ends it at once, without a traceback."""

from __future__ import annotations

import signal

# Before anything that takes time is imported. Whoever started us with Ctrl-C ignored means it to be ignored.
_HANDLER = signal.getsignal(signal.SIGINT)
if _HANDLER is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from console.cli.main import main  # noqa: E402


def run() -> None:
    """Run the command line; from here on Ctrl-C is an exception that cleans up after itself."""
    if _HANDLER is signal.default_int_handler:
        signal.signal(signal.SIGINT, _HANDLER)
    main()
