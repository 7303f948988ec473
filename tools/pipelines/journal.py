"""The small files of a local pipeline run, and what its log says of a failure."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

RESULT = "result.json"
ABANDONED = "abandoned"
LOG_TAIL_BYTES = 200_000
_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_FAILED = re.compile(r"Inner task failed: (.+?)\.?$", re.MULTILINE)
_OURS = re.compile(r"^(?:state\.errors\.)?(?:InputError|ToolRejected|ToolUnavailable|TerminalError|RetryableError): ")


def describe_failure(message: str, log: str) -> str:
    """The failed component and the last line of its traceback, in plain text."""
    match = _FAILED.search(_COLOUR.sub("", message))
    component = match[1].strip("'\" ").removeprefix("comp-") if match else "pipeline"
    lines = _COLOUR.sub("", log).splitlines()
    tracebacks = [at for at, line in enumerate(lines) if "Traceback (most recent call last)" in line]
    if not tracebacks:
        return f"{component}: {lines[-1].strip() if lines else 'no output'}"
    # kfp indents what a component prints; the error stands at the indent of its traceback.
    indent = _indent(lines[tracebacks[-1]])
    after = (line.strip() for line in lines[tracebacks[-1] + 1 :] if line.strip() and _indent(line) <= indent)
    return f"{component}: {_OURS.sub('', next(after, 'no error line'))}"


def read_log(directory: Path) -> str:
    try:
        with (directory / "log.txt").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_TAIL_BYTES))
            return file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return ""


def write_json(path: Path, value: object) -> None:
    """Replace the file at `path` in one step, so that a reader never sees half of it."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    with fresh.open("w") as file:
        json.dump(value, file, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def read_json(path: Path) -> dict[str, Any] | None:
    """The document at `path`; None where there is none."""
    try:
        value: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    return value
