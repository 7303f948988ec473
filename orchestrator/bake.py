"""The bake window: the new champion is watched with the same analysis, while the old one stands warm beside it."""

from __future__ import annotations

from datetime import datetime

from agents import rollout as machine
from agents.traffic import sample_from, sample_json
from orchestrator.aims import call_off
from orchestrator.crew import Crew, observe, tell
from orchestrator.route import being_answered
from orchestrator.runs import loss_alarm
from state import store
from state.rows import RolloutRow, RunRow
from state.spec import ModelSpec
from state.store import Connection, Fence
from tools.metrics import ServiceWindow, window


def watch_bake(crew: Crew, spec: ModelSpec, *, fence: Fence) -> bool:
    """Judge every baking rollout of the model once a tick; returns whether one ended its bake, well or badly."""
    with crew.db.transaction() as conn:
        baking = [r for r in store.select(conn, RolloutRow, model=spec.model, status="running") if r.phase == "bake"]
    changed = [_judge(crew, spec, row, fence) for row in baking]
    return any(changed)


def _judge(crew: Crew, spec: ModelSpec, row: RolloutRow, fence: Fence) -> bool:
    endpoint = crew.platform.servers.get(spec.model, row.candidate)
    analysis = machine.analyse(spec, candidate=_since_promotion(crew, row), stable=_baseline(row))
    ends = datetime.fromisoformat(str(row.body["since"])) + spec.rollout.bake
    with crew.db.transaction() as conn:
        reasons = list(analysis.reasons) if analysis.verdict == "fail" else []
        if reasons and (failures := machine.failures_after(spec, row.body, analysis)) is not None:
            return _measure_again(crew, conn, row, failures, reasons, fence)
        if loss_alarm(conn, spec.model, row.candidate):
            reasons.append("the loss detector of the new champion alarmed")
        if endpoint is None or not endpoint.ready:
            reasons.append("the server of the new champion is not ready")
        if reasons:
            why = f"it fails in its bake window: {'; '.join(reasons)}"
            return call_off(crew, conn, row, why, details=analysis.details())
        if analysis.verdict == "pass" and row.body.get("failures"):
            row.body["failures"] = 0
            store.put(conn, row, fence=fence)
        if crew.clock.now() < ends or being_answered(conn, spec.model):
            return False
        if analysis.verdict == "no_data":
            if crew.clock.now() >= ends + spec.rollout.deadline:
                _cannot_be_judged(crew, conn, row, analysis.reasons[0])
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


def _measure_again(
    crew: Crew, conn: Connection, row: RolloutRow, failures: int, reasons: list[str], fence: Fence
) -> bool:
    """A first failing window is recorded and measured again."""
    sample = crew.platform.metrics.sample(row.model, row.candidate)
    samples = row.body.get("samples")
    if sample is not None and isinstance(samples, dict):
        row.body["samples"] = {**samples, row.candidate: sample_json(sample)}
    row.body["failures"] = failures
    store.put(conn, row, fence=fence)
    observe(
        crew, conn, model=row.model, topic="analysis", verdict="failing", actor='Agent::"deployment"',
        summary=f"Version {row.candidate} in its bake window: {'; '.join(reasons)}; measured once more before it counts.",
    )  # fmt: skip
    return True


def _cannot_be_judged(crew: Crew, conn: Connection, row: RolloutRow, reason: str) -> None:
    """No data holds: both versions stay where they are, and a person is told once."""
    tell(
        crew, conn, key=f"bake/{row.id}", title=f"{row.model}: version {row.candidate} cannot be judged in its bake window",
        text=f"{reason}. Version {row.stable} stays warm until there is data.",
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
