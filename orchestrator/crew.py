"""What every part of the loop is handed: the shared state, the policy, the platform, the clocks and the ids."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal, TypedDict

from pydantic import JsonValue

from policies.current import Policy
from state import log, store
from state.canonical import digest
from state.clock import Clock, WallClock
from state.decisions import Observed
from state.ids import IdSource
from state.keys import Signer
from state.rows import EvidenceRow, OutboxRow
from state.store import Connection, Database, Fence
from tools.ports import Platform

SYSTEM = 'System::"steadyhand"'


class Stamp(TypedDict):
    """The fields that every decision carries."""

    decision_id: str
    at: datetime
    recorded_at: datetime


LEASE_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Crew:
    db: Database
    policy: Policy
    platform: Platform
    clock: Clock
    """Domain time."""
    ids: IdSource
    owner: str
    """Names this process in leases."""
    signer: Signer
    second_place: Path
    """Where checkpoints of the decision log are written besides the database."""
    wall: Clock = field(default_factory=WallClock)
    lease_seconds: float = LEASE_SECONDS
    patience: timedelta | None = None
    """The longest pause between two looks in which nobody was away. None: a block, as a replay moves by blocks."""
    say: Callable[[str, str], None] = lambda agent, text: None
    """Progress for people: who, and one plain sentence."""

    def stamp(self) -> Stamp:
        return {"decision_id": self.ids.new_id(), "at": self.clock.now(), "recorded_at": self.wall.now()}


Topic = Literal[
    "signal", "diagnosis", "data_quality", "drift", "performance", "backtest", "gates", "analysis",
    "ab_test", "health", "foreign_edit", "left_alone", "plan", "world", "operation",
]  # fmt: skip


def agent_uid(agent: str) -> str:
    """An agent as a principal: `Agent::"training"`."""
    return f'Agent::"{agent}"'


def observe(
    crew: Crew,
    conn: Connection,
    *,
    model: str,
    topic: Topic,
    verdict: str,
    summary: str,
    actor: str = SYSTEM,
    run_id: str | None = None,
    incident_id: str | None = None,
    details: dict[str, JsonValue] | None = None,
    evidence_ids: list[str] | None = None,
) -> None:
    """Append an `observed` decision."""
    log.append(
        conn,
        Observed(
            **crew.stamp(), model=model, run_id=run_id, incident_id=incident_id, actor=actor, summary=summary,
            topic=topic, verdict=verdict, evidence_ids=evidence_ids or [], details=details or {},
        ),
    )  # fmt: skip


def keep_evidence(
    crew: Crew, conn: Connection, *, model: str, topic: str, body: dict[str, JsonValue], fence: Fence | None
) -> str:
    """Store an observation that decisions cite; the same observation twice is one row. Returns its id."""
    sha256 = digest({"model": model, "topic": topic, "body": body})
    found = store.select(conn, EvidenceRow, sha256=sha256)
    if found:
        return found[0].id
    row = EvidenceRow(id=crew.ids.new_id(), model=model, topic=topic, at=crew.clock.now(), sha256=sha256, body=body)
    store.put(conn, row, fence=fence)
    return row.id


def tell(crew: Crew, conn: Connection, *, key: str, title: str, text: str) -> None:
    """Queue one message for people; the same key is queued once."""
    if store.get(conn, OutboxRow, key) is None:
        row = OutboxRow(id=key, status="pending", key=key, title=title, text=text, created_at=crew.clock.now())
        store.put(conn, row, fence=None)
