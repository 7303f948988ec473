"""What a signal and the rows around it say for and against each cause."""

from __future__ import annotations

from typing import Any

from agents.monitoring import sentence
from orchestrator.context import champion_of
from orchestrator.crew import Crew
from orchestrator.diagnosis import Symptoms
from orchestrator.signals import Signal
from state import store
from state.rows import DetectorRow, RolloutRow
from state.spec import ModelSpec
from state.store import Connection


def symptoms_of(crew: Crew, conn: Connection, spec: ModelSpec, signal: Signal) -> Symptoms:
    """Everything measured around the signal that speaks for or against a cause."""
    drift = store.get(conn, DetectorRow, f"{spec.model}/drift")
    state: dict[str, Any] = dict(drift.state) if drift is not None else {}
    champion = champion_of(crew, spec.model)
    endpoint = crew.platform.servers.get(spec.model, champion) if champion else None
    baking = [r for r in store.select(conn, RolloutRow, model=spec.model, status="running") if r.phase == "bake"]
    details = signal.details
    findings = tuple(sentence(f) for f in details.get("findings", []))
    is_drift = signal.name == "major_drift"
    return Symptoms(
        signal=signal.name,
        quality_findings=findings if signal.name != "label_fault" else (),
        label_evidence=tuple(details.get("for", findings)) if signal.name == "label_fault" else (),
        against_labels=tuple(details.get("against_labels", details.get("against", []))),
        server_ready=bool(endpoint and endpoint.ready),
        candidate_serving=bool(baking),
        canary_failed=signal.name == "canary_failed",
        loss_alarm=signal.name == "loss_alarm",
        error_ratio=details.get("error_ratio"),
        by_rank=spec.objective.metric == "roc_auc",
        skew=signal.text if signal.name == "skew" else None,
        confined=details.get("confined"),
        calibration=signal.text if signal.name == "calibration_lost" else None,
        loss=details.get("loss"),
        reference_loss=details.get("reference"),
        drift_level="major" if is_drift else state.get("level"),
        drifting_features=tuple(details.get("features", state.get("features", []))),
        label_rate_shift=details.get("label_rate_shift"),
        backtest="win" if signal.name == "challenger_better" else None,
        backtest_z=details.get("z"),
    )
