"""What the command line prints: tables for people, one JSON object for programs, errors to standard error."""

from __future__ import annotations

import json
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

# A pipe or a file has no width of its own, and tables at 80 columns tear words apart.
out = Console(highlight=False, soft_wrap=False, width=None if sys.stdout.isatty() else 140)
err = Console(stderr=True, highlight=False)


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")


def fail(message: str, remedy: str, *, code: int = 2) -> int:
    """One clear message: what is wrong, and what to do. Returns the exit code."""
    # Never wrapped: a path that is cut in two can be neither copied nor searched for.
    err.print(f"error: {message}", style="bold red", markup=False, soft_wrap=True)
    err.print(f"  do: {remedy}", markup=False, soft_wrap=True)
    return code


def table(title: str, columns: list[str], rows: list[list[Any]]) -> None:
    """A table, or one line that says there is nothing."""
    if not rows:
        out.print(f"{title}: none", markup=False)
        return
    shown = Table(title=title, title_justify="left", header_style="bold", show_lines=False)
    for column in columns:
        shown.add_column(column, overflow="fold")
    for row in rows:
        shown.add_row(*("" if cell is None else str(cell).replace("[", "\\[") for cell in row))
    out.print(shown)


def say(agent: str, text: str) -> None:
    """One line of progress: who, in plain words as well, and what."""
    err.print(f"{agent.replace('_', ' '):>20}  {text}", markup=False, soft_wrap=True)
