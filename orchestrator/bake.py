"""The bake window: the new champion is watched with the same analysis, while the old one stands warm beside it."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from agents import rollout as machine
from agents.deployment import sample_from, sample_json
from orchestrator.crew import Crew, observe
from state import store
from state.rows import DetectorRow, RolloutRow, RunRow
from state.spec import ModelSpec
from state.store import Connection, Fence
from tools.drift.performance import EDetector
from tools.metrics import ServiceWindow, window


def watch_bake(crew: Crew, spec: ModelSpec, *, fence: Fence) -> bool:
    """Judge every baking rollout of the model once a tick; returns whether one ended its bake, well or badly."""
    with crew.db.transaction() as conn:
        baking = [r for r in store.select(conn, RolloutRow, model=spec.model, status="running") if r.phase == "bake"]
    ended = [_judge(crew, spec, row, fence) for row in baking]
    return any(ended)


def _judge(crew: Crew, spec: ModelSpec, row: RolloutRow, fence: Fence) -> bool:
    analysis = machine.analyse(spec, candidate=_since_promotion(crew, row), stable=_baseline(row))
    ends = datetime.fromisoformat(str(row.body["since"])) + spec.rollout.bake
    with crew.db.transaction() as conn:
        reasons = list(analysis.reasons) if analysis.verdict == "fail" else []
        if _loss_alarm(conn, spec, row.candidate):
            reasons.append("the loss detector of the new champion alarmed")
        if reasons:
            _failed(crew, conn, spec, row, reasons, analysis.details(), fence)
            return True
        if crew.clock.now() < ends or analysis.verdict == "no_data":
            return False
        row.phase, row.status, row.finished_at = "completed", "completed", crew.clock.now()
        store.put(conn, row, fence=fence)
        run = _run_of(conn, spec, row)
        if run is not None:
            run.facts |= {"retire": row.stable, "version_staged": True, "version_retired": False}
            run.body["remedied_at"] = crew.clock.now().isoformat()
            run.status, run.wake_at = "ready", None
            store.put(conn, run, fence=fence)
        observe(
            crew, conn, model=spec.model, topic="analysis", verdict="passed", actor='Agent::"deployment"',
            summary=f"Version {row.candidate} served as champion through its bake window without harm.",
            run_id=run.id if run else None, details=analysis.details(),
        )  # fmt: skip
    crew.say("deployment", f"bake window of version {row.candidate} passed")
    return True


def _failed(
    crew: Crew, conn: Connection, spec: ModelSpec, row: RolloutRow, reasons: list[str], details: dict[str, Any],
    fence: Fence,
) -> None:  # fmt: skip
    """The run that promoted it takes it off again; its facts say so, and the planner does the rest."""
    run = _run_of(conn, spec, row)
    if run is None or run.facts.get("canary_failed"):
        return
    run.facts |= {"canary_failed": True, "traffic_on_champion": False, "rolled_back": False}
    run.facts |= {"story": "; ".join(reasons), "healthy_champion_known": True, "version_staged": True}
    run.status, run.wake_at = "ready", None
    store.put(conn, run, fence=fence)
    observe(
        crew, conn, model=spec.model, topic="analysis", verdict="failed", actor='Agent::"deployment"', run_id=run.id,
        summary=f"Version {row.candidate} fails in its bake window: {'; '.join(reasons)}.", details=details,
    )  # fmt: skip


def _run_of(conn: Connection, spec: ModelSpec, row: RolloutRow) -> RunRow | None:
    runs = store.select(conn, RunRow, model=spec.model, status=["ready", "waiting"])
    return next((run for run in runs if run.body.get("rollout_id") == row.id), None)


def _since_promotion(crew: Crew, row: RolloutRow) -> ServiceWindow | None:
    samples = row.body.get("samples")
    before = samples.get(row.candidate) if isinstance(samples, dict) else None
    after = crew.platform.metrics.sample(row.model, row.candidate)
    if before is None or after is None:
        return None
    return window(sample_from(before), sample_from(sample_json(after)))


def _baseline(row: RolloutRow) -> ServiceWindow | None:
    """The old champion's last window before the promotion."""
    value = row.body.get("baseline")
    if not isinstance(value, dict):
        return None
    return window(sample_from(value["before"]), sample_from(value["after"]))


def _loss_alarm(conn: Connection, spec: ModelSpec, version: str) -> bool:
    row = store.get(conn, DetectorRow, f"{spec.model}/loss/{version}")
    return row is not None and EDetector.from_state(row.state).alarm
