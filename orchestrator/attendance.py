"""Whether somebody was looking: what passed while the loop did not run is neither health nor a fault.

A stopped system answers nothing, so missing rows say nothing about the data; and nobody watched, so the time that
passed is no sustained health, no bake window and no dwell. Every tick notes its time in a row; the next one sees how
long nobody looked.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from orchestrator.crew import Crew, observe
from orchestrator.cursor import block_name, block_start, cursor_at, read_cursor, save_cursor
from orchestrator.segment_book import SegmentBook, segments_row
from orchestrator.triage import note_cadence
from state import store
from state.rows import DetectorRow, RolloutRow, RunRow, SwitchRow
from state.spec import ModelSpec
from state.store import Connection, Fence
from tools.drift.performance import EDetector

NOTED_PER_PATIENCE = 40
"""A look is written down this often within the patience: looks come every few seconds, and each write is an fsync."""


@dataclass(slots=True, kw_only=True)
class Attendance:
    """When the model was looked after; a row."""

    at: datetime
    """Domain time of the newest look that was noted."""
    replayed: bool
    """Whether that look was part of a replay."""
    since: str = ""
    """First block of live operation after a replay: what was measured before it belongs to another time."""
    gaps: list[tuple[datetime, datetime]] = field(default_factory=list)
    """Stretches without a look that reach into blocks which are not measured yet."""

    def away(self, start: datetime, end: datetime, *, patience: timedelta) -> bool:
        """Whether nobody looked for as long as `patience` within [start, end)."""
        return any(min(end, last) - max(start, first) >= patience for first, last in self.gaps)


def patience_of(crew: Crew, spec: ModelSpec) -> timedelta:
    """The longest pause between two looks in which nobody was away: a block, unless looks come steadily."""
    block = spec.monitoring.block
    return block if crew.patience is None else min(crew.patience, block)


def read_attendance(conn: Connection, model: str) -> Attendance | None:
    row = store.get(conn, DetectorRow, _row_id(model))
    if row is None:
        return None
    state: dict[str, Any] = dict(row.state)
    return Attendance(
        at=datetime.fromisoformat(state["at"]), replayed=state["replayed"], since=state["since"],
        gaps=[(datetime.fromisoformat(first), datetime.fromisoformat(last)) for first, last in state["gaps"]],
    )  # fmt: skip


def attend(crew: Crew, conn: Connection, spec: ModelSpec, *, fence: Fence) -> None:
    """Note that the model is looked at now; joins the tick's first transaction.

    Where nobody looked for longer than the patience, open windows are longer by that stretch, and its blocks are not
    judged by how many rows they hold. Where a replay came before and live operation begins, every window begins anew.
    """
    now, replaying = crew.clock.now(), _replaying(conn)
    known = read_attendance(conn, spec.model) or _supposed(crew, conn, spec)
    if known is None:
        _begin(crew, conn, spec, replayed=replaying, fence=fence)
        return
    if known.replayed and not replaying:
        _go_live(crew, conn, spec, known, fence)
        return
    patience = patience_of(crew, spec)
    # A clock that steps back is no stop: the newest look stays the newest.
    if now - known.at < patience / NOTED_PER_PATIENCE and known.replayed == replaying:
        return
    traffic = read_cursor(crew, conn, spec).traffic
    gaps = [(first, last) for first, last in known.gaps if last > traffic]
    if now - known.at > patience:
        gaps.append((known.at, now))
        _pause(conn, spec, now - known.at, fence)
        _say_stopped(crew, conn, spec, known.at, now)
    _save(conn, spec, Attendance(at=max(now, known.at), replayed=replaying, since=known.since, gaps=gaps), fence)


def _supposed(crew: Crew, conn: Connection, spec: ModelSpec) -> Attendance | None:
    """What the cursor says of a model that was watched before looks were noted; None for one that never was."""
    if store.get(conn, DetectorRow, f"{spec.model}/cursor") is None:
        return None
    measured = read_cursor(crew, conn, spec).traffic
    replayed = store.get(conn, SwitchRow, f"replay/{spec.model}") is not None
    return Attendance(at=min(measured + spec.monitoring.block, crew.clock.now()), replayed=replayed)


def _begin(crew: Crew, conn: Connection, spec: ModelSpec, *, replayed: bool, fence: Fence) -> None:
    """The first look of all: what came before it in the present block, nobody could have answered."""
    now = crew.clock.now()
    start = block_start(now, spec)
    gaps = [(start, now)] if now - start > patience_of(crew, spec) else []
    _save(conn, spec, Attendance(at=now, replayed=replayed, gaps=gaps), fence)


def _go_live(crew: Crew, conn: Connection, spec: ModelSpec, known: Attendance, fence: Fence) -> None:
    """The time between the rows of a replay and now was never lived through: everything that was open begins anew."""
    now = crew.clock.now()
    start = block_start(now, spec)
    name = block_name(now, spec)
    save_cursor(conn, spec, cursor_at(start), fence)
    gaps = [(start, now)] if now - start > patience_of(crew, spec) else []
    _save(conn, spec, Attendance(at=now, replayed=False, since=name, gaps=gaps), fence)
    for row in store.select(conn, DetectorRow, model=spec.model):
        if row.id.startswith(f"{spec.model}/loss/"):
            state: dict[str, Any] = dict(EDetector.from_state(row.state).restarted().state())
            row.state = state
            store.put(conn, row, fence=fence)
        elif row.id.startswith(segments_row(spec.model, "")):
            book = SegmentBook.from_state(dict(row.state))
            book.begin_anew(only_alarmed=False)
            book.recent = {}
            row.state = book.state()
            store.put(conn, row, fence=fence)
        elif row.id == f"{spec.model}/drift":
            row.state = {"level": None, "features": [], "until": start.isoformat()}
            store.put(conn, row, fence=fence)
    for rollout in store.select(conn, RolloutRow, model=spec.model, status="running"):
        if "since" in rollout.body:
            rollout.body["since"] = now.isoformat()
            store.put(conn, rollout, fence=fence)
    for run in store.select(conn, RunRow, model=spec.model, status=["ready", "waiting"]):
        run.body["unhealthy_at"] = now.isoformat()
        run.body.pop("denied_since", None)
        store.put(conn, run, fence=fence)
    if store.get(conn, DetectorRow, f"{spec.model}/cadence") is not None:
        note_cadence(crew, conn, spec, fence=fence)
    text = f"the replay ended at {known.at:%Y-%m-%d %H:%M}; live operation begins with the block of {name}"
    observe(
        crew, conn, model=spec.model, topic="operation", verdict="live",
        summary=f"{spec.model}: {text}. What lies between is neither healthy nor faulty; open windows begin anew.",
        details={"replay_ended": known.at.isoformat(), "block": name},
    )  # fmt: skip
    crew.say("orchestrator", f"{spec.model}: {text}")


def _pause(conn: Connection, spec: ModelSpec, gap: timedelta, fence: Fence) -> None:
    """Open windows of the model's rollouts and runs are longer by a stretch in which nobody looked."""
    for rollout in store.select(conn, RolloutRow, model=spec.model, status="running"):
        if "since" not in rollout.body:
            continue
        since = str(rollout.body["since"])
        if rollout.phase == "ab_test":
            # The rows from `since` on still count: only the horizon moves.
            known = rollout.body.get("paused")
            before = float(str(known["seconds"])) if isinstance(known, dict) and known["since"] == since else 0.0
            rollout.body["paused"] = {"since": since, "seconds": before + gap.total_seconds()}
        else:
            rollout.body["since"] = _later(since, gap)
        store.put(conn, rollout, fence=fence)
    for run in store.select(conn, RunRow, model=spec.model, status=["ready", "waiting"]):
        run.body["unhealthy_at"] = _later(str(run.body.get("unhealthy_at", run.started_at.isoformat())), gap)
        for name in ("remedied_at", "denied_since"):
            if name in run.body:
                run.body[name] = _later(str(run.body[name]), gap)
        store.put(conn, run, fence=fence)


def _later(at: str, gap: timedelta) -> str:
    return (datetime.fromisoformat(at) + gap).isoformat()


def _say_stopped(crew: Crew, conn: Connection, spec: ModelSpec, last: datetime, now: datetime) -> None:
    text = f"nobody looked after it from {last:%Y-%m-%d %H:%M} to {now:%Y-%m-%d %H:%M}"
    observe(
        crew, conn, model=spec.model, topic="operation", verdict="stopped",
        summary=f"{spec.model}: {text}. That stretch is neither healthy nor faulty: rows that are missing in it are no "
        "data fault, and open windows are longer by it.",
        details={"from": last.isoformat(), "until": now.isoformat()},
    )  # fmt: skip
    crew.say("orchestrator", f"{spec.model}: {text}")


def _replaying(conn: Connection) -> bool:
    row = store.get(conn, SwitchRow, "domain_time")
    return row is not None and bool(row.body.get("at"))


def _save(conn: Connection, spec: ModelSpec, known: Attendance, fence: Fence) -> None:
    state: dict[str, Any] = {
        "at": known.at.isoformat(), "replayed": known.replayed, "since": known.since,
        "gaps": [[first.isoformat(), last.isoformat()] for first, last in known.gaps],
    }  # fmt: skip
    store.put(conn, DetectorRow(id=_row_id(spec.model), model=spec.model, state=state), fence=fence)


def _row_id(model: str) -> str:
    return f"{model}/attended"
