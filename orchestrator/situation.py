"""What an agent gets to see of the shared state, built anew from SQL and the platform on every tick."""

from __future__ import annotations

from datetime import datetime
from typing import cast

from agents.base import Situation
from orchestrator.actions import FACT_NAMES
from orchestrator.change import change_of, segment_of
from orchestrator.context import champion_of, corrected_today, last_traffic_key, written_weights
from orchestrator.crew import Crew
from orchestrator.signals import FAULTS
from state import store
from state.canonical import digest
from state.plans import ActionKind
from state.rows import DetectorRow, IncidentRow, RolloutRow, RunRow
from state.spec import ModelSpec


def true_facts(run: RunRow) -> frozenset[str]:
    """Established facts of the run that the planner knows."""
    return frozenset(name for name, value in run.facts.items() if value is True and name in FACT_NAMES)


def situation_of(crew: Crew, run: RunRow, spec: ModelSpec, step: ActionKind) -> Situation:
    """The situation of one run at one plan step."""
    with crew.db.transaction() as conn:
        incident = store.get(conn, IncidentRow, run.subject_id) if run.subject_kind == "incident" else None
        rollout = store.get(conn, RolloutRow, str(run.body.get("rollout_id", run.body.get("edit_of", ""))))
        champion_state = store.get(conn, DetectorRow, f"{spec.model}/champion")
        last_key = last_traffic_key(conn, spec.model)
        written = written_weights(conn, spec.model)
        corrected = corrected_today(crew, conn, spec.model)
        open_faults = [
            row for row in store.select(conn, IncidentRow, model=spec.model, status="open")
            if row.cause in FAULTS
            # What a backtest says of the days in doubt is what a person may want to know before answering.
            and not (step == "backtest_recipe" and row.body.get("in_doubt"))
        ]  # fmt: skip
    pinned = run.body.get("pinned")
    fault_days: set[str] = set()
    for row in open_faults:
        days = row.body.get("days")
        fault_days |= {str(day) for day in days} if isinstance(days, list) else set()
    candidate = run.facts.get("candidate")
    previous = champion_state.state.get("previous") if champion_state is not None else None
    return Situation(
        model=spec.model,
        spec=spec,
        spec_sha256=digest(spec.model_dump(mode="json")),
        now=crew.clock.now(),
        step=step,
        subject_id=run.subject_id,
        run_id=run.id,
        cause=incident.cause if incident is not None else run.subject_kind,
        facts=run.facts,
        pinned=cast("dict[str, object]", pinned).get(step, {}) if isinstance(pinned, dict) else {},  # type: ignore[arg-type]
        champion=champion_of(crew, spec.model),
        previous=str(previous) if previous is not None else None,
        candidate=str(candidate) if candidate is not None else None,
        last_traffic_key=last_key,
        rollout=rollout,
        written=written,
        corrected_today=corrected,
        asked_by_person=run.subject_kind == "goal",
        fault_days=sorted(fault_days),
        fit_from=datetime.fromisoformat(str(run.facts["fit_from"])) if "fit_from" in run.facts else None,
        change_from=change_of(spec, incident) if incident is not None else None,
        segment=segment_of(incident) if incident is not None else None,
    )
