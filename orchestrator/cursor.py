"""How far one model has been looked at: a row, so that a restart goes on where the last look ended."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from orchestrator.crew import Crew
from state import store
from state.rows import DetectorRow
from state.spec import ModelSpec
from state.store import Connection, Fence
from tools.drift.performance import block_at


@dataclass(slots=True, kw_only=True)
class Cursor:
    traffic: datetime
    """Start of the first block whose traffic has not been measured."""
    outcomes: datetime
    """Event time up to which matured outcomes have been measured."""
    drift: datetime
    """Start of the drift window that is filling."""
    paused: int = 0
    """Blocks of that window in which nothing was served because the system was stopped: they do not fill it."""


def read_cursor(crew: Crew, conn: Connection, spec: ModelSpec) -> Cursor:
    """Where the watch of the model stands; at the present block where it has not begun."""
    row = store.get(conn, DetectorRow, f"{spec.model}/cursor")
    if row is None:
        return cursor_at(block_start(crew.clock.now(), spec))
    at = {name: datetime.fromisoformat(str(row.state[name])) for name in ("traffic", "outcomes", "drift")}
    return Cursor(**at, paused=int(str(row.state.get("paused", 0))))


def cursor_at(start: datetime) -> Cursor:
    """A watch that begins with the block that starts at `start`."""
    return Cursor(traffic=start, outcomes=start, drift=start)


def save_cursor(conn: Connection, spec: ModelSpec, cursor: Cursor, fence: Fence) -> None:
    state: dict[str, str | int] = {
        name: getattr(cursor, name).isoformat() for name in ("traffic", "outcomes", "drift")
    }  # fmt: skip
    row = DetectorRow(id=f"{spec.model}/cursor", model=spec.model, state={**state, "paused": cursor.paused})
    store.put(conn, row, fence=fence)


def block_name(at: datetime, spec: ModelSpec) -> str:
    """Name of the block that holds `at`: the ISO date (or time) of its start."""
    return block_at(at, spec.monitoring.block)


def block_start(at: datetime, spec: ModelSpec) -> datetime:
    return datetime.fromisoformat(block_name(at, spec)).replace(tzinfo=UTC)
