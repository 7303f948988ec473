"""What a signal, and the rows around it, say for and against each cause."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from agents.monitoring import sentence
from orchestrator.change import signals_of
from orchestrator.context import champion_of
from orchestrator.crew import Crew
from orchestrator.diagnosis import Symptoms
from orchestrator.signals import Signal
from state import store
from state.rows import DetectorRow, IncidentRow, RolloutRow, SignalRow
from state.spec import ModelSpec
from state.store import Connection
from tools.drift.performance import EDetector

WEIGHED = frozenset(
    {"loss_alarm", "segment_alarm", "goal_missed", "major_drift", "challenger_better", "calibration_lost", "skew"}
)
"""Signals that go on saying what they said: whatever joins their incident is judged together with them."""


def symptoms_of(
    crew: Crew, conn: Connection, spec: ModelSpec, signal: Signal, incident: IncidentRow | None = None
) -> Symptoms:
    """Everything measured around the signal that speaks for or against a cause.

    With the open `incident` that it joins, what the earlier signals of that incident said of the present champion too.
    """
    drift = store.get(conn, DetectorRow, f"{spec.model}/drift")
    state: dict[str, Any] = dict(drift.state) if drift is not None else {}
    champion = champion_of(crew, spec.model)
    endpoint = crew.platform.servers.get(spec.model, champion) if champion else None
    baking = [r for r in store.select(conn, RolloutRow, model=spec.model, status="running") if r.phase == "bake"]
    details = signal.details
    findings = tuple(sentence(f) for f in details.get("findings", []))
    earlier = present_signals(conn, spec, incident) if incident is not None else []
    told: list[tuple[str, dict[str, Any]]] = [
        *((row.name, dict(row.body)) for row in earlier if row.name in WEIGHED),
        (signal.name, {**details, "text": signal.text}),
    ]
    newest = dict(told)
    goal, won = newest.get("goal_missed"), newest.get("challenger_better", {})
    alarm = next((body for name, body in reversed(told) if name in ("loss_alarm", "segment_alarm")), None)
    loss = alarm or goal or {}
    return Symptoms(
        signal=signal.name,
        quality_findings=findings if signal.name != "label_fault" else (),
        label_evidence=tuple(details.get("for", findings)) if signal.name == "label_fault" else (),
        against_labels=tuple(details.get("against", details.get("against_labels", loss.get("against_labels", [])))),
        server_ready=bool(endpoint and endpoint.ready),
        candidate_serving=bool(baking),
        canary_failed=signal.name == "canary_failed",
        loss_alarm="loss_alarm" in newest or (goal is not None and _has_alarmed(conn, spec.model, champion)),
        goal_missed=goal["text"] if goal is not None else None,
        loss_risen=float(loss.get("loss", 0.0)) > float(loss.get("null", float("inf"))),
        error_ratio=details.get("error_ratio"),
        by_rank=spec.objective.metric == "roc_auc",
        skew=newest["skew"]["text"] if "skew" in newest else None,
        confined=loss.get("confined"),
        perhaps_confined=goal.get("perhaps") if goal is not None else None,
        calibration=newest["calibration_lost"]["text"] if "calibration_lost" in newest else None,
        loss=loss.get("loss"),
        reference_loss=loss.get("reference"),
        drift_level="major" if signal.name == "major_drift" else state.get("level"),
        drifting_features=tuple(details.get("features", state.get("features", []))),
        label_rate_shift=details.get("label_rate_shift", loss.get("label_rate_shift")),
        backtest="win" if won else None,
        backtest_z=won.get("z"),
    )


def _has_alarmed(conn: Connection, model: str, champion: str | None) -> bool:
    """Whether the loss of this version has alarmed before, whatever was made of that."""
    row = store.get(conn, DetectorRow, f"{model}/loss/{champion}")
    return row is not None and EDetector.from_state(row.state).alarm


def present_signals(conn: Connection, spec: ModelSpec, incident: IncidentRow) -> list[SignalRow]:
    """The signals of an incident since the present champion serves, oldest first."""
    champion = store.get(conn, DetectorRow, f"{spec.model}/champion")
    if champion is None:
        return []
    since = datetime.fromisoformat(str(champion.state["since"]))
    return [row for row in signals_of(conn, spec, incident) if row.at > since]
