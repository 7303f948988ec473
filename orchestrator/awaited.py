"""Rows or labels that are missing: wait for them a while, look at them where they come, leave their days out where not."""

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

AWAITED = ("missing", "unlabelled")
"""Names in an incident's body of the blocks whose rows, and whose labels, have not come."""


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
    awaited = {name: _list(incident, name) for name in AWAITED}
    if not any(awaited.values()):
        return None
    gone = {"missing": set(read_book(conn, spec).holes), "unlabelled": set(unlabelled(conn, spec))}
    came = [block for name, blocks in awaited.items() for block in blocks if block not in gone[name]]
    sound = {day for block in came if not _is_spoilt(conn, spec, block) for day in days_of_block(block, spec)}
    days, quarantined = _list(incident, "days"), _list(incident, "quarantined")
    if came:
        days = [day for day in days if day not in sound or day in quarantined]
        left = {name: [block for block in blocks if block in gone[name]] for name, blocks in awaited.items()}
        incident.body |= {"days": [*days], **{name: [*blocks] for name, blocks in left.items()}}
        store.put(conn, incident, fence=None)
    waiting = {
        name: {day for block in blocks if block in gone[name] for day in days_of_block(block, spec)}
        for name, blocks in awaited.items()
    }
    no_rows, all_waiting = bool(waiting["missing"]), waiting["missing"] | waiting["unlabelled"]
    run.facts |= {"hole_found": no_rows, "rows_available": not no_rows, "fault_contained": days == quarantined}
    since = datetime.fromisoformat(str(run.body.get("unhealthy_at", run.started_at.isoformat())))
    until = since + max(spec.monitoring.recovery, spec.monitoring.block)
    if not all_waiting or set(days) - set(quarantined) - all_waiting or crew.clock.now() >= until:
        return None
    what = "rows" if no_rows else "labels"
    named = ", ".join(sorted(all_waiting))
    return Missing(waits_for=f"the {what} of {named}, which may still come until {until:%Y-%m-%d}", until=until)


def unlabelled(conn: Connection, spec: ModelSpec) -> list[str]:
    """Matured blocks whose labels have not come."""
    rows = store.select(conn, BlockRow, model=spec.model, topic="outcomes", order="block", newest_first=True, limit=120)
    return [row.block for row in rows if row.body.get("missing")]


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
            if any(block in _list(incident, name) for name in AWAITED):
                run.status, run.wake_at, run.waits_for = "ready", None, ""
                store.put(conn, run, fence=fence)


def _is_spoilt(conn: Connection, spec: ModelSpec, block: str) -> bool:
    rows = store.select(conn, BlockRow, model=spec.model, block=block)
    return any(row.body.get("hard") or (row.topic == "outcomes" and row.body.get("faulty")) for row in rows)


def _list(incident: IncidentRow, name: str) -> list[str]:
    found = incident.body.get(name)
    return [str(item) for item in found] if isinstance(found, list) else []
