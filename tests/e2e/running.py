"""The real command as a process, and what it leaves in the world: processes, MLflow, ledger."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STEADY = Path(sys.executable).parent / "steady"
PATIENCE_SECONDS = 900.0
"""A shared machine may be many times slower than a laptop: this catches what hangs, nothing else."""
_NAMES = re.compile(r"\b([0-9a-f]{64}|[0-9a-f]{32}|[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12})\b")


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def steady(*arguments: object, home: Path | None = None, cwd: Path | None = None, **environment: str) -> Done:
    """`steady ARGUMENTS --home HOME`, run to its end."""
    child = start(*arguments, home=home, cwd=cwd, **environment)
    out, err = child.communicate(timeout=PATIENCE_SECONDS)
    assert "Traceback" not in out + err, err
    return Done(child.returncode, out, err)


def start(
    *arguments: object, home: Path | None = None, cwd: Path | None = None, **environment: str
) -> subprocess.Popen[str]:
    """The same, while it runs."""
    command = [str(STEADY), *map(str, arguments), *(["--home", str(home)] if home is not None else [])]
    mine = {name: value for name, value in os.environ.items() if not name.startswith("STEADYHAND_")}
    return subprocess.Popen(
        command, cwd=cwd, env={**mine, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def processes(home: Path) -> dict[int, str]:
    """Every process of this machine whose command line names something in `home`, by pid."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                words = (entry / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ").strip()
                state = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[0]
            except OSError:
                continue  # it ended while we looked
            if str(home) in words and state not in "ZX":
                found[int(entry.name)] = words
    return found


def data_plane(home: Path) -> dict[int, str]:
    """The servers and the Envoy of `home`, by pid."""
    return {
        pid: words
        for pid, words in processes(home).items()
        if "serving.server" in words or Path(words.split()[0]).name == "envoy"
    }


def wait_until_gone(home: Path, *, seconds: float = 30.0) -> dict[int, str]:
    """What still runs of `home` when `seconds` are over; pipeline children end a moment after their parent."""
    until = time.monotonic() + seconds
    while (left := processes(home)) and time.monotonic() < until:
        time.sleep(0.05)
    return left


def end(home: Path) -> None:
    """End by their ids whatever a failed test left of `home`."""
    for pid in processes(home):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def rows(database: Path, query: str) -> list[dict[str, Any]]:
    """Rows of an SQLite file, read without touching it."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute(query)]


def actions(home: Path) -> list[tuple[str, str, dict[str, Any]]]:
    """Kind, state and arguments of every action in the order of the ledger.

    Keys and ids differ between two workspaces, so each is told by the place of its first mention.
    """
    found = rows(home / "steady.db", "select kind, state, body from actions order by log_index, id")
    text = json.dumps([[row["kind"], row["state"], json.loads(row["body"])["args"]] for row in found])
    places: dict[str, str] = {}
    plain = _NAMES.sub(lambda match: places.setdefault(match[0], f"#{len(places)}"), text)
    return [(kind, state, args) for kind, state, args in json.loads(plain)]


def mlflow_counts(home: Path) -> dict[str, int]:
    """Tracked runs and registered versions."""
    database = home / "mlflow" / "mlflow.db"
    return {
        "runs": len(rows(database, "select run_uuid from runs where lifecycle_stage = 'active'")),
        "versions": len(rows(database, "select version from model_versions")),
    }


def alias(home: Path, name: str) -> str | None:
    """The version that a registry alias names."""
    found = rows(home / "mlflow" / "mlflow.db", f"select version from registered_model_aliases where alias = '{name}'")
    return str(found[0]["version"]) if found else None
