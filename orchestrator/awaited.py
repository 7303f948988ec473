"""Rows that are missing altogether: wait for them a while, look at them where they come, leave their days out where not."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from orchestrator.crew import Crew
from orchestrator.signals import days_of_block
from orchestrator.traffic_book import read_book
from state import store
from state.rows import BlockRow, IncidentRow, RunRow
from state.spec import ModelSpec
from state.store import Connection, Fence
from tools.volume import judge_volume


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """What a run waits for before it contains a fault."""

    waits_for: str
    until: datetime


def still_missing(crew: Crew, conn: Connection, run: RunRow, incident: IncidentRow, spec: ModelSpec) -> Missing | None:
    """What the incident still waits for; None where everything came, the time is over, or other days are spoilt too.

    A day that came and is sound is no day of the fault any more; where that was all, the fault is contained. While a
    day is awaited the fault is not, so that nothing learns from what is left.
    """
    awaited = _blocks(incident)
    if not awaited:
        return None
    holes = set(read_book(conn, spec).holes)
    came = [block for block in awaited if block not in holes]
    sound = {day for block in came if not _is_spoilt(conn, spec, block) for day in days_of_block(block, spec)}
    days, quarantined = _days(incident, "days"), _days(incident, "quarantined")
    if came:
        days = [day for day in days if day not in sound or day in quarantined]
        incident.body |= {"days": [*days], "missing": [block for block in awaited if block in holes]}
        store.put(conn, incident, fence=None)
    waiting = {day for block in awaited if block in holes for day in days_of_block(block, spec)}
    run.facts |= {"hole_found": bool(waiting), "rows_available": not waiting, "fault_contained": days == quarantined}
    since = datetime.fromisoformat(str(run.body.get("unhealthy_at", run.started_at.isoformat())))
    until = since + max(spec.monitoring.recovery, spec.monitoring.block)
    if not waiting or set(days) - set(quarantined) - waiting or crew.clock.now() >= until:
        return None
    named = ", ".join(sorted(waiting))
    return Missing(
        waits_for=f"the rows of {named}, which their source may send again until {until:%Y-%m-%d}", until=until
    )


def refilled(crew: Crew, conn: Connection, spec: ModelSpec) -> str | None:
    """A block whose missing rows have come in a usual number, to be looked at; None where there is none."""
    book = read_book(conn, spec)
    for block in book.holes:
        start = datetime.fromisoformat(block).replace(tzinfo=UTC)
        rows = crew.platform.outcomes.predictions(spec.model, start=start, end=start + spec.monitoring.block)
        found = judge_volume(
            block, rows.height, served=book.served, holes=book.holes, length=spec.monitoring.block
        )  # fmt: skip
        if rows.height and (found is None or found.kind == "usual"):
            return block
    return None


def wake(conn: Connection, spec: ModelSpec, block: str, fence: Fence) -> None:
    """Let the run that waits for `block` look again now."""
    for incident in store.select(conn, IncidentRow, model=spec.model, status="open"):
        for run in store.select(conn, RunRow, subject_id=incident.id, status="waiting"):
            if block in _blocks(incident):
                run.status, run.wake_at, run.waits_for = "ready", None, ""
                store.put(conn, run, fence=fence)


def _is_spoilt(conn: Connection, spec: ModelSpec, block: str) -> bool:
    rows = store.select(conn, BlockRow, model=spec.model, block=block)
    return any(row.topic.startswith("profile/") and row.body.get("hard") for row in rows)


def _blocks(incident: IncidentRow) -> list[str]:
    return _days(incident, "missing")


def _days(incident: IncidentRow, name: str) -> list[str]:
    found = incident.body.get(name)
    return [str(item) for item in found] if isinstance(found, list) else []
