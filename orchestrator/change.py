"""A change of the world that an incident is about: about when it began, and whether its symptoms have passed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime

import numpy as np

from agents.backtest import horizon
from agents.base import day_start, matured_until
from orchestrator.crew import Crew
from orchestrator.faulty_days import unjudged_days
from orchestrator.segment_book import begin_segments_anew, segment_passed
from orchestrator.signals import WINDOW_BLOCKS, block_begins, days_of_block
from state import ledger, store
from state.rows import BlockRow, DetectorRow, IncidentRow, RunRow, SignalRow
from state.spec import ModelSpec
from state.store import Connection
from tools.drift.performance import EDetector, Reference, change_point

SURE = 3.0
"""Standard errors between the means of two windows that chance does not show."""


def change_began(spec: ModelSpec, onset: str | None, opened_at: datetime) -> datetime:
    """About when the change began: as the signal's detector knows it, else one window before it was noticed.

    The loss detector gives the most likely change point of its statistic, a drift test the start of its window. A
    missed goal and a win of the cadence know only their newest `WINDOW_BLOCKS` labelled blocks.
    """
    if onset is not None:
        return min(block_begins(onset), opened_at)
    return day_start(opened_at - spec.data.label.delay - WINDOW_BLOCKS * spec.monitoring.block)


def change_of(spec: ModelSpec, incident: IncidentRow) -> datetime:
    """About when the change of an incident began."""
    known = incident.body.get("change_from")
    if known is None:  # opened by an earlier version
        return change_began(spec, None, incident.opened_at)
    return datetime.fromisoformat(str(known))


def segment_of(incident: IncidentRow) -> str | None:
    """The segment that an incident is confined to; None where it is about all rows."""
    segment = incident.body.get("segment")
    return str(segment) if segment is not None and incident.cause == "segment_regression" else None


def later_change(spec: ModelSpec, incident: IncidentRow, onset: str) -> datetime:
    """The beginning of a further change within the incident, which then waits for rows from after that one.

    Never so late that the incident would stay open without an end: see `gives_up_at`.
    """
    return max(change_of(spec, incident), min(block_begins(onset), incident.opened_at + horizon(spec)))


def gives_up_at(spec: ModelSpec, incident: IncidentRow) -> datetime:
    """From then on a backtest without a verdict is the last one of the incident: twice the time that a change takes
    until a whole backtest has learned from it, so that a further change, or rows that were missing, had theirs."""
    return incident.opened_at + 2 * horizon(spec)


def onset_of(losses: Mapping[str, float], reference: Reference, level: float | None) -> str | None:
    """The block in which the loss that a detector alarms for began to rise; None where it is no news.

    `level` is the mean loss since the change that it alarmed for before, if any, and `losses` are newer than that alarm:
    only what lies above the level by another floor, and by more than chance moves the mean of a window, is a further
    change; the rest belongs to the known one. What a model does not know varies more than what it knew.
    """
    if level is None:
        return change_point(losses, null=reference.null, sd=reference.sd)
    newest = [losses[block] for block in sorted(losses)[-WINDOW_BLOCKS:]]
    spread = max(reference.sd, float(np.std(newest, ddof=1)) if len(newest) > 1 else 0.0)
    noise = SURE * spread * math.sqrt(2 / len(newest))
    if float(np.mean(newest)) <= level + max(reference.null - reference.mean, noise):
        return None
    return change_point(losses, null=level, sd=reference.sd)


def level_since(losses: Mapping[str, float], onset: str) -> float:
    """Mean loss of the blocks from `onset` on."""
    return float(np.mean([loss for block, loss in losses.items() if block >= onset]))


OF_A_VERSION = frozenset({"loss_alarm", "segment_alarm", "goal_missed", "challenger_better", "calibration_lost"})
"""Signals about the predictions of the version that serves."""


def is_replaced(conn: Connection, spec: ModelSpec, incident: IncidentRow) -> bool:
    """Whether all that an incident is about was said of a champion that serves no more: another version took its place."""
    signals = signals_of(conn, spec, incident)
    before = incident.body.get("champion")
    return before not in (None, champion_version(conn, spec.model)) and all(row.name in OF_A_VERSION for row in signals)


def goals_kept(conn: Connection, spec: ModelSpec, incident: IncidentRow) -> bool | None:
    """Whether the goals that an incident says are missed are kept by the present champion; None while it has too few
    labelled blocks to tell."""
    missed = [row for row in signals_of(conn, spec, incident) if row.name == "goal_missed"]
    if not missed:
        return True
    version = champion_version(conn, spec.model)
    blocks = store.select(
        conn, BlockRow, model=spec.model, topic="loss", order="block", newest_first=True, limit=4 * WINDOW_BLOCKS
    )  # fmt: skip
    if sum(row.body.get("version") == version for row in blocks) < WINDOW_BLOCKS:
        return None
    promises = [store.get(conn, DetectorRow, f"{spec.model}/goal/{row.body['goal_id']}") for row in missed]
    return all(row is not None and bool(row.state["kept"]) for row in promises)


def signals_of(conn: Connection, spec: ModelSpec, incident: IncidentRow) -> list[SignalRow]:
    """The signals of an incident, oldest first."""
    return [
        row for row in store.select(conn, SignalRow, model=spec.model, order="at") if row.incident_id == incident.id
    ]


def symptoms_passed(crew: Crew, conn: Connection, spec: ModelSpec, incident: IncidentRow, run: RunRow) -> bool:
    """Whether everything that was wrong has been right since the last sign of it, without a remedy.

    The loss over the newest `WINDOW_BLOCKS` blocks is within what the detector tolerates, the goal is kept again, a
    newer drift window is not major; in each case over blocks that were not yet labelled, or complete, at the last sign.
    Nothing passes while an action of the run is open.
    """
    if any(action.subject_id == incident.id for action in ledger.open_actions(conn, spec.model)):
        return False
    since = datetime.fromisoformat(str(run.body.get("unhealthy_at", incident.opened_at.isoformat())))
    signals = signals_of(conn, spec, incident)
    bad = unjudged_days(crew, conn, spec)
    losses = _losses_since(conn, spec, since, bad)
    # The whole may be within what is tolerated while a segment is not.
    first, version = matured_until(since, spec.data.label.delay), champion_version(conn, spec.model)
    segments = {str(row.body["segment"]) for row in signals if "segment" in row.body}
    if not all(segment_passed(conn, spec, version, name, first, bad) for name in segments):
        return False
    others = [row for row in signals if row.name != "segment_alarm"]
    return bool(signals) and all(_has_passed(conn, spec, row, losses, since) for row in others)


def _has_passed(conn: Connection, spec: ModelSpec, signal: SignalRow, losses: list[float], since: datetime) -> bool:
    enough = len(losses) >= WINDOW_BLOCKS
    row_id = {
        "loss_alarm": f"loss/{champion_version(conn, spec.model)}",
        "goal_missed": f"goal/{signal.body.get('goal_id')}",
        "major_drift": "drift",
    }.get(signal.name)
    row = store.get(conn, DetectorRow, f"{spec.model}/{row_id}") if row_id is not None else None
    if row is None:
        return False
    if signal.name == "loss_alarm":
        return enough and float(np.mean(losses[:WINDOW_BLOCKS])) <= EDetector.from_state(row.state).reference.null
    if signal.name == "goal_missed":
        return enough and bool(row.state["kept"])
    return row.state["level"] != "major" and datetime.fromisoformat(str(row.state["until"])) > since


def _losses_since(conn: Connection, spec: ModelSpec, since: datetime, bad: set[str]) -> list[float]:
    """The champion's losses of blocks that had no labels at `since`, newest first, quarantined days left out."""
    version = champion_version(conn, spec.model)
    first = matured_until(since, spec.data.label.delay)
    rows = store.select(
        conn, BlockRow, model=spec.model, topic="loss", order="block", newest_first=True, limit=4 * WINDOW_BLOCKS
    )
    return [
        float(str(row.body["loss"])) for row in rows
        if row.body.get("version") == version and block_begins(row.block) >= first
        and not bad & set(days_of_block(row.block, spec))
    ]  # fmt: skip


def champion_version(conn: Connection, model: str) -> str:
    row = store.get(conn, DetectorRow, f"{model}/champion")
    return str(row.state["version"]) if row is not None else ""


def begin_anew(conn: Connection, model: str, *, only_alarmed: bool = True) -> None:
    """The champion's loss is healthy again, or was none: its detectors begin anew, so that a relapse is news."""
    version = champion_version(conn, model)
    raised = store.get(conn, DetectorRow, f"{model}/alarm/{version}")
    row = store.get(conn, DetectorRow, f"{model}/loss/{version}")
    begin_segments_anew(conn, model, version, only_alarmed=only_alarmed)
    if row is None or (raised is None and only_alarmed):
        return
    fresh = EDetector.from_state(row.state).restarted()
    store.put(conn, row.model_copy(update={"state": dict(fresh.state())}), fence=None)
    if raised is not None:
        store.put(conn, raised.model_copy(update={"state": {**raised.state, "over": True}}), fence=None)
