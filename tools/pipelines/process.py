"""Child processes that end with their parent."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
from collections.abc import Callable


def end_with(pid: int, *, before: Callable[[], None] = lambda: None) -> None:
    """Kill this process's group as soon as process `pid` ends, after calling `before`.

    A pidfd, because PR_SET_PDEATHSIG fires when the *thread* that started the child ends, and is lost on fork.
    """
    try:
        watched = os.pidfd_open(pid)
    except ProcessLookupError:
        _end_group(before)
        return
    threading.Thread(target=_wait_and_end, args=(watched, before), daemon=True, name="end-with-parent").start()


def end_with_runner() -> None:
    """End this pipeline component with the process that leads its group: the runner, or the shell of its container."""
    if os.getpgrp() != os.getpid():
        end_with(os.getpgrp())


def kill_group(group: int) -> None:
    """Kill what is left of a process group whose leader has ended."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def _wait_and_end(watched: int, before: Callable[[], None]) -> None:
    select.select([watched], [], [])
    _end_group(before)


def _end_group(before: Callable[[], None]) -> None:
    try:
        before()
    finally:
        os.killpg(os.getpgrp(), signal.SIGKILL)
