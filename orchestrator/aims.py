"""What a run works toward, waits for or ends with; and how one run lets another take its version off."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from pydantic import JsonValue

from orchestrator.actions import FactName
from orchestrator.crew import Crew, observe
from state import store
from state.rows import RolloutRow, RunRow
from state.store import Connection


@dataclass(frozen=True, slots=True, kw_only=True)
class Aim:
    """What the run does now: reach `facts`, wait, or end."""

    move: Literal["reach", "wait", "end"]
    facts: frozenset[FactName] = frozenset()
    outcome: str = ""
    """Resolution where the run ends."""
    waits_for: str = ""
    wake_at: datetime | None = None
    changed: bool = False
    """Another run of the model has something to do now because of this one."""
    in_the_way: tuple[str, ...] = ()
    """Rollouts that make way as soon as this run's version may take traffic, by id."""


def reach(*names: FactName) -> Aim:
    """Work toward these facts."""
    return Aim(move="reach", facts=frozenset(names))


def call_off(
    crew: Crew,
    conn: Connection,
    rollout: RolloutRow,
    why: str,
    *,
    superseded: bool = False,
    details: dict[str, JsonValue] | None = None,
) -> bool:
    """Let the run of a rollout take its version off again: its facts say so, and the planner does the rest.

    Returns whether that changed anything.
    """
    runs = store.select(conn, RunRow, model=rollout.model, status=["ready", "waiting"])
    run = next((run for run in runs if run.body.get("rollout_id") == rollout.id), None)
    if run is None or run.facts.get("canary_failed"):
        return False
    run.facts |= {"canary_failed": True, "rolled_back": False, "healthy_champion_known": True, "story": why}
    if rollout.phase == "bake":
        run.facts |= {"traffic_on_champion": False, "version_staged": True}
    if superseded:
        run.facts["superseded"] = True
    run.status, run.wake_at, run.waits_for = "ready", None, ""
    store.put(conn, run, fence=None)
    observe(
        crew, conn, model=rollout.model, topic="analysis", verdict="failed", actor='Agent::"deployment"', run_id=run.id,
        summary=f"Version {rollout.candidate} is taken off: {why}.", details=details,
    )  # fmt: skip
    return True
