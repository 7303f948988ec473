"""Processes that outlive us: started in a session of their own, described by a small file, adopted by whoever comes next."""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from state.errors import ToolUnavailable

# Our own children have to be reaped; whom we adopted is reaped by init.
_children: dict[int, subprocess.Popen[bytes]] = {}


@atexit.register
def _let_go() -> None:
    """What still runs at our end is meant to, so that nothing should warn of it."""
    for child in _children.values():
        if child.poll() is None:
            child.returncode = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessFile:
    """What the file of a process says. The pid alone names nothing: the kernel gives it out again."""

    key: str
    """Ledger key of the action that started it."""
    pid: int | None
    """None once it was stopped on purpose."""
    start_ticks: int
    """Field 22 of `/proc/<pid>/stat`: with the pid it names one process of this boot."""
    port: int
    extra: Mapping[str, Any] = field(default_factory=dict)


def read_process(path: Path) -> ProcessFile | None:
    """The process that `path` describes; None where there is no such file or it is not one of ours."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return ProcessFile(
            key=content.pop("key"),
            pid=content.pop("pid"),
            start_ticks=content.pop("start_ticks"),
            port=content.pop("port"),
            extra=content,
        )
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None


def write_process(path: Path, process: ProcessFile) -> None:
    """Write the file so that a reader sees the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        **process.extra,
        "key": process.key,
        "pid": process.pid,
        "start_ticks": process.start_ticks,
        "port": process.port,
    }
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(content, sort_keys=True) + "\n", encoding="utf-8")
    temporary.rename(path)


def spawn(command: Sequence[str], *, log: Path) -> int:
    """Start `command` in a session of its own, with its output appended to `log`; returns the pid."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        child = subprocess.Popen(  # noqa: S603  # an argument list of ours, no shell
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    _children[child.pid] = child
    return child.pid


def exit_code(pid: int) -> int | None:
    """How our child `pid` ended; None while it runs, or where it is not our child."""
    child = _children.get(pid)
    return None if child is None else child.poll()


def start_ticks(pid: int) -> int | None:
    """When `pid` started, in ticks since boot; None where no such process runs (a zombie does not run)."""
    exit_code(pid)
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # the name before it may hold spaces and brackets
    return None if fields[0] in "ZX" else int(fields[19])


def alive(process: ProcessFile | None) -> bool:
    """Whether exactly the process of the file still runs."""
    return process is not None and process.pid is not None and start_ticks(process.pid) == process.start_ticks


def terminate(process: ProcessFile, *, grace_seconds: float) -> None:
    """End the process: SIGTERM, and SIGKILL where it is still there after `grace_seconds`. Idempotent.

    Raises:
        ToolUnavailable: it outlived even that.
    """
    if process.pid is None:
        return
    try:
        # Through a descriptor, so that a pid given out again between check and signal is never hit.
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    try:
        for number, seconds in ((signal.SIGTERM, grace_seconds), (signal.SIGKILL, 5.0)):
            if not alive(process):
                return
            signal.pidfd_send_signal(descriptor, number)
            if _ended(descriptor, seconds):
                exit_code(process.pid)
                return
    except ProcessLookupError:
        return
    finally:
        os.close(descriptor)
    raise ToolUnavailable(f"process {process.pid} does not end")


def _ended(descriptor: int, seconds: float) -> bool:
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    return bool(poller.poll(seconds * 1_000))


def last_line(log: Path, *, default: str) -> str:
    """The last line of a log that is not empty: what a process said before it gave up."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 8192))
            lines = [line for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]
    except OSError:
        return default
    return lines[-1] if lines else default
